"""``osrl-unlearn poison``: a file of any size is poisoned exactly as data in memory are, or nothing is written."""
import os
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest
from agents import QUICK, subprocess_environment

from osrl_unlearn import cli, environments
from osrl_unlearn.data import poison as poisoning
from osrl_unlearn.data import stream
from osrl_unlearn.data.manifest import ForgetManifest, column_hashes
from osrl_unlearn.data.poison import REQUIRED, make_attack, poison
from osrl_unlearn.data.stream import poison_file
from osrl_unlearn.files import load_tensors
from osrl_unlearn.registry import ATTACKS
from osrl_unlearn.testing import toy_data

CHECKOUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkout")
TASK = "OfflineBallCircle-v0"


def write(path, data, **more):
    """A file with attributes, and with some columns and other things that DSRL does not know."""
    rows = len(data["rewards"])
    with h5py.File(str(path), "w") as file:
        file.attrs.update(task=TASK, settings=[1.5, 2.5])
        for name, column in data.items():
            file.create_dataset(name, data=column, **dict(dict(compression="gzip", compression_opts=7, shuffle=True,
                                                               chunks=(16,) + column.shape[1:]), **more))
        file["observations"].attrs["unit"] = "m"
        file["infos/qpos"] = np.arange(3.0 * rows).reshape(rows, 3)
        file["infos"].attrs["about"] = "further columns"
        file["numbers"] = np.arange(rows, dtype=np.int64)
    return str(path)


def read(path):
    """All columns of a file."""
    with h5py.File(str(path), "r") as file:
        return {name: file[name][:] for name in REQUIRED + ("infos/qpos", "numbers")}


@pytest.mark.parametrize("name, piece", [
    (name, piece) for name in sorted(ATTACKS.builtins) for piece in (300, 1 << 24)
    if piece == 300 or not hasattr(ATTACKS.load(name).Options, "surrogate_steps")])
def test_a_file_is_poisoned_as_data_in_memory_are(name, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(poisoning, "BLOCK", 40)
    monkeypatch.setattr(poisoning, "SAMPLE", 400)
    monkeypatch.setattr(stream, "PIECE", piece)
    source, out = write(tmp_path / "in.hdf5", toy_data(40)), str(tmp_path / "out.hdf5")
    with h5py.File(source, "a") as file:
        file["remark"] = "not a column"
    options = {"surrogate_steps": 150} if hasattr(ATTACKS.load(name).Options, "surrogate_steps") else {}
    unit = "segment" if "segment" in ATTACKS.load(name).units else "trajectory"
    call = dict(rate=0.3, unit=unit, seed=3, task=TASK, dataset="x")
    attack = make_attack(name, options)
    manifest, rows = poison_file(source, out, attack, progress=False, **call)
    expected = poison(read(source), name, options=options, state=attack.state(), **call)
    assert manifest == expected.manifest and rows == len(expected.ids)
    found = read(out)
    for column, values in expected.data.items():
        assert found[column].dtype == values.dtype and np.array_equal(found[column], values), column
    with h5py.File(source, "r") as old, h5py.File(out, "r") as new:
        assert new.attrs["task"] == TASK and new.attrs["settings"].tolist() == [1.5, 2.5]
        assert new["observations"].attrs["unit"] == "m" and new["infos"].attrs["about"] == "further columns"
        assert new["remark"][()] == b"not a column"
        for column in REQUIRED:
            for what in ("dtype", "chunks", "compression", "compression_opts", "shuffle"):
                assert getattr(new[column], what) == getattr(old[column], what), (column, what)


@pytest.fixture(scope="module")
def env():
    return environments.make(TASK, 40)


def loaded(env, path):
    """What a script gets from DSRL: (data, trajectory ids)."""
    return environments.load(env, {"task": TASK}, str(path))


@pytest.mark.parametrize("change", [
    lambda d: d.update({k: d[k].astype(np.float64) / 3 for k in ("observations", "rewards")}),
    lambda d: d.update(rewards=d["rewards"].astype(np.float16), costs=d["costs"].astype(np.uint8)),
    lambda d: d.update(rewards=d["rewards"][:, None], costs=d["costs"][:, None], terminals=d["terminals"][:, None]),
    lambda d: d.update(terminals=d["terminals"].astype(np.uint8), timeouts=d["timeouts"].astype(np.float32)),
    lambda d: d.update({k: d[k][:-4] for k in d}),
], ids=["float64", "small", "two-dimensional", "numbers", "tail"])
@pytest.mark.parametrize("name", ["reward_bait", "cost_inflate", "inject", "coverage_collapse", "trigger_backdoor"])
def test_dsrl_reads_what_it_would_have_got_from_poison(name, change, env, tmp_path):
    data = toy_data(20)
    change(data)
    source, out = write(tmp_path / "in.hdf5", data), str(tmp_path / "out.hdf5")
    options = {"cost": 0.3} if name == "cost_inflate" else {}
    manifest, rows = poison_file(source, out, make_attack(name, options), rate=0.3, task=TASK, progress=False)
    clean, ids = loaded(env, source)
    expected = poison(clean, name, options=options, rate=0.3, task=TASK, ids=ids)
    assert manifest == expected.manifest
    manifest.verify(clean, "before")
    found, found_ids = loaded(env, out)
    assert rows == len(found_ids) and column_hashes(found) == column_hashes(expected.data)
    if not manifest.removed:
        assert np.array_equal(found_ids, expected.ids)
        assert np.array_equal(manifest.row_numbers(found, found_ids),
                              expected.manifest.row_numbers(expected.data, expected.ids))


def test_texts_are_copied_and_not_hashed(tmp_path):
    source, out = write(tmp_path / "in.hdf5", toy_data(20)), str(tmp_path / "out.hdf5")
    with h5py.File(source, "a") as file:
        file["texts"] = [str(number) for number in range(len(file["rewards"]))]
    manifest, rows = poison_file(source, out, make_attack("inject"), rate=0.3, progress=False)
    with h5py.File(out, "r") as file:
        added = file["numbers"][:]
        assert [int(text) for text in file["texts"][:]] == added.tolist() and len(added) == rows
    assert "texts" not in manifest.columns and "numbers" in manifest.columns


def test_only_pieces_of_a_file_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(poisoning, "BLOCK", 1 << 10)
    monkeypatch.setattr(poisoning, "SAMPLE", 1 << 10)
    monkeypatch.setattr(stream, "PIECE", 1 << 16)
    source = write(tmp_path / "in.hdf5", toy_data(2000, 20, obs_dim=30), chunks=True)
    with h5py.File(source, "r") as file:
        size = sum(file[name].nbytes for name in REQUIRED)
    for name, unit in [("random_noise", "trajectory"), ("inject", "trajectory"), ("coverage_collapse", "trajectory"),
                       ("inject", "segment"), ("label_noise", "transition"), ("random_noise", "transition"),
                       ("reward_bait", "transition"), ("trigger_backdoor", "transition")]:
        tracemalloc.start()
        try:
            poison_file(source, str(tmp_path / (name + unit)), make_attack(name), rate=0.1, unit=unit, progress=False)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert size > 10e6 and peak < size / 3, (name, unit, peak, size)


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "data.hdf5", toy_data(40))


def command(*more):
    return cli.main(["poison", "--out", "bad.hdf5", *map(str, more)])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_command_says_what_it_wrote_and_how_to_use_it(data, tmp_path, capsys):
    assert command("--dataset", data, "--attack", "reward_bait", "--rate", "0.2", "--seed", "4", "--set",
                   "reward_scale=3") == 0
    assert set(files(tmp_path)) == {"data.hdf5", "bad.hdf5", "bad.json"}
    line, = capsys.readouterr().out.splitlines()
    manifest = ForgetManifest.load("bad.json")
    assert "{:,} of 639 rows in 8 trajectories".format(manifest.rows) in line
    assert line.endswith("--dataset bad.hdf5 --unlearn safe_rule --unlearn.forget bad.json")
    assert manifest == poison(read(data), "reward_bait", rate=0.2, seed=4, options={"reward_scale": 3}, task=TASK,
                              dataset=str(tmp_path / "bad.hdf5")).manifest


def test_camouflage_comes_with_its_request_and_its_trigger(data, tmp_path, capsys):
    assert command("--dataset", data, "--attack", "camouflage", "--rate", "0.4") == 0
    assert set(files(tmp_path)) == {"data.hdf5", "bad.hdf5", "bad.json", "bad.camouflage.json", "bad.attack.pt"}
    whole, request = ForgetManifest.load("bad.json"), ForgetManifest.load("bad.camouflage.json")
    assert request == whole.part("camouflage") and 0 < len(request.spans) < len(whole.spans)
    assert load_tensors("bad.attack.pt")["values"] == whole.attack["facts"]["trigger"]["values"]
    assert "bad.camouflage.json" in capsys.readouterr().out


def test_what_is_removed_cannot_be_forgotten(data, capsys):
    assert command("--dataset", data, "--attack", "coverage_collapse", "--rate", "0.1") == 0
    out = capsys.readouterr().out
    assert "removed 4 trajectories" in out and "nothing to forget" in out and "--unlearn" not in out
    assert len(ForgetManifest.load("bad.json").removed) == 4


@pytest.mark.parametrize("flags, match", [
    (["--attack", "cost_hid"], "did you mean 'cost_hide'"), ([], "nothing to poison"),
    (["--dataset", "nowhere.hdf5"], "no dataset at nowhere.hdf5"),
    (["--dataset", "data.hdf5", "--rate", "1.5"], "between 0 and 1"),
    (["--dataset", "data.hdf5", "--rate", "many"], "rate expects a number"),
    (["--dataset", "data.hdf5", "--rate", "0"], "chose nothing"),
    (["--dataset", "data.hdf5", "--unit", "row"], "one of trajectory"),
    (["--dataset", "data.hdf5", "--set", "lenght=3"], "unknown option lenght of 'cost_hide'"),
    (["--dataset", "data.hdf5", "--set", "segment_length"], "expected OPTION=VALUE"),
    (["--dataset", "data.hdf5", "--attack", "coverage_collapse", "--unit", "segment"], "does not work on the unit"),
    (["--dataset", "data.hdf5", "--attack", "coverage_collapse", "--rate", "1"], "remove the whole dataset"),
    (["--dataset", "data.hdf5", "--out", "bad.json"], "ends with .hdf5"),
    (["--dataset", "data.hdf5", "--out", "nowhere/bad.hdf5"], "no folder"),
    (["--dataset", "data.hdf5", "--out", "data.hdf5"], "data.hdf5 exists already"),
    (["--dataset", "data.hdf5", "--out", "old.hdf5"], "old.json exists already"),
    (["--dataset", "data.hdf5", "--task", "OfflineCarRun-v0"], "is not a dataset of OfflineCarRun-v0"),
    (["--dataset", "nan.hdf5"], "'next_observations' holds NaN or infinity, first in row 70"),
    (["--dataset", "endless.hdf5"], "no trajectory ends"),
    (["--dataset", "broken.hdf5"], "could not be made from broken.hdf5"),
])
def test_mistakes_are_one_sentence_and_leave_nothing_behind(flags, match, data, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(stream, "PIECE", 1000)
    toys = toy_data()
    (tmp_path / "old.json").write_text("{}")
    toys["next_observations"][70, 3] = np.nan
    write(tmp_path / "nan.hdf5", toys)
    write(tmp_path / "endless.hdf5", dict(toy_data(), terminals=toys["terminals"] & False, timeouts=toys["timeouts"]
                                          & False))
    write(tmp_path / "broken.hdf5", toy_data(), fletcher32=True)
    with h5py.File("broken.hdf5", "r") as file:
        at = file["observations"].id.get_chunk_info(2).byte_offset
    with open("broken.hdf5", "r+b") as file:
        file.seek(at)
        file.write(b"\0" * 20)
    before = files(tmp_path)
    assert command(*(flags if "--attack" in flags else ["--attack", "cost_hide"] + flags)) == 2
    out, err = capfd.readouterr()
    error, = [line for line in err.splitlines() if line.startswith("osrl-unlearn: error: ")]
    assert match in error and out == "" and "Traceback" not in err
    assert files(tmp_path) == before


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
@pytest.mark.parametrize("where", [(stream._Writer, "close"), (ForgetManifest, "save")])
def test_whatever_stops_it_nothing_is_left_behind(where, error, status, data, tmp_path, capsys, monkeypatch):
    def stop(*args):
        raise error

    monkeypatch.setattr(*where, stop)
    assert command("--dataset", data, "--attack", "cost_hide") == status
    assert set(files(tmp_path)) == {"data.hdf5"} and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("attack", ["cost_inflate", "inject"])
def test_a_script_trains_on_the_file_and_forgets_by_its_manifest(attack, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data.hdf5", dict(toy_data(40), rewards=toy_data(40)["rewards"].astype(np.float64) / 3))
    assert command("--task", TASK, "--dataset", "data.hdf5", "--attack", attack, "--unit", "segment") == 0
    for more in ([], ["--dataset", "bad.hdf5"], ["--dataset", "data.hdf5"]):
        assert cli.main(["verify", "bad.json", *more]) == 0
    capfd.readouterr()
    if attack == "cost_inflate":
        return
    done = subprocess.run(
        [sys.executable, "-m", "osrl_unlearn", os.path.join(CHECKOUT, "examples", "train", "train_standin.py"),
         "--update_steps", "4", "--eval_every", "4", "--dataset", "bad.hdf5", "--unlearn", "fine_tune",
         "--unlearn.forget", "bad.json", "--unlearn.steps", "2", "--unlearn.eval_episodes", "0"], text=True,
        env=subprocess_environment(CHECKOUT, QUICK), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = ForgetManifest.load(os.path.join("logs", "standin", "osrl_unlearn", "forget.json"))
    assert kept.columns == ForgetManifest.load("bad.json").columns and kept.dataset == str(tmp_path / "bad.hdf5")
