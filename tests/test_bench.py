"""Benches: every result once, whatever is interrupted or fails; verdicts; the tables."""
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from agents import subprocess_environment
from cells import AGENT, SUITE
from scipy import stats

from osrl_unlearn import cli, resources
from osrl_unlearn.bench import attacks, runner
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.commands import bench
from osrl_unlearn.data.manifest import versions
from osrl_unlearn.errors import ConfigError, DataError, EnvironmentProblem
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.registry import ADAPTERS, ATTACKS

HERE = os.path.dirname(os.path.abspath(__file__))
SHIPPED = os.path.join(resources.folder("configs"), "bench", "attacks.yaml")
DATA = resources.folder("datasets")
FUNCTION = "cells:square"  # tests/cells.py


def calls(out):
    return sorted(int(line) for line in (out / "calls").read_text().split())


# Runner ---------------------------------------------------------------------------------------------------------------

def test_every_cell_is_computed_once(tmp_path):
    cells = [{"x": 3}, {"x": 1, "label": "one", "path": "/a"}, {"x": 3}, {"x": 1, "label": "uno", "path": "/b"}]
    first = runner.run_cells(cells, FUNCTION, str(tmp_path), 2)
    assert [result["square"] for result in first] == [9, 1, 9, 1] and first[0]["threads"] == "1"
    assert runner.run_cells(cells + [{"x": 2}], FUNCTION, str(tmp_path), 1)[:4] == first
    assert calls(tmp_path) == [1, 2, 3]
    saved = json.loads((tmp_path / "results" / (runner.key({"x": 1}) + ".json")).read_text())
    assert saved["cell"] == {"x": 1} and saved["result"] == first[1] and saved["seconds"] > 0
    assert saved["versions"] == versions()


def test_a_failing_cell_does_not_stop_the_others(tmp_path, capfd):
    cells = [{"x": 1, "error": "ours", "label": "one"}, {"x": 2, "error": "other", "label": "two"}, {"x": 3}]
    assert [r and r["square"] for r in runner.run_cells(cells, FUNCTION, str(tmp_path))] == [None, None, 9]
    error = capfd.readouterr().err
    assert "2 of 3 cells failed" in error and "one: because of 1\n" in error
    assert "two: ValueError: because of 2\n" in error and "Traceback" not in error
    assert (tmp_path / "bench.log").read_text().count("Traceback") == 2
    runner.run_cells(cells, FUNCTION, str(tmp_path))
    assert calls(tmp_path) == [1, 1, 2, 2, 3]  # what failed is repeated


def test_a_worker_that_dies(tmp_path, capfd):
    cells = [{"x": 1}, {"x": 2, "error": "ours", "label": "two"}, {"x": 3, "die": True}]
    with pytest.raises(EnvironmentProblem, match="a worker process died.*; 1 of 3 cells are finished"):
        runner.run_cells(cells, FUNCTION, str(tmp_path))
    assert "1 of 3 cells failed" in capfd.readouterr().err and len(os.listdir(str(tmp_path / "failed"))) == 1


def test_damaged_results_are_named(tmp_path):
    runner.run_cells([{"x": 1}], FUNCTION, str(tmp_path))
    path, = (tmp_path / "results").glob("*.json")
    path.write_text("")
    with pytest.raises(ConfigError, match="{} is damaged.*delete it".format(path)):
        runner.run_cells([{"x": 1}], FUNCTION, str(tmp_path))
    (tmp_path / "b.jsonl").write_text('{"cell": ')
    with pytest.raises(ConfigError, match="b.jsonl, line 1 is damaged"):
        runner.restore(str(tmp_path / "b.jsonl"), str(tmp_path))


def test_ctrl_c_ends_the_workers_and_keeps_what_is_finished(tmp_path):
    cells = [{"x": x, "sleep": 0 if x < 2 else 60} for x in range(4)]
    code = "import sys; sys.path.insert(0, {!r})\nfrom osrl_unlearn.bench.runner import run_cells\n" \
           "if __name__ == '__main__': run_cells({!r}, {!r}, {!r}, 2)".format(HERE, cells, FUNCTION, str(tmp_path))
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], env=subprocess_environment(), start_new_session=True,
                               stderr=subprocess.PIPE, universal_newlines=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    deadline = time.monotonic() + 60
    while not ((tmp_path / "calls").is_file() and len(calls(tmp_path)) == 4) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, error = process.communicate(timeout=20)
    assert process.returncode and error.rstrip().endswith("KeyboardInterrupt") and error.count("Traceback") == 1
    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):  # nobody is left
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.1)
    cells[2:] = [{"x": 2}, {"x": 3}]
    assert [r["square"] for r in runner.run_cells(cells, FUNCTION, str(tmp_path))] == [0, 1, 4, 9]
    assert calls(tmp_path) == [0, 1, 2, 2, 3, 3]


# Numbers --------------------------------------------------------------------------------------------------------------

def test_intervals():
    summary = intervals.mean([1, 2, 3])
    assert summary["mean"] == 2 and summary["n"] == 3 and summary["values"] == [1, 2, 3]
    assert np.allclose(summary["ci95"], [2 - 4.30265 / 3 ** 0.5, 2 + 4.30265 / 3 ** 0.5])
    assert intervals.mean([4])["ci95"] is None and intervals.mean([4, 4])["ci95"] == [4, 4]
    a, b = np.array([5.0, 7, 9, 4]), np.array([1.0, 2, 3.5])
    apart = intervals.difference(a, b)
    assert apart["mean"] == a.mean() - b.mean()
    for end in apart["ci95"]:  # by definition: the shifts at which Welch's test gives 5 %
        assert stats.ttest_ind(a - end, b, equal_var=False).pvalue == pytest.approx(0.05)
    assert intervals.difference([1], a)["ci95"] is None and intervals.difference([2, 2], [1, 1])["ci95"] == [1, 1]


def compared(clean, poisoned):
    """Clean and poisoned are (cost, return) per seed."""
    sides = [{name: intervals.mean(values) for name, values in zip(("cost", "return"), side)}
             for side in (clean, poisoned)]
    return {"clean": sides[0], "poisoned": sides[1], "difference": {
        name: intervals.difference(sides[1][name]["values"], sides[0][name]["values"]) for name in sides[0]}}


@pytest.mark.parametrize("clean, poisoned, expected", [
    (([41, 43], [100, 101]), ([80, 81], [100, 101]), attacks.INVALID),     # too costly
    (([10, 11], [49, 50]), ([80, 81], [49, 50]), attacks.INVALID),         # earns nothing
    (([10, 11], [100, 101]), ([80, 81], [49, 50]), attacks.DESTROYS),
    (([10, 11], [100, 101]), ([80, 81], [90, 91]), attacks.HARMS),
    (([10, 11], [100, 101]), ([30, 31], [90, 91]), attacks.WITHIN),
    (([10, 11], [100, 101]), ([9, 11], [70, 71]), attacks.LESS),
    (([10, 11], [100, 101]), ([9, 90], [99, 101]), attacks.NOTHING),       # seeds disagree
    (([10, 11], [-100, -101]), ([9, 11], [-80, -81]), attacks.NOTHING),    # half of a loss is no loss of return
    (([10], [100]), ([80], [90]), attacks.FEW)])
def test_verdicts(clean, poisoned, expected):
    pair = compared(clean, poisoned)
    assert attacks.verdict(pair, pair["clean"], limit=40, min_return=60 if clean[1][0] > 0 else -200) == expected


def test_a_trigger_is_judged_where_it_shows(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(dict(SUITE, seeds=[0, 1])))
    suite = suites.read(str(path), cls=attacks.AttacksSuite)
    task = "OfflineBallCircle-v0"
    cells = attacks.plan(suite, {task: "file"}, {task: "hash"})
    assert len({runner.key(cell) for cell in cells.values()}) == len(cells) == 10
    cost = {(None, None): 10, (None, "trigger_backdoor"): 20, ("hidden", None): 30, ("trigger_backdoor", None): 11,
            ("trigger_backdoor", "trigger_backdoor"): 70}
    # Two checkpoints of two episodes each: their mean is the seed's number.
    results = {where: {"evaluations": [{"cost": [cost[where[1], where[3]] + where[4] + shift, 0], "reward": [100, 102]}
                                       for shift in (-1, 1)]} for where in cells}
    report = attacks.aggregate(suite, results)
    hidden, trigger = report["rows"]
    assert report["clean"]["tiny"]["cost"]["values"] == [5, 5.5] and report["clean"]["tiny"]["return"]["mean"] == 101
    assert hidden["triggered"] is None and hidden["plain"]["difference"]["cost"]["mean"] == 10
    assert hidden["verdict"] == attacks.WITHIN
    assert trigger["plain"]["difference"]["cost"]["mean"] == 0.5 and trigger["verdict"] == attacks.WITHIN
    assert trigger["triggered"]["clean"]["cost"]["values"] == [10, 10.5]
    assert trigger["triggered"]["difference"]["cost"]["mean"] == 25
    for where in [where for where in results if where[4] == 1 or where[3]]:
        results[where] = None  # an unfinished bench: one seed, no triggers
    row, = attacks.aggregate(suite, results)["rows"]
    assert row["attack"] == "hidden" and row["verdict"] == attacks.FEW


def test_an_attack_may_have_more_seeds(tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(dict(SUITE, more_seeds={"hidden": [4]})))
    suite = suites.read(str(path), cls=attacks.AttacksSuite)
    cells = attacks.plan(suite, {"OfflineBallCircle-v0": "file"}, {"OfflineBallCircle-v0": "hash"})
    assert [where[1] for where in cells if where[-1] == 4] == [None, "hidden"]
    results = {where: {"evaluations": [{"cost": [where[-1]], "reward": [1]}]} for where in cells}
    report = attacks.aggregate(suite, results)
    assert report["clean"]["tiny"]["cost"]["values"] == [0, 4]
    assert [row["plain"]["poisoned"]["cost"]["n"] for row in report["rows"]] == [2, 1]
    path.write_text(yaml.safe_dump(dict(SUITE, more_seeds={"nothing": [4]})))
    with pytest.raises(ConfigError, match="names 'nothing', which is none of the attacks"):
        suites.read(str(path), cls=attacks.AttacksSuite)


# Suites ---------------------------------------------------------------------------------------------------------------

def test_the_shipped_suite():
    suite = suites.read(SHIPPED, cls=attacks.AttacksSuite)
    suites.check_agents(suite)
    assert all(attack.options["segment_length"] == 10 for attack in suite.attacks.values())
    full = suites.read(SHIPPED.replace(".yaml", "_full.yaml"), cls=attacks.AttacksSuite)
    assert {setting.updates for setting in full.settings.values()} == {100000} and len(full.settings) == 6
    assert {attack.name for attack in full.attacks.values() if attack.rates == [0.01, 0.05, 0.1, 0.2, 0.3]} == set(
        ATTACKS.builtins)


@pytest.mark.parametrize("where, value, match", [
    ("seeds", [], "seeds must be at least one"), ("seeds", [2 ** 31], "the seed must be a whole number"),
    ("seeds", [0, 1, 0], "seeds must differ"),
    ("attacks.hidden.rates", [0], "rates must be shares"),
    ("attacks.hidden.options", {"x": 1}, "unknown option options of 'cost_hide': x"),
    ("attacks.hidden.name", "cost_hid", "unknown attack"), ("attacks.hidden.unit", "row", "unit must be one of"),
    ("attacks.hidden.rates", {"tin": [0.2]}, "unknown setting 'tin'"), ("attacks.hidden", None, "expected a mapping"),
    ("settings.tiny.updates", 10, "do not fit into 10 updates"), ("settings.tiny.agent", {}, "the agent lacks name"),
    ("settings.tiny.min_return", "much", "expects a number"),
    ("evaluation", {"last": 1}, "evaluation.every is missing"), ("settings", [5], "unknown setting '5'"),
    ("evaluation", {"last": 1, "every": 1, "episodes": "x"}, "evaluation.episodes expects an integer")])
def test_broken_suites(tmp_path, where, value, match):
    suite = json.loads(json.dumps(SUITE))
    *parents, last = where.split(".")
    place = suite
    for parent in parents:
        place = place[parent]
    place[last] = value
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    with pytest.raises(ConfigError, match=match):
        suites.read(str(path))


def test_other_seeds_are_checked_too():
    assert suites.read(SUITE, seeds=[7]).seeds == [7]
    with pytest.raises(ConfigError, match="the seed must be"):
        suites.read(SUITE, seeds=[-1])
    with pytest.raises(ConfigError, match="the seed must be"):
        suites.read(dict(SUITE, more_seeds={"hidden": [-1]}), cls=attacks.AttacksSuite)
    assert suites.read(dict(SUITE, more_seeds={"hidden": [4]}), seeds=[7], cls=attacks.AttacksSuite).every_seed == [7]
    with pytest.raises(ConfigError, match="not iterable"):
        suites.read(dict(SUITE, more_seeds={"hidden": 3}), cls=attacks.AttacksSuite)


@pytest.mark.parametrize("name", sorted(ADAPTERS.builtins))
def test_every_agent_can_be_in_a_suite(name):
    # BC takes no reward_scale and CDT no cost_limit, but every setting has them.
    with open(os.path.join(resources.folder("configs"), "agents", name + ".yaml")) as file:
        agent = dict(yaml.safe_load(file), name=name, cost_limit=40, episode_len=200, reward_scale=0.1, cost_scale=1)
    for of_scripts in suites.OF_SCRIPTS:
        del agent[of_scripts]
    suites.check_agents(suites.read(dict(SUITE, settings={"tiny": dict(SUITE["settings"]["tiny"], agent=agent)})))


@pytest.mark.parametrize("change, match", [({"cost_limt": 1}, "no option 'cost_limt'.*'cost_limit'"),
                                           ({"f_type": None}, "coptidice needs f_type"),
                                           ({"a_hidden_sizes": "x"}, "settings.tiny.agent: coptidice cannot be built")])
def test_broken_agents(tmp_path, change, match):
    agent = {key: value for key, value in dict(AGENT, **change).items() if value is not None}
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(dict(SUITE, settings={"tiny": dict(SUITE["settings"]["tiny"], agent=agent)})))
    with pytest.raises(ConfigError, match=match):
        suites.check_agents(suites.read(str(path)))


def test_the_dataset_of_a_task(tmp_path):
    for name in ("BallCircle-1.hdf5", "BallRun-1.hdf5", "SafetyCarRun-v0-40.hdf5", "BallCircle.txt"):
        (tmp_path / name).write_text("")
    assert suites.dataset_file("OfflineBallCircle-v0", str(tmp_path)) == str(tmp_path / "BallCircle-1.hdf5")
    assert suites.dataset_file("OfflineCarRun-v0", str(tmp_path)).endswith("SafetyCarRun-v0-40.hdf5")
    for name in ("BallRun-1.partial.hdf5", "SafetyCarRun1Gymnasium-v0.hdf5"):  # interrupted; of another task
        (tmp_path / name).write_text("")
    assert suites.dataset_file("OfflineCarRun-v0", str(tmp_path)).endswith("SafetyCarRun-v0-40.hdf5")
    assert suites.dataset_file("OfflineBallRun-v0", str(tmp_path)).endswith("BallRun-1.hdf5")
    (tmp_path / "BallCircle-2.hdf5").write_text("")
    for task, found in (("OfflineBallCircle-v0", "BallCircle-1.hdf5 and BallCircle-2.hdf5"),
                        ("OfflineAntRun-v0", "no file")):
        with pytest.raises(DataError, match="holds {} for {}".format(found, task)):
            suites.dataset_file(task, str(tmp_path))


# The command ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(suite file, output folder) of a small bench that one process has computed."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    assert command(folder / "suite.yaml", folder / "one") == 0
    return folder / "suite.yaml", folder / "one"


def command(suite, out, *more):
    return cli.main(["bench", "attacks", "--suite", str(suite), "--data", DATA, "--out", str(out), *more])


def raw(out):
    """{label: episodes} of every cell."""
    lines = [json.loads(line) for line in (out / "attacks.jsonl").read_text().splitlines()]
    return {line["label"]: line["result"]["evaluations"] for line in lines}


def test_a_bench(finished):
    report = json.loads((finished[1] / "attacks.json").read_text())
    assert report["cells"] == {"finished": 5, "all": 5} and report["command"] and report["versions"]["torch"]
    assert [row["attack"] for row in report["rows"]] == ["hidden", "trigger_backdoor"]
    assert report["data"]["OfflineBallCircle-v0"]["file"] == "BallCircle.hdf5"
    episodes = raw(finished[1])
    assert len(episodes) == 5 and [e["updates"] for e in episodes["tiny, clean, seed 0"]] == [20, 30]
    assert all(len(e["cost"]) == 1 for evaluations in episodes.values() for e in evaluations)
    assert episodes["tiny, clean, seed 0"] != episodes["tiny, clean, trigger of trigger_backdoor, seed 0"]
    text = (finished[1] / "attacks.md").read_text()
    assert "| hidden | 0.2 |" in text and "| trigger_backdoor, with its trigger | 0.1 |" in text
    assert (finished[1] / "attacks.png").stat().st_size > 10000


def test_two_processes_give_the_same(finished, tmp_path):
    assert command(finished[0], tmp_path, "--jobs", "2") == 0
    assert raw(tmp_path) == raw(finished[1])


def test_a_second_run_computes_nothing(finished, monkeypatch, capsys):
    monkeypatch.setattr(runner, "_compute", None)
    before = raw(finished[1])
    (finished[1] / "attacks.md").unlink()
    assert command(finished[0], finished[1]) == 0 and command(finished[0], finished[1], "--table") == 0
    assert raw(finished[1]) == before and (finished[1] / "attacks.md").is_file()
    assert "| hidden | 0.2 |" in capsys.readouterr().out
    # Other seeds are other cells.
    assert command(finished[0], finished[1], "--table", "--seeds", "0", "1") == 0
    assert "5 of 10 cells are finished" in capsys.readouterr().out


def test_raw_results_from_elsewhere_are_not_computed_again(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_compute", None)
    assert command(finished[0], finished[1], "--table") == 0  # another test may have made one of other seeds
    lines = [json.loads(line) for line in (finished[1] / "attacks.jsonl").read_text().splitlines()]
    assert all(line["versions"] == versions() for line in lines)
    table = (finished[1] / "attacks.md").read_text()
    del lines[0]["versions"]  # as older results are
    lines[1]["versions"] = lines[2]["versions"] = {"torch": "1.2"}
    (tmp_path / "attacks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command(finished[0], tmp_path) == 0
    assert raw(tmp_path) == raw(finished[1])
    again = [json.loads(line) for line in (tmp_path / "attacks.jsonl").read_text().splitlines()]
    assert again == lines
    text = (tmp_path / "attacks.md").read_text()
    assert "\n\nComputed with: versions unknown (1 of 5 cells); torch 1.2 (2 of 5 cells); python " in text
    assert text.split("\n\nComputed with")[0] == table.split("\n\nComputed with")[0]
    for line in lines:
        line.pop("versions", None)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "attacks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command(finished[0], tmp_path / "old") == 0
    assert (tmp_path / "old" / "attacks.md").read_text() == table.split("\n\nComputed with")[0] + "\n"


def test_its_agents_are_run_directories(finished):
    from osrl_unlearn import rundir
    manifests = list((finished[1] / "agents").glob("*/osrl_unlearn/forget.json"))
    assert len(manifests) == 2
    for path in manifests:
        run = rundir.load(str(path.parent.parent))
        manifest = rundir.load_manifest(run.path)
        data, ids = rundir.load_data(run, manifest)
        manifest.verify(data)
        assert len(manifest.row_numbers(data, ids)) and run.state["updates"] == 30 and not run.notes


@pytest.mark.parametrize("more, match", [(["--only", "small"], "unknown setting 'small'"), (["--jobs", "0"], "--jobs"),
                                         (["--table"], "there is no table"), (["--data", "nowhere"], "no file for")])
def test_what_the_user_can_mend(finished, tmp_path, capsys, more, match):
    assert command(finished[0], tmp_path, *more) == 2
    assert match in capsys.readouterr().err


def test_failures_show_in_the_exit_status(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(suites, "check_agents", lambda suite: None)
    monkeypatch.setattr(runner, "run_cells", lambda cells, *more: [
        {"evaluations": [{"cost": [1], "reward": [100]}]}] * (len(cells) - 1) + [None])
    assert command(finished[0], tmp_path) == 1
    assert "4 of 5 cells are finished" in capsys.readouterr().out


def test_every_bench_has_a_run_function():
    import importlib
    for module, text in bench.BENCHES.values():
        assert callable(importlib.import_module(module).run) and text
