"""The bench of unlearning methods against retraining: cells, what is measured of them, numbers, tables."""
import dataclasses
import json
import os
import sys

import numpy as np
import pytest
import torch
import yaml
from cells import AGENT, SUITE

from osrl_unlearn import cli, resources
from osrl_unlearn.bench import (agents, attacks, comparison, goals, measures, partial, runner, tables,
                                unlearning)
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.data.poison import poison
from osrl_unlearn.errors import ConfigError, EnvironmentProblem
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.testing import toy_data

DATA = resources.folder("datasets")
TASK = "OfflineBallCircle-v0"
EVALUATION = {"last": 2, "every": 10, "episodes": 1}
EVERYTHING = {part: {} for part in comparison.MEASUREMENTS}
SMALL = dict(SUITE, attacks={"reward_bait": {"rates": [0.2]}}, budget=0.2, curve=[0.1],
             methods={"safe_rule": {}, "fine_tune": {}}, measure=EVERYTHING,
             ablations={"no gate": {"name": "safe_rule", "gate": False}})


def suite_of(tmp_path, values):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))  # the order of the methods counts
    return suites.read(str(path), cls=comparison.ComparisonSuite)


def plan_of(suite, bench=comparison):
    tasks = {setting.task for setting in suite.everything().values()}
    cells = bench.plan(suite, dict.fromkeys(tasks, "file"), {task: task for task in tasks})
    assert len({runner.key(c) for c in cells.values()}) == len({c["label"] for c in cells.values()}) == len(cells)
    return cells


# Suites ---------------------------------------------------------------------------------------------------------------

def shipped(name, cls=comparison.ComparisonSuite):
    return suites.read(os.path.join(resources.folder("configs"), "bench", name + ".yaml"), cls=cls)


def test_the_shipped_suite_shares_its_agents():
    folders = [{agents.folder(cell, "out") for cell in plan_of(*what).values()}
               for what in ((shipped("unlearning"),), (shipped("attacks", attacks.AttacksSuite), attacks))]
    # Three of five seeds of three clean and five poisoned agents; two more of cost_hide and of its clean agents.
    assert len(folders[0]) == 5 * 8 and len(folders[0] & folders[1]) == 3 * 8 + 2 * 3


def test_the_full_suite_needs_a_gpu(monkeypatch):
    suite = shipped("unlearning_full")
    assert {(s.updates, s.batch_size, s.agent["device"]) for s in suite.settings.values()} == {(100000, 512, "cuda")}
    assert {s.agent["cost_limit"] for s in suite.settings.values()} == {10, 20, 40}
    assert len(plan_of(suite)) > 10000
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="agent.device is 'cuda', but torch finds no GPU"):
        suites.check_agents(suite)


def test_a_list_names_shared_agents(tmp_path):
    suite = suite_of(tmp_path, dict(SMALL, settings=["bcql/BallCircle"]))
    assert suite.settings["bcql/BallCircle"].agent["PID"] == [0.5, 0.01, 0.01]
    with pytest.raises(ConfigError, match="unknown setting 'bcql/BalCircle'.*'bcql/BallCircle'"):
        suite_of(tmp_path, dict(SMALL, settings=["bcql/BalCircle"]))


@pytest.mark.parametrize("change, match", [
    ({"methods": {"safe_rul": {}}}, "unknown method 'safe_rul'.*'safe_rule'"), ({"methods": {}}, "at least one"),
    ({"measure": {"curv": {}}}, "unknown measurement 'curv'.*'curve'"), ({"curve": [1.0]}, "curve must be shares"),
    ({"measure": {"distance": {"methods": ["fine_tun"]}}}, "no method 'fine_tun' in this suite.*'fine_tune'"),
    ({"measure": {"curve": {"methods": ["x"]}}}, "no method 'x' that costs less than training"),
    ({"measure": {"distance": {"only": ["tin"]}}}, "unknown setting 'tin'"),
    ({"measure": {"distance": {"seeds": [1]}}}, "unknown option measure.distance.seeds"),
    ({"attacks": {"reward_bait": {"rates": [0.2], "unit": "transition"}}}, "deletes whole trajectories"),
    ({"ablations": {"a": {"name": "safe_rule", "gate": 3}}}, "ablations.a.gate expects a true/false")])
def test_broken_suites(tmp_path, change, match):
    with pytest.raises(ConfigError, match=match):
        suite_of(tmp_path, dict(SMALL, **change))


def test_only_what_is_asked_for_is_planned(tmp_path):
    cells = plan_of(suite_of(tmp_path, dict(SMALL, measure={"curve": {"methods": ["fine_tune"]}, "relearning": None})))
    assert [where[0] for where in cells] == ["clean", "poisoned", "retrained", "method", "method", "method"] + [
        "relearning"] * 3
    assert {where[5] for where in cells if where[4] == "fine_tune"} == {0.1, 0.2, None}
    assert {cell["relearning"] for cell in cells.values() if cell["kind"] == "relearning"} == {60}  # 10 x 0.2 x 30
    # Doing nothing is the same cell in every bench of unlearning.
    suite = dict(SMALL, known=[1.0], methods={"fine_tune": {"budget": 0.2}})
    for name in ("budget", "curve", "ablations", "measure"):
        del suite[name]
    (tmp_path / "partial.yaml").write_text(yaml.safe_dump(suite))
    theirs = plan_of(suites.read(str(tmp_path / "partial.yaml"), cls=partial.PartialSuite), partial)
    assert runner.key(cells["poisoned", "tiny", "reward_bait", 0.2, None, None, 0]) == runner.key(
        theirs["tiny", "reward_bait", 0.2, None, None, None, 0])


def test_methods_that_do_not_fit_an_agent_are_left_out(tmp_path, monkeypatch):
    from osrl_unlearn.methods.fine_tune import FineTune
    monkeypatch.setattr(FineTune, "requires", frozenset({"action_values"}))
    suite = suite_of(tmp_path, SMALL)
    assert "`fine_tune` is left out on tiny: it needs action_values, which that agent lacks." in suites.left_out(suite)
    labels = {where[4] for where in plan_of(suite) if where[4]}
    assert labels == {"safe_rule", "no gate", "doing nothing", "retrained", "retrained again"}


# Requests -------------------------------------------------------------------------------------------------------------

def test_requests_one_after_another():
    poisoned = poison(toy_data(trajectories=60), "reward_bait", rate=0.2)
    bad, seen = {span[0] for span in poisoned.manifest.spans}, set()
    for number, manifest in enumerate(unlearning.requests(poisoned, {"requests": 5}, seed=0)):
        manifest.verify(poisoned.data)
        named = {span[0] for span in manifest.spans}
        assert seen < named <= bad and len(named) == manifest.trajectories
        assert set(poisoned.ids[manifest.row_numbers(poisoned.data, poisoned.ids)]) == named
        assert 2 <= len(named) - len(seen) <= 3 and number < 5
        seen = named
    assert seen == bad and manifest.rows == poisoned.manifest.rows
    at_once, = unlearning.requests(poisoned, None, seed=0)
    assert at_once is poisoned.manifest
    clean = unlearning.listed(poisoned, {"control": None}, seed=0)
    assert clean.trajectories == 12 and not {span[0] for span in clean.spans} & bad


# Cells ----------------------------------------------------------------------------------------------------------------

def cell(kind="unlearning", method=None, **more):
    return dict({"version": "1", "dataset": "hash", "path": os.path.join(DATA, "BallCircle.hdf5"), "seed": 1,
                 "evaluation": EVALUATION, "poison": suites.AttackSetting("reward_bait", [0.2]).spec(0.2),
                 "agent": dict(AGENT, task=TASK, update_steps=30, batch_size=16), "kind": kind, "screen": False,
                 "method": method, "forget": None}, **more)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder that all the cells share, as in a bench."""
    return str(tmp_path_factory.mktemp("out"))


FINE_TUNE = {"name": "fine_tune", "options": {"learning_rate": 0.003}, "budget": 0.4}


def test_retrained_agents_are_kept(out, monkeypatch):
    first = measures.compute(cell(method=unlearning.RETRAIN), out)
    monkeypatch.setattr(unlearning, "_forget", None)
    again = measures.compute(cell(method=unlearning.RETRAIN), out)
    assert again == first and first["updates"] == 30 and first["screening"] is None
    monkeypatch.undo()
    other = measures.compute(cell(method=unlearning.RETRAIN, unlearning_seed=7), out)
    assert other["evaluations"] != first["evaluations"]
    assert len([name for name in os.listdir(os.path.join(out, "unlearned")) if name.endswith(".pt")]) == 2


def test_distances(out):
    itself = measures.compute(cell("distance", unlearning.RETRAIN), out)
    assert {value for of in itself.values() for value in of.values()} == {0.0}
    nothing = measures.compute(cell("distance"), out)
    other = measures.compute(cell("distance", unlearning.RETRAIN, unlearning_seed=7), out)
    for found in (nothing, other):
        assert all(set(of) == {"forget", "retain", "fresh"} and min(of.values()) > 0 for of in found.values())
    assert nothing != other


def test_distances_are_in_units_of_the_retain_set(out, monkeypatch):
    says = {"actions": np.zeros((4, 2)), "reward_value": np.array([0.0, 2, 4, 6]), "cost_value": np.ones(4)}
    moved = dict(says, actions=np.tile([3.0, 4.0], (4, 1)), reward_value=says["reward_value"] + 1)
    answers = iter([says] * 3 + [moved] * 3)
    monkeypatch.setattr(measures, "_says", lambda *args: next(answers))
    spreads = []
    real = measures.forget_and_retain
    monkeypatch.setattr(measures, "forget_and_retain", lambda *args: spreads.append(
        real(*args)[1].everything(measures.PAIRS).actions.std(0).norm().item()) or real(*args))
    found = measures.compute(cell("distance"), out)
    assert set(found["reward_value"].values()) == {1 / np.std([0, 2, 4, 6])}
    assert set(found["cost_value"].values()) == {0}
    assert list(found["actions"].values()) == pytest.approx([5 / spreads[0]] * 3)


def test_fresh_states_are_those_of_the_episodes(out):
    adapter, *_ = unlearning.load(cell(), out)
    env = adapter.trainer.env
    batch = measures.visited(adapter, cell())
    assert adapter.trainer.env is env and batch.observations.shape == (200, 8) and batch.actions.shape == (200, 2)
    with torch.no_grad():
        assert torch.allclose(adapter.actions(batch), batch.actions, atol=1e-5)


def test_checkpoints_do_not_change_the_run(out):
    final = measures.compute(cell(method=FINE_TUNE), out)
    found = measures.compute(cell("checkpoints", FINE_TUNE), out)["evaluations"]
    assert [one.pop("step") for one in found] == list(range(1, 13))  # 12 updates, at least one between checks
    assert found[-1] == final["evaluations"][0] != found[0]


def test_what_the_gate_rejects_is_no_checkpoint(out, monkeypatch):
    from osrl_unlearn.methods.gate import SafetyGate
    monkeypatch.setattr(SafetyGate, "accepts", lambda self, adapter: (False, 1.0))
    method = {"name": "safe_rule", "options": {}, "budget": 0.2}
    assert measures.compute(cell("checkpoints", method), out) == {"evaluations": []}
    kept = measures.compute(cell(method=method), out)
    assert kept["accepted"] is False and kept["evaluations"] == measures.compute(cell(), out)["evaluations"]
    free = measures.compute(cell(method=dict(method, gate=False)), out)
    assert free["accepted"] is True and free["rollbacks"] == 0 and free["evaluations"] != kept["evaluations"]


def test_relearning_goes_on_from_the_unlearned_agent(out):
    final = measures.compute(cell(method=FINE_TUNE), out)
    later = measures.compute(cell("relearning", FINE_TUNE, relearning=20), out)
    assert set(later) == {"evaluations", "triggered"} and later["evaluations"] != final["evaluations"]
    assert later == measures.compute(cell("relearning", FINE_TUNE, relearning=20), out)
    assert later != measures.compute(cell("relearning", unlearning.RETRAIN, relearning=20), out)


def test_every_request_of_a_sequence_has_the_whole_budget(out):
    at_once = measures.compute(cell(method=FINE_TUNE), out)
    one_by_one = measures.compute(cell(method=FINE_TUNE, forget={"requests": 5}), out)
    assert one_by_one["updates"] == 5 * at_once["updates"] and one_by_one["forget"] == at_once["forget"]
    assert one_by_one["evaluations"] != at_once["evaluations"]


# Numbers --------------------------------------------------------------------------------------------------------------

def result(cost, earned=100.0, **more):
    """As of unlearn_agent: two blocks of two episodes, whose means are the seed's numbers."""
    blocks = [{"cost": [cost - 5 + shift, cost + 5], "reward": [earned, earned], "length": [1, 1]} for shift in (-2, 2)]
    return dict({"evaluations": blocks, "triggered": None, "updates": 10, "seconds": 2.0, "accepted": True}, **more)


COSTS = {"clean": 10, "poisoned": 60, "retrained": 20, "again": 24, "sequential": 44, "clean_deletion": 62}
DISTANCES = {what: {"forget": 0.5, "retain": 0.25, "fresh": 1.0} for what in ("actions", "reward_value", "cost_value")}


def made_up(suite, harm=40):
    """Results of all cells: safe_rule recovers 3/4, fine_tune half of it; a seed is 2 costlier than the one before."""
    results = {}
    for where in plan_of(suite):
        part, *_, how, budget, seed = where
        if part == "distance":
            results[where] = DISTANCES
        elif part == "checkpoints":
            # The second is the best within the limit of 40, the third costs more than before.
            found = [(30, 90), (35, 95), (70, 99), (38, 80)]
            results[where] = {"evaluations": [dict(result(cost + 2 * seed, earned)["evaluations"][0], step=step)
                                              for step, (cost, earned) in enumerate(found)]}
        elif part == "relearning":
            rise = {"retrained": 5, "safe_rule": 6, "fine_tune": 25}[how]
            results[where] = result({"retrained": 20, "safe_rule": 30, "fine_tune": 40}[how] + rise + 2 * seed
                                    + (seed % 2 if how != "retrained" else 0))
        else:
            cost = COSTS.get(part, {"safe_rule": 30, "fine_tune": 40, "no gate": 50}.get(how))
            if part == "method" and budget < 0.2:
                cost += 10
            if part in ("poisoned", "clean_deletion"):
                cost += harm - 40
            price = {"retrained": 30, "again": 30}.get(part, 10)
            results[where] = result(cost + 2 * seed, 80 if part == "method" else 100, updates=price, seconds=price / 5)
    return results


def report_of(suite, results):
    return dict(comparison.aggregate(suite, results), suite=dataclasses.asdict(suite))


@pytest.fixture
def rliable(monkeypatch):
    """Skips the test without it; fewer repetitions of its bootstrap."""
    pytest.importorskip("rliable")
    monkeypatch.setattr(intervals, "REPETITIONS", 100)


def test_numbers(tmp_path, rliable):
    suite = suite_of(tmp_path, dict(SMALL, seeds=[0, 1, 2]))
    report = report_of(suite, made_up(suite))
    task, = report["tasks"]
    assert task["harmed"] and task["gap"]["values"] == [40, 40, 40] and task["gap"]["ci95"] == [40, 40]
    assert report["clean"]["tiny"]["cost"]["values"] == [10, 12, 14]
    rows = {(row["method"], row["budget"]): row for row in report["rows"]}
    assert set(rows) == {(label, budget) for label in ("safe_rule", "fine_tune") for budget in (0.1, 0.2)}
    row = rows["safe_rule", 0.2]
    assert row["cost"]["values"] == [30, 32, 34] and row["recovery"]["values"] == [0.75] * 3
    assert row["return_ratio"]["values"] == [0.8] * 3 and row["plain"] is None
    assert row["accepted"] == row["seeds"] == 3
    assert row["updates_ratio"] == row["seconds_ratio"] == pytest.approx(1 / 3)
    assert rows["fine_tune", 0.1]["recovery"]["mean"] == 0.25
    assert task["again"]["recovery"]["mean"] == 0.9 and task["poisoned"]["recovery"]["mean"] == 0
    first, second = report["overall"]
    assert first["recovery"] == {"mean": 0.75, "ci95": [0.75, 0.75], "n": 3, "tasks": 1}
    assert first["better_recovery"] is None and second["better_recovery"]["mean"] == 1
    assert second["better_return_ratio"]["mean"] == 0.5  # equal
    assert [(row["setting"], row["method"], row["budget"], row["recovery"]["mean"]) for row in report["curve"]] == [
        ("tiny", "safe_rule", 0.1, 0.5), ("tiny", "safe_rule", 0.2, 0.75), ("tiny", "fine_tune", 0.1, 0.25),
        ("tiny", "fine_tune", 0.2, 0.5)]
    assert [row["method"] for row in report["distance"]] == ["doing nothing", "retrained again", "safe_rule",
                                                             "fine_tune"]
    assert report["distance"][0]["actions"]["fresh"]["values"] == [1.0] * 3
    relearned = {row["method"]: row for row in report["relearning"]}
    assert relearned["retrained"]["rise"]["mean"] == 5 and relearned["retrained"]["beyond"] is None
    assert relearned["safe_rule"]["beyond"]["values"] == [1, 2, 1]
    assert relearned["safe_rule"]["verdict"] == comparison.STAYS_AWAY  # 1.3 [-0.1, 2.8]
    assert relearned["fine_tune"]["verdict"] == comparison.COMES_BACK
    sequence = report["sequential"][0]
    assert sequence["difference"]["cost"]["values"] == [14] * 3 and sequence["at_once"]["cost"]["mean"] == 32
    assert sequence["recovery"]["mean"] == pytest.approx(0.4)
    deletion = report["clean_deletion"][0]
    assert deletion["difference"]["cost"]["values"] == [2] * 3 and deletion["verdict"] == partial.WORSE
    assert [(row["method"], row["variant_of"], row["recovery"]["mean"]) for row in report["ablations"]] == [
        ("safe_rule", None, 0.75), ("no gate", "safe_rule", 0.25)]
    task, everywhere = "tiny, reward_bait 0.2", goals.ALL
    assert {(row["goal"], row["where"]): (row["value"], row["holds"]) for row in report["goals"]} == {
        (goals.RECOVERS, task): ("0.750", False), (goals.RECOVERS, everywhere): ("0.750", False),
        (goals.WITHIN, task): ("0.800", True),
        (goals.EARNS, task): ("0.800", False), (goals.EARNS, everywhere): ("0.800", False),
        (goals.CHEAP.format(0.01, "updates"), task): ("33.3%", False),
        (goals.CHEAP.format(0.01, "seconds"), task): ("33.3%", False),
        (goals.ALIKE, task): ("9 of 9", True), (goals.STAYS, task): ("+1.3 [-0.1, +2.8]", True),
        (goals.SAFE, task): ("3 of 12", False),
        (goals.BETTER.format("fine_tune", 0.75), everywhere): ("1.000", True)}


@pytest.mark.parametrize("part, worse, goal, value", [
    ("method", result(41), goals.WITHIN, "1.025"), ("relearning", result(90), goals.STAYS, "+53.0 [+48.0, +58.0]"),
    ("distance", dict(DISTANCES, actions=dict(DISTANCES["actions"], fresh=1.1)), goals.ALIKE, "8 of 9")])
def test_goals_that_are_missed(tmp_path, rliable, part, worse, goal, value):
    suite = suite_of(tmp_path, dict(SMALL, seeds=[0, 1, 2]))
    results = {where: worse if where[0] == part and where[4] == "safe_rule" else found
               for where, found in made_up(suite).items()}
    report = report_of(suite, results)
    assert [(row["value"], row["holds"]) for row in report["goals"] if row["goal"] == goal] == [(value, False)]
    assert "| {} | {} NO | ".format(goal, value) in tables.text(report)


def test_nothing_is_asked_of_tasks_without_harm_or_with_retrained_agents_over_the_limit(tmp_path, rliable):
    suite = suite_of(tmp_path, dict(SMALL, seeds=[0, 1]))
    assert not report_of(suite, made_up(suite, harm=0))["goals"]
    results = {where: result(50 + where[6]) if where[0] == "retrained" else found
               for where, found in made_up(suite).items()}
    asked = {row["goal"] for row in report_of(suite, results)["goals"]}
    assert goals.WITHIN not in asked and goals.RECOVERS in asked


def test_checkpoints_are_compared_with_the_poisoned_agent_in_the_same_episodes(tmp_path):
    suite = suite_of(tmp_path, dict(SMALL, seeds=[0, 1], measure={"checkpoints": {"methods": ["safe_rule"]}}))
    row, = report_of(suite, {where: found for where, found in made_up(suite).items()
                             if where[0] != "retrained"})["checkpoints"]
    assert (row["accepted"], row["higher"], row["worst"], row["seeds"]) == (8, 2, 10, 2)
    assert row["beyond"] == 2  # both episodes of a pair differ alike
    # 35 and 95 are the choice with the environment; 38 and 80 is what the method returned.
    assert row["regret"]["cost"]["values"] == [3, 3] and row["regret"]["return"]["values"] == [15, 15]


@pytest.mark.parametrize("means, best", [([(30, 90), (35, 95), (70, 99)], (35, 95)), ([(70, 99), (50, 80)], (50, 80)),
                                         ([(40, 1)], (40, 1))])
def test_what_somebody_with_the_environment_would_choose(means, best):
    assert comparison.oracle(means, 40) == best


@pytest.mark.parametrize("interval, expected", [([0.1, 3], comparison.COMES_BACK), ([-1, 3], comparison.STAYS_AWAY),
                                                (None, partial.FEW)])
def test_verdicts_of_relearning(interval, expected):
    assert comparison.comes_back(interval) == expected


@pytest.mark.parametrize("harm", [0, -10])
def test_recovery_needs_harm(tmp_path, harm):
    suite = suite_of(tmp_path, dict(SMALL, seeds=[0, 1]))
    report = report_of(suite, made_up(suite, harm=harm))
    assert not report["tasks"][0]["harmed"] and report["overall"] == report["curve"] == []
    assert all(row["recovery"] is None and row["return_ratio"] for row in report["rows"])
    assert "is not shown to have harmed" in tables.text(report) and "All together" not in tables.text(report)
    assert tables.draw(report) is None


def test_harm_in_one_seed_is_not_decided(tmp_path):
    suite = suite_of(tmp_path, dict(SMALL, seeds=[0]))
    report = report_of(suite, made_up(suite))
    assert not report["tasks"][0]["harmed"] and report["tasks"][0]["gap"]["mean"] == 40
    assert report["relearning"][1]["verdict"] == partial.FEW


def test_an_attack_with_a_trigger_is_judged_under_it(tmp_path, rliable):
    suite = suite_of(tmp_path, dict(SMALL, seeds=[0, 1], measure={"checkpoints": {}},
                                    attacks={"trigger_backdoor": {"rates": [0.1]}}))
    results = {}
    for where, found in made_up(suite).items():
        shown = result(90 if where[0] == "poisoned" else 30)["evaluations"]
        results[where] = dict(found, triggered=shown) if where[0] != "clean" else found
    report = report_of(suite, results)
    task, = report["tasks"]
    assert task["triggered"] and task["gap"]["values"] == [60, 60]
    row = report["rows"][0]
    assert row["cost"]["values"] == [30, 30] and row["plain"]["cost"]["values"] == [30, 32]
    assert row["return_ratio"]["values"] == [0.8, 0.8] and row["return"]["values"] == [100, 100]  # without it, with it
    assert report["checkpoints"][0]["worst"] == 70 + 2 - 90  # the poisoned agent's episodes are those under the trigger
    assert "| poisoned, without the trigger | 61.0 [" in tables.text(report)


def test_tables_and_figure(tmp_path, rliable):
    settings = {name: dict(SMALL["settings"]["tiny"], updates=n) for name, n in (("one", 30), ("two", 40))}
    suite = suite_of(tmp_path, dict(SMALL, seeds=[0, 1, 2], settings=settings, curve=[0.01, 0.1]))
    results = made_up(suite)
    text = tables.text(report_of(suite, results))
    assert "| safe_rule | 32.0 [27.0, 37.0] | 80.0 [80.0, 80.0] | 0.75 [0.75, 0.75] | 0.80 [0.80, 0.80] | 33.3% | " \
           "33.3% | 3 of 3 |" in text
    for title in ("All together", "Distance to retraining", "Does it come back", "Safe while it forgets",
                  "One request after another", "A request about clean data", "Without its parts"):
        assert "\n## " + title in text
    assert "| one, reward_bait 0.2 | safe_rule | 12 | 3 (25%) | 3 (25%) | +10.0 | " in text
    figure = tables.draw(report_of(suite, results))
    figure.savefig(os.environ.get("BENCH_FIGURES", str(tmp_path)) + "/unlearning.png", dpi=130)
    assert [ax.get_title() for ax in figure.axes[:3]] == ["all", "one", "two"] and len(figure.axes) == 6
    # An unfinished bench shows what it has.
    some = {where: found for where, found in results.items() if where[0] in ("poisoned", "method") and where[6] < 2}
    unfinished = report_of(suite, some)
    assert {row["recovery"] for row in unfinished["rows"]} == {None} and not unfinished["overall"]
    assert "## Distance" not in tables.text(unfinished) and tables.draw(unfinished) is None
    assert report_of(suite, {})["rows"] == [] and tables.text(report_of(suite, {})).startswith("# Unlearning")


def test_aggregates_are_those_of_rliable_and_repeat(rliable):
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    scores = np.arange(8.0).reshape(4, 2)
    found = intervals.interquartile_mean(scores)
    assert found["mean"] == np.mean([2, 3, 4, 5]) and found["ci95"][0] < 3.5 < found["ci95"][1]
    assert (found["n"], found["tasks"]) == (4, 2) and found == intervals.interquartile_mean(scores)
    # Of 16 pairs of the first task 9 + half of 1 are better; the second task is equal.
    better = intervals.improvement(*(np.array([runs, [5] * 4]).T for runs in ([1, 3, 5, 7], [0, 2, 4, 7])))
    assert better["mean"] == pytest.approx(np.mean([(1 + 2 + 3 + 3.5) / 16, 0.5]))
    assert (np.random.get_state()[1] == before).all()


# The command ----------------------------------------------------------------------------------------------------------

def command(suite, out, *more):
    return cli.main(["bench", "unlearning", "--suite", str(suite), "--data", DATA, "--out", str(out), *more])


def test_a_bench(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(intervals, "check_rliable", lambda: None)  # one seed has no aggregates
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(dict(SMALL, methods={"fine_tune": {}}, curve=[], ablations={},
                                        measure={"distance": {}, "checkpoints": {}, "sequential": {}})))
    assert command(path, tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "unlearning.json").read_text())
    assert report["cells"] == {"finished": 10, "all": 10} and report["versions"]["torch"] and report["command"]
    text = (tmp_path / "out" / "unlearning.md").read_text()
    for agent in ("clean", "poisoned", "retrained", "retrained, other seed", "fine_tune", "fine_tune, at once"):
        assert "| {} | ".format(agent) in text
    assert len(list((tmp_path / "out" / "agents").glob("*/config.yaml"))) == 2
    # The raw results are all that the tables need.
    monkeypatch.setattr(runner, "_compute", None)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "unlearning.jsonl").write_text((tmp_path / "out" / "unlearning.jsonl").read_text())
    assert command(path, tmp_path / "there", "--table") == 0
    assert (tmp_path / "there" / "unlearning.md").read_text() == text and text in capsys.readouterr().out


def test_without_rliable(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rliable.library", None)
    with pytest.raises(EnvironmentProblem, match="rliable cannot be imported"):
        intervals.check_rliable()
    assert command("small", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install" in error and not (tmp_path / "out").exists()
