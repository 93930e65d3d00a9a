"""bench speed: what is compared takes turns, ratios are taken in pairs, and files of any size are made and mapped."""
import dataclasses
import functools
import itertools
import json
import os
import time

import h5py
import numpy as np
import pytest
import yaml
from cells import AGENT

from osrl_unlearn import cli, detection, resources
from osrl_unlearn.bench import processes, runner, speed, speed_tables, timings
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.data.dataset import check_file, read_columns
from osrl_unlearn.data.poison import REQUIRED
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.errors import ConfigError, RunError
from osrl_unlearn.testing import toy_data

DATA = resources.folder("datasets")
TASK = "OfflineBallCircle-v0"
FILE = os.path.join(DATA, "BallCircle.hdf5")
SMALL = {"batch_size": 16, "num_workers": 1, "a_hidden_sizes": [8], "c_hidden_sizes": [8]}
SETTING = {"task": TASK, "updates": 30, "batch_size": 16, "min_return": 0, "agent": AGENT}
SUITE = {"task": TASK, "repetitions": 3, "updates": 20, "loops": {"coptidice": SMALL}, "threads": [1, 2],
         "agents": {"tiny": SETTING}, "evaluation": {"last": 2, "every": 10, "episodes": 1}, "shares": [0.1, 0.5],
         "budget": 0.1, "script": 2000, "sizes": {2000: 3, 1000: 3}}


def suite_of(tmp_path, **changes):
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(dict(SUITE, **changes)))
    return suites.read(str(path), cls=speed.SpeedSuite)


def shipped(name):
    return suites.read(os.path.join(resources.folder("configs"), "bench", name + ".yaml"), cls=speed.SpeedSuite)


def plan_of(suite):
    return speed.plan(suite, {TASK: FILE}, {TASK: "hash"})


@pytest.fixture
def toy_file(tmp_path):
    """3 trajectories of toy data, then a row without an end."""
    data, path = toy_data(trajectories=4), str(tmp_path / "toy.hdf5")
    stop = TrajectoryIndex(data).stops[2]
    with h5py.File(path, "w") as file:
        for name in REQUIRED:
            file.create_dataset(name, data=data[name][:stop + 1], compression="gzip")
    return path, {name: data[name][:stop] for name in REQUIRED}


# Measuring ------------------------------------------------------------------------------------------------------------

def test_what_is_compared_takes_turns_and_starts_anew_each_time():
    calls, pauses = [], {"a": 0.002, "b": 0.0}

    def maker(name):
        def make():
            calls.append("make " + name)
            return lambda: calls.append(name) or time.sleep(pauses[name])
        return make

    seconds = timings.take_turns({name: maker(name) for name in "ab"}, warm=1, count=2, repetitions=3)
    assert calls == ["make a"] + 3 * ["a"] + ["make b"] + 3 * ["b"] + calls[8:] and calls == 3 * calls[:8]
    assert [len(found) for found in seconds.values()] == [3, 3]
    assert min(seconds["a"]) >= 0.002 > min(seconds["b"])  # per call


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.parametrize("name, more", [
    ("coptidice", SMALL), ("bc", {"batch_size": 16, "num_workers": 1}),
    ("cdt", {"batch_size": 4, "num_workers": 0, "embedding_dim": 8, "num_layers": 1, "num_heads": 1})])
def test_a_cell_of_loops(tmp_path, name, more):
    suite = suite_of(tmp_path, loops={name: more}, repetitions=1, updates=2)
    found = timings.compute(plan_of(suite)["loop", name, 1], str(tmp_path))
    assert {what: {who: len(values) for who, values in times.items()} for what, times in found["seconds"].items()} == \
        dict.fromkeys(("loop", "batch", "batch_alone"), {"osrl": 1, "ours": 1})
    # An update takes longer than its batch, and OSRL puts batches together row by row.
    assert found["seconds"]["loop"]["ours"] > found["seconds"]["batch"]["ours"]
    assert found["machine"]["cores"] >= 1 and found["machine"]["gpu"] is None
    assert not {os.uname().nodename, os.getcwd()} & set(map(str, found["machine"].values()))


def test_both_loops_are_given_the_same_columns(tmp_path):
    from osrl_unlearn import environments
    from osrl_unlearn.registry import ADAPTERS
    for name, config in suite_of(tmp_path, loops={"coptidice": SMALL, "bc": {}}).configurations().items():
        env = environments.make(TASK, 10)
        data = {key: np.asarray(value) for key, value in toy_data(trajectories=5).items()}
        adapter = ADAPTERS.load(name).build(config, env)
        columns = next(iter(timings.osrl_dataset(data, config)))
        store = adapter.store(data, config.get("reward_scale", 1), config.get("cost_scale", 1))
        theirs = timings.arguments(adapter)(columns)
        row = np.flatnonzero((data["observations"] == columns[0]).all(1))
        ours = adapter.arguments(store.gather(store.view(row).rows))
        theirs, ours = (found[0] if name == "coptidice" else found for found in (theirs, ours))
        assert len(theirs) == len(ours) == (7 if name == "coptidice" else 2)
        for a, b in zip(theirs, ours):
            assert np.array_equal(np.asarray(a), b[0].numpy())
        assert "done" not in data  # OSRL's datasets write into what they are given


def test_a_cell_of_unlearning(tmp_path, monkeypatch):
    from osrl_unlearn.bench import unlearning
    asked = []

    def prepared(adapter, data, ids, manifest, method, steps, cell, **more):
        asked.append((method.name, steps, manifest.trajectories))
        return type("Prepared", (), {"run": lambda self: None})()

    monkeypatch.setattr(unlearning, "prepared", prepared)
    found = timings.unlearning(plan_of(suite_of(tmp_path, repetitions=2))["unlearning", "tiny"], str(tmp_path))
    assert asked == 2 * [("retrain", 30, 210), ("safe_rule", 3, 42), ("safe_rule", 3, 210)]
    assert found["rows"] == [42 * 200, 210 * 200] and found["updates"] == {"retrain": 30, "safe_rule": 3}
    assert len(found["retrain"]) == 2 and [len(times) for times in found["shares"]] == [2, 2]


# Processes ------------------------------------------------------------------------------------------------------------

def test_trajectories_are_repeated_and_mapped_into_memory(tmp_path, toy_file):
    source, data = toy_file
    rows = 2 * len(data["rewards"]) + 5
    path = str(tmp_path / "long.hdf5")
    processes.repeat_rows(source, path, rows)
    check_file(path)
    found = read_columns(path)
    for name, column in data.items():
        expected = np.concatenate([column] * 3)[:rows]
        if name == "timeouts":
            assert expected[-1] != found[name][-1] or expected[-1]  # the last trajectory ends, wherever it is cut
            expected[-1] = True
        assert np.array_equal(found[name], expected) and found[name].dtype == expected.dtype, name
        assert isinstance(found[name].base, np.memmap)
    found["rewards"][0] += 1  # stays in memory
    assert read_columns(path)["rewards"][0] == data["rewards"][0]
    compressed = read_columns(source)
    assert all(column.base is None for column in compressed.values()) and len(compressed["costs"]) > len(data["costs"])


def test_columns_of_one_number_per_row_are_flat(tmp_path):
    path = str(tmp_path / "tall.hdf5")
    with h5py.File(path, "w") as file:
        for name, column in toy_data(trajectories=3).items():
            file[name] = column if column.ndim == 2 else column[:, None]
    found = read_columns(path)
    assert found["costs"].ndim == 1 and found["actions"].ndim == 2
    assert np.array_equal(found["costs"], toy_data(trajectories=3)["costs"])


def test_time_and_peak_memory_of_a_process(tmp_path):
    small, large = (processes.observed([processes.sys.executable, "-I", "-S", "-c", program], str(tmp_path))
                    for program in ("pass", "import time; x = b'x' * 100_000_000; time.sleep(0.3)"))
    assert 95e6 < large["peak_bytes"] - small["peak_bytes"] < 130e6 and small["peak_bytes"] < 60e6
    assert large["seconds"] > 0.3
    with pytest.raises(RunError, match="status 3: a reason"):
        processes.observed([processes.sys.executable, "-c", "import sys; print('a reason', file=sys.stderr); "
                                                            "sys.exit(3)"], str(tmp_path))


def test_a_script_with_poison(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "WAYS", {way: processes.WAYS[way] for way in ("plugin --poison",)})  # each is slow
    cell = plan_of(suite_of(tmp_path, repetitions=1))["script",]
    found = processes.script(cell, str(tmp_path))["ways"]
    way, = found.values()
    assert 0 < way["load"][0] < way["seconds"][0] and way["peak_bytes"][0] > 5e7
    assert [name for name in os.listdir(str(tmp_path)) if name != "suite.yaml"] == []  # cleaned up


def test_what_is_done_to_large_files(tmp_path, monkeypatch, toy_file):
    monkeypatch.setattr(detection, "detect", functools.partial(detection.detect, options={"steps": 8}))
    path, times = str(tmp_path / "data.hdf5"), str(tmp_path / "times.json")
    processes.repeat_rows(toy_file[0], path, 1000)
    for operation in processes.OPERATIONS:
        processes.operate(operation, path, times)
        with open(times) as file:
            assert json.load(file)["seconds"] > 0
    with open(str(tmp_path / "poisoned.json")) as file:
        assert json.load(file)["attack"]["name"] == "cost_hide"
    before, after = read_columns(path)["costs"], read_columns(str(tmp_path / "poisoned.hdf5"))["costs"]
    assert after.sum() < before.sum()
    with open(str(tmp_path / "found.json")) as file:
        assert json.load(file)["detection"]["detector"] == "ensemble"


# Numbers --------------------------------------------------------------------------------------------------------------

def made_up(cells):
    """Results as of the cells of SUITE."""
    results = {}
    for where in cells:
        if where[0] == "loop":
            result = {"seconds": {"loop": {"osrl": [0.03, 0.04, 0.09], "ours": [0.02, 0.02, 0.03]},
                                  "batch": {"osrl": [0.01] * 3, "ours": [0.001] * 3},
                                  "batch_alone": {"osrl": [0.01] * 3, "ours": [0.00025, 0.0005, 0.0004]}}}
        elif where[0] == "unlearning":
            result = {"retrain": [10.0, 20.0, 10.0], "shares": [[1.0, 1.0, 2.0], [1.5, 3.0, 3.0]], "rows": [20, 100],
                      "updates": {"retrain": 30, "safe_rule": 3}}
        elif where[0] == "script":
            factors = dict(zip(processes.WAYS, ((1, 1, 1), (1, 1.1, 1), (1, 1.05, 1.3), (1.25, 1.5, 1.4))))
            result = {"ways": {way: {"seconds": list(f), "load": list(f), "peak_bytes": [1e9 * min(f[0], 1.05)] * 3}
                               for way, f in factors.items()}}
        else:
            _, operation, rows = where
            seconds = {"poison": 1e-3 * rows, "split": 1.0, "detect": 1e-6 * rows ** 2}[operation]
            result = {"seconds": [seconds] * 3, "peak_bytes": [1e8 + 100 * rows] * 3, "file_bytes": 80 * rows}
        results[where] = dict(result, others=0.25 if where[0] == "loop" else None, machine={
            "cpu": "A CPU", "cores": 4, "usable_cores": 2, "memory_bytes": 2 ** 34, "gpu": None, "system": "Linux"})
    return results


def test_numbers_of_speed(tmp_path):
    suite = suite_of(tmp_path)
    cells = plan_of(suite)
    assert len({runner.key(cell) for cell in cells.values()}) == len(cells) == 2 + 1 + 1 + 2 * 3
    report = speed.aggregate(suite, made_up(cells))
    loop, more = report["loops"]
    assert (loop["threads"], more["threads"]) == (1, 2)
    # The median of the ratios (1.5, 2, 3), not the ratio of medians nor of means.
    assert loop["loop"]["ratio"] == {"median": 2.0, "low": 1.5, "high": 3.0, "n": 3, "values": [1.5, 2.0, 3.0]}
    assert loop["batch_size"] == 16 and loop["batch"]["ratio"]["median"] == pytest.approx(10)
    few, many = report["unlearning"]
    assert few["growth"]["values"] == [1, 1, 1] and many["growth"]["values"] == [1.5, 3, 1.5]
    assert many["ratio"]["values"] == pytest.approx([0.15, 0.15, 0.3]) and many["rows"] == 100
    sizes = {(row["operation"], row["rows"]): row for row in report["sizes"]}
    assert [sizes[operation, 2000]["per_row"] for operation in ("poison", "split", "detect")] == [1, 0.5, 2]
    assert sizes["poison", 1000]["per_row"] is None and sizes["poison", 1000]["per_million"]["median"] == 1000
    assert report["others"] == 0.25 and len(report["machines"]) == 1
    assert [(goal["bound"], goal["verdict"]) for goal in report["goals"]] == [
        (30, speed.NOISE), (1.5, speed.MET), (30, speed.NOISE), (1.5, speed.MET),  # 25 times in the median, 40 at best
        (1.1, speed.MET), (1.2, speed.MISSED), (1.1, speed.MET),
        (speed.LINEAR, speed.MET), (speed.LINEAR, speed.MET), (speed.LINEAR, speed.MISSED)]

    report.update(suite=dataclasses.asdict(suite), versions={"torch": "2"}, command=["osrl-unlearn", "/home/me/x"])
    text = speed_tables.text(report)
    assert "| coptidice, 2 threads: updates, times as fast | 2.00x [1.50, 3.00] | >= 1.50 | met |" in text
    assert "| coptidice | cpu | 2 | 16 | 1 | 25.0 | 50.0 | 2.00x [1.50, 3.00] |" in text
    assert "A CPU, 2 of 4 cores usable, 16 GiB memory, no GPU used" in text and "0.25 cores busy" in text
    assert "`osrl-unlearn x`" in text and "/home" not in text
    assert "| plugin --poison | 1.40 [1.25, 1.50] | 1.400x" in text and "| detect | 2,000 | 4.00 [4.00, 4.00] |" in text
    figure = speed_tables.draw(report)
    figure.savefig(os.environ.get("BENCH_FIGURES", str(tmp_path)) + "/speed.png", dpi=130)
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == list(processes.OPERATIONS)


def test_an_unfinished_table_and_single_parts(tmp_path):
    suite = suite_of(tmp_path)
    results = made_up(plan_of(suite))
    for part in itertools.chain([set()], ({where[0]} for where in results)):
        found = {where: result if where[0] in part else None for where, result in results.items()}
        report = dict(speed.aggregate(suite, found), suite=dataclasses.asdict(suite), versions={}, command=["x"])
        assert speed_tables.text(report).count("\n## ") == (2 if part - {"unlearning"} else len(part))
        assert (speed_tables.draw(report) is None) == (not part & {"unlearning", "size"})
    suite.select(["script", "sizes"])
    assert {where[0] for where in plan_of(suite)} == {"script", "size"}
    with pytest.raises(ConfigError, match="no part 'size': .*'sizes'"):
        suite.select(["size"])


def test_the_gpu_has_a_goal_of_its_own():
    row = {"agent": "bc", "device": "cuda", "threads": 4, "loop": {"ratio": speed.spread([4, 4.5, 6])},
           "batch_alone": {"ratio": speed.spread([31.0])}}
    found = speed.goals({"loops": [row], "script": [], "sizes": []})
    assert [(goal["bound"], goal["verdict"]) for goal in found] == [(30, speed.MET), (5, speed.NOISE)]


# Suites ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["speed", "speed_full"])
def test_the_shipped_suites_of_speed(name):
    suite = shipped(name)
    cells = plan_of(suite)
    assert {where[1] for where in cells if where[0] == "loop"} == {"bc", "bcql", "bearl", "cdt", "coptidice", "cpq"}
    assert {cell["agent"]["num_workers"] for where, cell in cells.items() if where[0] == "loop"} == {8}
    assert max(suite.sizes) == 100_000_000 and suite.script and suite.agents and len(suite.shares) >= 3


@pytest.mark.parametrize("changes, match", [
    ({"loops": {"coptidic": {}}}, "coptidice"), ({"loops": {"coptidice": {"batch": 1}}}, "unknown setting 'batch'"),
    ({"loops": {"bc": {}}, "task": "OfflineNothing-v0"}, "settings on OfflineNothing-v0 are not known"),
    ({"repetitions": 0}, "must be positive"), ({"threads": [0]}, "threads must be positive"),
    ({"shares": [1]}, "shares must be between"),
    ({"sizes": {0: 1}}, "sizes must be numbers of rows"), ({"sizes": {1: 0}}, "sizes must be numbers of rows")])
def test_broken_suites_of_speed(tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        suite_of(tmp_path, **changes)


@pytest.mark.parametrize("more, match", [
    (["--jobs", "2"], "has to run alone"), (["--seeds", "1"], "it has no seeds"),
    (["--only", "loop"], "no part 'loop'")])
def test_options_that_make_no_sense(tmp_path, capsys, more, match):
    assert cli.main(["bench", "speed", "--data", DATA, "--out", str(tmp_path)] + more) == 2
    assert match in capsys.readouterr().err


def test_a_bench_of_speed(tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "suite.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(dict(SUITE, loops={}, agents={}, script=0, sizes={2000: 1})))
    command = ["bench", "speed", "--suite", str(path), "--data", DATA, "--out", str(out)]
    monkeypatch.setattr(speed, "OPERATIONS", {"split": None})
    assert cli.main(command) == 0
    report = json.loads((out / "speed.json").read_text())
    row, = report["sizes"]
    assert report["cells"] == {"finished": 1, "all": 1} and row["rows"] == 2000 and row["file_bytes"] > 2000 * 80
    assert row["seconds"]["high"] < 5 and row["peak_bytes"]["low"] > 5e7  # without the imports
    assert (out / "speed.png").stat().st_size > 5000
    assert not [name for name in os.listdir(str(out)) if name.startswith("tmp")]
    table = (out / "speed.md").read_text()
    monkeypatch.setattr(runner, "_compute", None)
    assert cli.main(command) == 0 and (out / "speed.md").read_text() == table  # nothing is measured again
