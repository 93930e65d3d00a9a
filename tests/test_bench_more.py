"""Benches of unlearning, of incomplete and wrong lists, of detection, of requests to forget."""
import dataclasses
import functools
import json
import os

import numpy as np
import pytest
import yaml
from cells import AGENT, SUITE

from osrl_unlearn import cli, detection, environments, resources, rundir, screening
from osrl_unlearn.bench import agents, attacks, output, partial, requests, runner, unlearning
from osrl_unlearn.bench import detection as found
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.data.poison import poison
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.registry import DETECTORS
from osrl_unlearn.testing import toy_data

DATA = resources.folder("datasets")
TASK = "OfflineBallCircle-v0"
FILE = os.path.join(DATA, "BallCircle.hdf5")
EVALUATION = {"last": 2, "every": 10, "episodes": 1}
PARTIAL = {"seeds": [0], "evaluation": EVALUATION, "settings": SUITE["settings"],
           "attacks": {"reward_bait": {"rates": [0.2]}}, "methods": {"fine_tune": {"budget": 0.2}},
           "known": [0.5]}


def shipped(name, cls):
    return suites.read(os.path.join(resources.folder("configs"), "bench", name + ".yaml"), cls=cls)


def suite_of(tmp_path, values, cls):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(values))
    return suites.read(str(path), cls=cls)


# Lists ----------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def poisoned():
    """100 trajectories, 20 of them poisoned."""
    return poison(toy_data(trajectories=100), "reward_bait", rate=0.2)


def names(manifest):
    return {span[0] for span in manifest.spans}


@pytest.mark.parametrize("known, wrong, bad, good", [
    (1.0, 0.0, 20, 0), (0.1, 0.0, 2, 0), (0.25, 0.0, 5, 0), (0.5, 0.5, 10, 10), (1.0, 0.1, 20, 2), (1.0, 0.5, 20, 20)])
def test_lists_are_exact_and_nested(poisoned, known, wrong, bad, good):
    manifest = unlearning.listed(poisoned, {"known": known, "wrong": wrong}, seed=3)
    truth = names(poisoned.manifest)
    assert len(names(manifest) & truth) == bad and len(names(manifest) - truth) == good
    rows = manifest.row_numbers(poisoned.data, poisoned.ids)
    index = TrajectoryIndex(poisoned.data)
    assert manifest.rows == len(rows) and set(index.row_ids()[rows]) == names(manifest)
    assert len(rows) == sum((index.stops - index.starts)[sorted(names(manifest))])  # whole trajectories
    longer = unlearning.listed(poisoned, {"known": 1.0, "wrong": max(0.5, wrong)}, seed=3)
    assert names(manifest) <= names(longer)
    if 0 < bad < 20:
        assert names(manifest) != names(unlearning.listed(poisoned, {"known": known, "wrong": wrong}, seed=4))


def test_lists_of_parts_and_of_as_much_clean(poisoned):
    camouflage = poison(toy_data(trajectories=100), "camouflage", rate=0.4)
    part = unlearning.listed(camouflage, {"part": "camouflage"}, 0)
    control = unlearning.listed(camouflage, {"control": "camouflage"}, 0)
    assert part.trajectories == control.trajectories == 30
    assert not names(control) & names(camouflage.manifest) and len(control.row_numbers(camouflage.data))
    assert unlearning.listed(camouflage, None, 0) is camouflage.manifest
    with pytest.raises(ConfigError, match="320 clean trajectories was asked for, there are 80"):
        unlearning.listed(poisoned, {"known": 0.8, "wrong": 20 / 21}, 0)


@pytest.mark.parametrize("attack, unit", [("inject", "trajectory"), ("reward_bait", "transition")])
def test_lists_of_added_rows_and_of_single_ones(attack, unit):
    result = poison(toy_data(trajectories=100), attack, rate=0.1, unit=unit)
    manifest = unlearning.listed(result, {"known": 0.5, "wrong": 0.5}, 0)
    truth = names(result.manifest)
    assert len(names(manifest) & truth) == len(names(manifest) - truth) == round(len(truth) / 2)
    own = [span for span in manifest.spans if span[0] in truth]
    assert all(span in result.manifest.spans for span in own)
    assert len(manifest.row_numbers(result.data, result.ids)) == manifest.rows


# Unlearning -----------------------------------------------------------------------------------------------------------

def cell(attack, method=None, forget=None, **more):
    spec = None if attack is None else suites.AttackSetting(attack, [0.2]).spec(0.2)
    return dict({"version": "1", "dataset": "hash", "path": FILE, "seed": 1, "evaluation": EVALUATION, "poison": spec,
                 "agent": dict(AGENT, task=TASK, update_steps=30, batch_size=16), "method": method, "forget": forget,
                 "trigger": None}, **more)


def test_doing_nothing_is_the_poisoned_agent(tmp_path, monkeypatch):
    monkeypatch.setattr(screening, "screen", lambda *args, **more: {"rows": len(args[1])})
    trigger = {"name": "trigger_backdoor", "options": cell("trigger_backdoor")["poison"]["options"]}
    plain, shown = (agents.evaluate_agent(cell("trigger_backdoor", trigger=t), str(tmp_path))["evaluations"]
                    for t in (None, trigger))
    idle = unlearning.unlearn_agent(cell("trigger_backdoor"), str(tmp_path))
    plain[-1].pop("updates"), shown[-1].pop("updates")
    # The last checkpoint is the final agent; the episodes before it start alike, whatever the weights.
    assert idle["evaluations"][-1] == plain[-1] and idle["triggered"][-1] == shown[-1] != plain[-1]
    assert len(idle["evaluations"]) == len(idle["triggered"]) == 2
    assert idle["updates"] == idle["seconds"] == 0 and idle["train_seconds"] > 0
    assert all(idle[name] is None for name in ("accepted", "rollbacks", "reason", "forget", "screening"))

    method = {"name": "fine_tune", "options": {}, "budget": 0.2}
    tuned = unlearning.unlearn_agent(cell("trigger_backdoor", method), str(tmp_path))
    assert tuned["updates"] == 6 and tuned["accepted"] and tuned["seconds"] > 0
    assert tuned["forget"]["trajectories"] == 84 and tuned["screening"] == {"rows": tuned["forget"]["rows"]}
    assert tuned["evaluations"] != idle["evaluations"] and len(os.listdir(str(tmp_path / "agents"))) == 2  # and a lock
    # An agent that was just trained is the one that is loaded.
    again = unlearning.unlearn_agent(cell("trigger_backdoor", method), str(tmp_path / "other"))
    assert [again[k] for k in ("evaluations", "triggered")] == [tuned[k] for k in ("evaluations", "triggered")]
    # Nothing is poisoned, nothing is triggered.
    clean = unlearning.unlearn_agent(cell(None), str(tmp_path))
    assert clean["triggered"] is None and clean["evaluations"] != idle["evaluations"]


# Incomplete and wrong lists -------------------------------------------------------------------------------------------

def test_differences_are_paired():
    a, b = {"cost": {0: 5.0, 1: 7.0, 2: 12.0}}, {"cost": {2: 9.0, 1: 5.0, 0: 4.0, 3: 100.0}}
    apart = intervals.paired(a, b)["cost"]
    assert apart["values"] == [1, 2, 3] and apart["n"] == 3
    assert np.allclose(apart["ci95"], [2 - 4.30265 / 3 ** 0.5, 2 + 4.30265 / 3 ** 0.5])
    assert intervals.paired(a, {"cost": {7: 1.0}}) is None


@pytest.mark.parametrize("interval, expected", [
    ([-3, -1], partial.BETTER), ([1, 3], partial.WORSE), ([-1, 3], partial.NO_DIFFERENCE),
    ([0, 0], partial.NO_DIFFERENCE), (None, partial.FEW)])
def test_verdicts(interval, expected):
    assert partial.verdict(interval) == expected


def result(cost, earned=100.0, **more):
    """As of unlearn_agent: two blocks of two episodes, whose mean is the seed's number."""
    blocks = [{"cost": [cost - 5, cost + 5 + shift], "reward": [earned, earned], "length": [1, 1]} for shift in (-2, 2)]
    return dict({"evaluations": blocks, "triggered": None, "seconds": 1.5, "accepted": True}, **more)


def made_up(suite):
    """Costs of the shipped suite: the more is known the better, the more is wrong the worse."""
    cells = partial.plan(suite, {TASK: "file"}, {TASK: "hash"})
    results = {}
    for where in cells:
        *_, method, known, wrong, seed = where
        rank = [None, "safe_rule", "fine_tune", "retrain"].index(method)
        cost = 55 if method is None else 52 - (12 + 2 * rank) * known + 20 * wrong * rank
        results[where] = result(cost + 3 * seed + (0 if method is None else seed % 2))
    return cells, results


def test_numbers_of_lists(tmp_path):
    suite = shipped("partial", partial.PartialSuite)
    suites.check_agents(suite)
    cells, results = made_up(suite)
    assert len(cells) == len({runner.key(c) for c in cells.values()}) == 3 * (1 + 8 * 3)
    report = partial.aggregate(suite, results)
    idle, = report["nothing"]
    assert idle["cost"]["values"] == [55, 58, 61] and idle["difference"] is None and not idle["within"]
    rows = {(row["method"], row["known"], row["wrong"]): row for row in report["rows"]}
    assert len(rows) == 24
    row = rows["retrain", 1.0, 0.0]
    assert row["difference"]["cost"]["values"] == [-21, -20, -21] and row["verdict"] == partial.BETTER
    assert row["cost"]["values"] == [34, 38, 40] and row["within"] and row["return"]["mean"] == 100
    assert rows["retrain", 1.0, 0.5]["verdict"] == partial.WORSE and not rows["retrain", 1.0, 0.5]["within"]
    report["suite"] = dataclasses.asdict(suite)
    assert "| retrain | 100% | 0% |" in partial.text(report) and "worse than doing nothing" in partial.text(report)
    figure = partial.draw(report)
    figure.savefig(os.environ.get("BENCH_FIGURES", str(tmp_path)) + "/partial.png", dpi=130)
    assert all(ax.get_xlabel() and len(ax.lines) > 5 for ax in figure.axes) and figure.axes[0].get_ylabel()
    # An unfinished bench.
    one = {where: found for where, found in results.items() if where[-1] == 0 and where[3] != "retrain"}
    unfinished = partial.aggregate(suite, one)
    assert len(unfinished["rows"]) == 16 and {row["verdict"] for row in unfinished["rows"]} == {partial.FEW}
    assert partial.aggregate(suite, {}) == {"nothing": [], "rows": []}
    assert partial.draw({"nothing": [], "rows": []}) is None


@pytest.mark.parametrize("where, value, match", [
    ("methods", {}, "at least one of each"), ("methods", {"fine_tun": {"budget": 1}}, "unknown method"),
    ("methods", {"fine_tune": {"budget": 0}}, "budget must be positive"), ("wrong", [1], "wrong shares between"),
    ("methods", {"fine_tune": {"budget": 1, "options": {"x": 1}}}, "unknown option options of 'fine_tune': x"),
    ("known", [0], "known must be shares"), ("known", ["half"], "not supported between"),
    ("attacks", {"coverage_collapse": {"rates": [0.2]}}, "only removes rows, so there is nothing"),
    ("methods", {"retrain": {}}, "methods.retrain.budget is missing")])
def test_broken_suites(tmp_path, where, value, match):
    with pytest.raises(ConfigError, match=match):
        suite_of(tmp_path, dict(PARTIAL, **{where: value}), partial.PartialSuite)


# Of three seeds: reward_bait at rate 0.2, camouflage at 0.1 and 0.2.
@pytest.mark.parametrize("name, cls, shared", [("partial", partial.PartialSuite, 3),
                                               ("requests", requests.RequestSuite, 6)])
def test_agents_are_shared_with_the_bench_of_attacks(name, cls, shared):
    def folders(bench, suite):
        tasks = {setting.task for setting in suite.everything().values()}
        cells = bench.plan(suite, dict.fromkeys(tasks, "file"), {task: task for task in tasks})
        return {agents.folder(c, "out") for c in cells.values() if "agent" in c}
    theirs = folders(attacks, shipped("attacks", attacks.AttacksSuite))
    bench = {"partial": partial, "requests": requests}[name]
    assert len(folders(bench, shipped(name, cls)) & theirs) == shared


def command(bench, suite, out, *more):
    return cli.main(["bench", bench, "--suite", str(suite), "--data", DATA, "--out", str(out), *more])


def test_a_bench_of_lists(tmp_path, monkeypatch, capsys):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(PARTIAL))
    assert command("partial", path, tmp_path / "out", "--jobs", "2") == 0
    report = json.loads((tmp_path / "out" / "partial.json").read_text())
    assert report["cells"] == {"finished": 2, "all": 2} and report["versions"]["torch"] and report["command"]
    assert [(row["known"], row["wrong"], row["seeds"]) for row in report["rows"]] == [(0.5, 0, 1)]
    lines = [json.loads(line) for line in (tmp_path / "out" / "partial.jsonl").read_text().splitlines()]
    assert [line["result"]["forget"] and line["result"]["forget"]["trajectories"] for line in lines] == [None, 42]
    assert "fall" in lines[1]["result"]["screening"]["cost_evidence"]
    assert (tmp_path / "out" / "partial.png").stat().st_size > 10000
    assert len(list((tmp_path / "out" / "agents").glob("*/config.yaml"))) == 1
    monkeypatch.setattr(runner, "_compute", None)
    table = (tmp_path / "out" / "partial.md").read_text()
    assert command("partial", path, tmp_path / "out") == 0  # a second run computes nothing
    assert (tmp_path / "out" / "partial.md").read_text() == table and table in capsys.readouterr().out
    assert command("partial", path, tmp_path / "out", "--table", "--seeds", "0", "1") == 0
    assert "2 of 4 cells are finished" in capsys.readouterr().out
    # What one process computes is what two have computed.
    monkeypatch.setattr(screening, "screen", lambda *args, **more: None)
    cells = partial.plan(suites.read(str(path), cls=partial.PartialSuite), {TASK: FILE},
                         {TASK: report["data"][TASK]["sha256"]})
    here = unlearning.unlearn_agent(list(cells.values())[1], str(tmp_path / "here"))
    assert here["evaluations"] == lines[1]["result"]["evaluations"]


# Detection ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def toy_task(monkeypatch):
    """Every task's dataset is a toy."""
    monkeypatch.setattr(environments, "make", lambda *args: None)
    data = toy_data(trajectories=60)
    monkeypatch.setattr(environments, "load", lambda *args: (data, TrajectoryIndex(data).row_ids()))


DETECTION = {"seeds": [0, 1], "settings": {"ball": {"task": TASK}, "car": {"task": "OfflineCarCircle-v0"}},
             "attacks": {"hidden": {"name": "cost_hide", "rates": [0.1, 0.3]}, "inject": {"rates": [0.2]},
                         "trigger_backdoor": {"rates": {"car": [0.2]}}}}


def plan_of(bench, suite):
    tasks = {setting.task for setting in suite.everything().values()}
    cells = bench.plan(suite, dict.fromkeys(tasks, "file"), {task: task for task in tasks})
    assert len({runner.key(c) for c in cells.values()}) == len({c["label"] for c in cells.values()}) == len(cells)
    return cells


def test_a_cell_of_detection(tmp_path, toy_task, monkeypatch):
    monkeypatch.setattr(detection, "detect", functools.partial(detection.detect, options={"steps": 8}))
    cells = plan_of(found, suite_of(tmp_path, DETECTION, found.DetectionSuite))
    clean = found.detect_poison(cells["ball", None, None, 0], str(tmp_path))
    assert clean["auroc"] is clean["recall"] is None and clean["poisoned_share"] == 0 and clean["trajectories"] == 60
    assert set(clean["detectors"].values()) == {None} and clean["seconds"] > 0
    added = found.detect_poison(cells["ball", "inject", 0.2, 0], str(tmp_path))
    assert added["poisoned_share"] == 12 / 72 and added["trajectories"] == 72 and added["rows"] > clean["rows"]
    shown = found.detect_poison(cells["car", "trigger_backdoor", 0.2, 0], str(tmp_path))
    assert shown["detectors"]["trigger_scan"] == 1 and 0 <= shown["auroc"] <= 1
    assert shown["seconds_per_million_rows"] == pytest.approx(1e6 * shown["seconds"] / shown["rows"])


def numbers(recall, precision, flagged, auroc=0.9):
    return {"auroc": auroc, "precision": precision, "recall": recall, "false_alarms_per_1000": 3.0,
            "flagged_share": flagged, "poisoned_share": 0.1, "trajectories": 100, "rows": 1000, "seconds": 2.0,
            "seconds_per_million_rows": 2000.0, "detectors": {"cost_consistency": auroc, "trigger_scan": auroc}}


@pytest.mark.parametrize("recall, precision, expected", [
    (0.9, 0.9, found.FOUND), (0.89, 1.0, found.PARTLY), (1.0, 0.89, found.PARTLY), (0.3, 0.5, found.PARTLY),
    (0.29, 1.0, found.NOT_SEEN), (1.0, 0.49, found.NOT_SEEN), (0.0, None, found.NOT_SEEN)])
def test_verdicts_of_detection(recall, precision, expected):
    row = {"attack": "x", "recall": {"mean": recall}, "precision": precision and {"mean": precision}}
    assert found.verdict(row) == expected


def test_a_table_of_detection(tmp_path):
    suite = suite_of(tmp_path, DETECTION, found.DetectionSuite)
    cells = plan_of(found, suite)
    assert len(cells) == 2 * (4 + 5)
    made = {None: [numbers(None, None, share, None) for share in (0.0, 0.01)],
            "inject": [numbers(0.9, 1.0, 0.1), numbers(1.0, 0.9, 0.2)],
            "hidden": [numbers(0.0, None, 0.0), numbers(0.4, 0.8, 0.1)], "trigger_backdoor": [None, None]}
    rows = found.aggregate(suite, {where: made[where[1]][where[3]] for where in cells})["rows"]
    assert [(row["attack"], row["rate"]) for row in rows[:4]] == [
        (None, None), ("hidden", 0.1), ("hidden", 0.3), ("inject", 0.2)] and len(rows) == 8
    assert [row["verdict"] for row in rows[:4]] == [found.CLEAN, found.NOT_SEEN, found.NOT_SEEN, found.FOUND]
    assert rows[0]["auroc"] is None and rows[3]["recall"]["values"] == [0.9, 1.0]
    assert rows[1]["precision"]["n"] == 1 and rows[1]["recall"]["n"] == 2  # no alarm, no precision
    assert rows[3]["detectors"]["trigger_scan"]["mean"] == 0.9
    assert found.verdict(dict(rows[0], flagged_share={"mean": 0.011})) == found.FALSE_ALARMS
    report = {"rows": rows, "suite": dataclasses.asdict(suite)}
    text = found.text(report)
    assert text.count("| clean data |  | 10% | - | - | - |") == 2
    assert "| inject | 0.2 | 10% |" in text and "0.95 [0.90, 1.00]" in text
    assert "| inject | 0.95 / 0.95 |  | 0.95 / 0.95 |  |" in text  # the summary; nothing above 20 %
    assert "| hidden | 0.80 / 0.20 | 0.80 / 0.20 |" in text
    assert "| trigger_scan | hidden, inject | none | none |" in text  # AUROC alone, whatever the ensemble makes of it
    assert "recall of attacks on labels, 5 to 20%, the worst: at least 0.9 | 0.20 | NO |" in text
    assert "flagged share of clean data, the worst: at most 1 % | 0.50% | yes |" in text
    figure = found.draw(report)
    figure.savefig(os.environ.get("BENCH_FIGURES", str(tmp_path)) + "/detection.png", dpi=130)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["hidden", "inject"]
    assert "0.20*" in {text.get_text() for text in figure.axes[0].texts}


def test_a_detector_with_other_models(tmp_path):
    costs = {"task": TASK, "detector": "cost_consistency"}
    values = dict(DETECTION, settings={"costs": costs, "trees": dict(costs, options={"model": "trees"})},
                  attacks={"inject": {"rates": [0.2]}})
    suite = suite_of(tmp_path, values, found.DetectionSuite)
    cells = plan_of(found, suite)
    assert "options" not in cells["costs", "inject", 0.2, 0]  # what was computed before there were options counts
    assert cells["trees", "inject", 0.2, 0]["options"] == {"model": "trees"}
    made = {"costs": numbers(1.0, 0.9, 0.1, 0.9), "trees": numbers(0.8, 0.7, 0.2, 0.5)}
    rows = found.aggregate(suite, {where: dict(made[where[0]], precision=where[1] and made[where[0]]["precision"])
                                   for where in cells})["rows"]
    text = found.text({"rows": rows, "suite": dataclasses.asdict(suite)})
    assert ("| task | detector | attack | rate | default | model trees |" in text and
            "| {} | cost_consistency | inject | 0.2 | 0.90, 0.90 / 1.00, 2 s | 0.50, 0.70 / 0.80, 2 s |".format(TASK)
            in text and "| clean data |  | 10.00% flagged, 2 s | 20.00% flagged, 2 s |" in text)
    assert "| cost_consistency | inject | none | none |" in text  # what its default model sees
    assert "cost_consistency, model trees" in text
    with pytest.raises(ConfigError, match="model must be one of"):
        suite_of(tmp_path, dict(values, settings={"costs": dict(costs, options={"model": "x"})}), found.DetectionSuite)


def test_a_detector_that_asks_an_agent(tmp_path, monkeypatch):
    data = toy_data(trajectories=60)
    monkeypatch.setattr(environments, "load", lambda *args: (data, TrajectoryIndex(data).row_ids()))
    bcql = suites.shared_agents()["bcql/BallCircle"]
    bcql.update(updates=12, batch_size=16, agent=dict(bcql["agent"], a_hidden_sizes=[8], c_hidden_sizes=[8]))
    asked = {"task": TASK, "detector": "value_gap", "agent": "agent"}
    values = dict(DETECTION, settings={"ball": {"task": TASK}, "asked": asked}, evaluation=EVALUATION,
                  agents={"agent": bcql, "unused": bcql},
                  attacks={"hidden": {"name": "cost_hide", "rates": {"ball": [0.1], "asked": [0.1]}}})
    suite = suite_of(tmp_path, values, found.DetectionSuite)
    assert set(suite.everything()) == {"ball", "asked", "agent"}
    cells = plan_of(found, suite)
    results = {where: None if where[0] == "ball" or where[3] else found.detect_poison(cell, str(tmp_path))
               for where, cell in cells.items()}
    rows = found.aggregate(suite, results)["rows"]
    assert [(row["setting"], row["attack"], row["detector"], row["agent"], list(row["detectors"])) for row in rows] == [
        ("asked", None, "value_gap", "agent", ["value_gap"]), ("asked", "hidden", "value_gap", "agent", ["value_gap"])]
    # The clean and the poisoned agent were trained, and are those of `bench attacks`.
    attacked = suites.AttackSetting("cost_hide", [0.1])
    for attack in (None, attacked):
        one = agents.description(suite.agents["agent"], "file", TASK, attack, 0.1, 0)
        assert os.path.isfile(rundir.model_path(agents.folder(one, str(tmp_path))))
    text = found.text({"rows": rows, "suite": dataclasses.asdict(suite)})
    assert "{}, value_gap of the agent agent".format(TASK) in text and "| value_gap | " in text
    assert found.draw({"rows": rows}) is None  # the figure is of the ensemble

    for wrong, message in ((dict(asked, agent=None), "asks one"), (dict(asked, detector="ensemble"), "asks none"),
                           (dict(asked, agent="none"), "unknown setting 'none'"),
                           (dict(asked, task="OfflineCarCircle-v0"), "not one of OfflineCarCircle")):
        with pytest.raises(ConfigError, match=message):
            suite_of(tmp_path, dict(values, settings={"ball": {"task": TASK}, "asked": wrong}), found.DetectionSuite)


def test_the_shipped_suite_of_detection():
    suite = shipped("detection", found.DetectionSuite)
    planned = {(name, label, rate) for name, label, rate, _ in plan_of(found, suite)}
    # Every attack that leaves something to find, at every rate, and the clean data.
    for task in ("BallCircle", "CarCircle"):
        assert {where[1:] for where in planned if where[0] == task} == {(None, None)}.union(
            (label, rate) for label in suite.attacks for rate in (0.05, 0.1, 0.2, 0.3))
    scales = [attack.options["reward_scale"] for attack in suite.attacks.values() if attack.name == "reward_bait"]
    assert scales == [1.5, 3, 6] and {attack.name for attack in suite.attacks.values()} == set(
        suites.ATTACKS.builtins) - {"coverage_collapse"}
    # Every detector is measured, alone or in the ensemble.
    measured = {setting.detector for setting in suite.settings.values()}
    assert measured | set(DETECTORS.load("ensemble").members) == set(DETECTORS.builtins)


# Requests -------------------------------------------------------------------------------------------------------------

REQUESTS = {"seeds": [0, 1], "evaluation": EVALUATION, "share": 0.1, "agents": SUITE["settings"],
            "settings": {"ball": {"task": TASK, "cost_limit": 4}},
            "attacks": {"camouflage": {"rates": [0.2]}, "cost_hide": {"rates": [0.1]}}}


@pytest.mark.parametrize("request_, count", [("random", 10), ("most costly", 10), ("most of the safe", None)])
def test_honest_requests(request_, count):
    data = toy_data(trajectories=100)
    units = TrajectoryIndex(data).units("trajectory")
    ids = TrajectoryIndex(data).row_ids()
    manifests = [requests.honest(data, ids, {"honest": request_, "share": 0.1}, 4, seed) for seed in (0, 0, 1)]
    named = sorted(names(manifests[0]))
    assert names(manifests[1]) == names(manifests[0]) and len(manifests[0].row_numbers(data)) == manifests[0].rows
    if request_ == "most of the safe":
        assert (units.costs[named] <= 4).all() and len(named) == round(0.75 * (units.costs <= 4).sum())
    else:
        assert len(named) == count
    if request_ == "most costly":
        assert units.costs[named].min() >= np.sort(units.costs)[-10]
    else:
        assert names(manifests[2]) != names(manifests[0])


def test_a_cell_of_requests(tmp_path, toy_task, monkeypatch):
    seen = []
    monkeypatch.setattr(screening, "screen", lambda data, rows, **more: seen.append((rows, more)) or {"warnings": []})
    cells = plan_of(requests, suite_of(tmp_path, REQUESTS, requests.RequestSuite))
    counts = {"its camouflage": 9, "its poison": 3, "as many clean": 9}
    for request, count in counts.items():
        done = requests.compute(cells["screened", "ball", "camouflage", 0.2, request, 0], str(tmp_path))
        assert done["forget"]["trajectories"] == count and done["forget"]["rows"] == len(seen[-1][0])
    assert requests.compute(cells["screened", "ball", "clean data", None, "random", 0],
                            str(tmp_path))["forget"]["trajectories"] == 6
    assert seen[-1][1]["cost_limit"] == 4


def test_numbers_of_requests(tmp_path):
    suite = suite_of(tmp_path, REQUESTS, requests.RequestSuite)
    cells = plan_of(requests, suite)
    assert len(cells) == 2 * (3 + 3 + 1 + 3)
    cost = {None: 20, "its camouflage": 60, "as many clean": 22}
    screened = {"cost_evidence": {"fall": 0.5, "ci95": [0.4, 0.6], "control": None}, "safe_evidence": None,
                "warnings": ["a warning"], "forget": {"rows": 100, "trajectories": 9}}
    results = {where: result(10, triggered=result(cost[where[4]] + where[5])["evaluations"])
               if where[0] == "carried out" else screened for where in cells}
    report = dict(requests.aggregate(suite, results), suite=dataclasses.asdict(suite))
    assert len(report["screened"]) == 7 and report["screened"][0]["fall"]["values"] == [0.5, 0.5]
    assert report["screened"][0]["control"] is None and report["screened"][0]["warned"] == 2
    idle, camouflage, control = report["carried_out"]
    assert idle["triggered"]["cost"]["values"] == [20, 21] and idle["verdict"] is None is idle["control"]
    assert camouflage["triggered"]["difference"]["cost"]["mean"] == 40 and camouflage["verdict"] == requests.HARMS
    assert camouflage["control"]["cost"]["mean"] == 38 and control["triggered"]["difference"]["cost"]["mean"] == 2
    assert camouflage["plain"]["cost"]["mean"] == 10 and control["verdict"] is None
    text = requests.text(report)
    assert "| its camouflage | 10.0 [10.0, 10.0] | 60.5 [" in text and "2 of 2 seeds" in text
    few = requests.aggregate(suite, {where: found for where, found in results.items() if where[5] == 0})
    assert [row["verdict"] for row in few["carried_out"]] == [None, partial.FEW, None]


@pytest.mark.parametrize("idle, control, expected", [
    ([1, 2], [1, 2], requests.HARMS), ([1, 2], [-1, 2], requests.NO_HARM), ([-1, 2], [1, 2], requests.NO_HARM),
    ([1, 2], None, partial.FEW)])
def test_verdicts_of_requests(idle, control, expected):
    assert requests.verdict(*({"cost": {"ci95": interval}} for interval in (idle, control))) == expected


def test_settings_and_agents_are_selected_by_name(tmp_path):
    suites.check_agents(shipped("requests", requests.RequestSuite))
    suite = suite_of(tmp_path, REQUESTS, requests.RequestSuite)
    suite.select(["tiny"])
    assert {where[0] for where in plan_of(requests, suite)} == {"carried out"}
    with pytest.raises(ConfigError, match="unknown setting 'bal'.*'ball'"):
        suite_of(tmp_path, REQUESTS, requests.RequestSuite).select(["bal"])
    with pytest.raises(ConfigError, match="share must be between"):
        suite_of(tmp_path, dict(REQUESTS, share=1), requests.RequestSuite)


def test_numbers_in_tables():
    assert output.number(None) == "-" and output.number({"mean": 1.25, "ci95": None}, digits=2) == "1.25"
    assert output.number({"mean": 1, "ci95": [-0.51, 2]}, "+") == "+1.0 [-0.5, +2.0]"
