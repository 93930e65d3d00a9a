"""``osrl-unlearn collect`` and the dataset that ships with the package."""
import argparse
import os
import signal

import h5py
import numpy as np
import pytest

from osrl_unlearn import collect as module
from osrl_unlearn import environments
from osrl_unlearn.errors import ConfigError, EnvironmentProblem
from osrl_unlearn.resources import folder

pytest.importorskip("fsrl")
pytest.importorskip("dsrl")

TASK = "OfflineBallCircle-v0"
COLUMNS = {"observations": (8,), "next_observations": (8,), "actions": (2,), "rewards": (), "costs": (),
           "terminals": (), "timeouts": ()}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EPISODES_PER_UPDATE", 2)
        yield


# Trajectories with more than 1.1 times the largest limit are dropped; an untrained learner has many above DSRL's 80.
def small(out, **options):
    options = dict({"trajectories": 3, "steps": 1000, "cost_limits": (5, 200), "progress": False}, **options)
    return module.collect(TASK, out, **options)


@pytest.fixture(scope="module")
def made(quick, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("collect") / "made.hdf5")
    return path, small(path, seed=1)


def columns(path):
    with h5py.File(path, "r") as file:
        return {name: file[name][:] for name in file}


def run(*words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.main(parser.parse_args([str(word) for word in words]))


def by_dsrl(path):
    with environments.stdout_to_stderr():
        import dsrl  # noqa: F401
        import gymnasium as gym
        env = gym.make(TASK)
        data = env.unwrapped.get_dataset(h5path=str(path))
        env.close()
    return data


def test_dsrl_loads_what_was_collected(made):
    path, summary = made
    data = by_dsrl(path)
    assert {name: data[name].shape for name in data} == {name: (600,) + rest for name, rest in COLUMNS.items()}
    assert summary["trajectories"] == 3 and summary["transitions"] == 600
    assert np.flatnonzero(data["timeouts"] | data["terminals"]).tolist() == [199, 399, 599]
    assert summary["cost_max"] == data["costs"].reshape(3, 200).sum(1).max() <= 220
    assert np.abs(data["actions"]).max() <= 1


def test_types_and_attributes(made):
    found = columns(made[0])
    assert {name: found[name].dtype.name for name in found} == {
        name: "bool" if name in ("terminals", "timeouts") else "float32" for name in COLUMNS}
    with h5py.File(made[0], "r") as file:
        about = dict(file.attrs)
        assert file["observations"].compression == "gzip" and file["observations"].shuffle
    assert (about["task"], about["algorithm"], about["seed"], about["steps"]) == (TASK, "trpol", 1, 1000)
    assert list(about["cost_limits"]) == [5, 200]
    assert "fast-safe-rl 0.1.0" in about["versions"]
    # The recorded command is one that the parser accepts, and it means the same.
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    again = parser.parse_args(about["command"].split()[2:])
    assert (again.task, again.steps, again.seed, again.trajectories) == (TASK, 1000, 1, 3)
    assert again.cost_limits == list(about["cost_limits"])


def test_episodes_are_joined_inside_and_separate_at_their_ends(made):
    data = columns(made[0])
    now, following = (data[name].reshape(3, 200, 8) for name in ("observations", "next_observations"))
    assert np.array_equal(now[:, 1:], following[:, :-1])
    # FSRL's collector would put the last observation of one episode at the start of the next.
    assert np.abs(now[:, 0] - following[:, 0]).max() < 0.5


def test_the_same_seed_gives_the_same_arrays(made, tmp_path):
    small(tmp_path / "again.hdf5", seed=1)
    small(tmp_path / "other.hdf5", seed=2, algorithm="ppol")
    first, again, other = (columns(path) for path in (made[0], tmp_path / "again.hdf5", tmp_path / "other.hdf5"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["actions"], other["actions"])


def test_the_command_prints_one_line(tmp_path, capfd):
    assert run("--task", TASK, "--out", tmp_path / "new" / "a.hdf5", "--trajectories", 2, "--steps", 400,
               "--cost-limits", 5, 200) == 0
    printed = capfd.readouterr()
    assert len(printed.out.splitlines()) == 1 and "2 trajectories, 400 transitions" in printed.out
    assert "400/400" in printed.err


def test_ctrl_c_saves_a_partial_file_and_leaves_out_alone(tmp_path, monkeypatch, capfd):
    from fsrl.data import BasicCollector
    collect, calls = BasicCollector.collect, []

    def interrupted(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return collect(self, *args, **options)

    monkeypatch.setattr(BasicCollector, "collect", interrupted)
    out = tmp_path / "a.hdf5"
    assert run("--task", TASK, "--out", out, "--steps", 2000, "--cost-limits", 200) == 130
    assert os.listdir(str(tmp_path)) == ["a.partial.hdf5"]
    with h5py.File(str(tmp_path / "a.partial.hdf5"), "r") as file:
        assert file.attrs["partial"] and file.attrs["trajectories"] == 2
    assert len(by_dsrl(tmp_path / "a.partial.hdf5")["rewards"]) == 400
    printed = capfd.readouterr()
    assert "a.partial.hdf5" in printed.err and "starts anew" in printed.err and "partial" not in printed.out


def test_ctrl_c_before_the_first_trajectory_writes_nothing(tmp_path, monkeypatch, capfd):
    from fsrl.data import BasicCollector
    monkeypatch.setattr(BasicCollector, "collect", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert run("--task", TASK, "--out", tmp_path / "a.hdf5", "--steps", 2000) == 130
    assert os.listdir(str(tmp_path)) == []
    assert "nothing is written" in capfd.readouterr().err


def test_an_unknown_task_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="'OfflineBalCircle-v0'.*OfflineBallCircle-v0"):
        module.collect("OfflineBalCircle-v0", tmp_path / "a.hdf5")
    # Only the Gymnasium form of a Safety-Gymnasium task can be used.
    with pytest.raises(ConfigError, match="OfflinePointGoal1Gymnasium-v0"):
        module.collect("OfflinePointGoal1-v0", tmp_path / "a.hdf5")


def test_metadrive_is_refused_by_name(tmp_path):
    with pytest.raises(EnvironmentProblem, match="MetaDrive"):
        module.collect("OfflineMetadrive-easysparse-v0", tmp_path / "a.hdf5")


def test_an_environment_that_differs_from_dsrls_is_refused(tmp_path, monkeypatch):
    from dsrl import infos
    monkeypatch.setitem(infos.DEFAULT_MAX_EPISODE_STEPS, "BallCircle", 250)
    with pytest.raises(EnvironmentProblem, match="episode length is 250, but that of SafetyBallCircle-v0 is 200"):
        small(tmp_path / "a.hdf5")


@pytest.mark.parametrize("options, word", [
    ({"trajectories": 0}, "--trajectories"), ({"steps": -1}, "--steps"), ({"cost_limits": []}, "--cost-limits"),
    ({"cost_limits": [float("nan")]}, "--cost-limits"), ({"algorithm": "sac"}, "ppol or trpol"),
    ({"seed": -1}, "the seed must be")])
def test_bad_options(tmp_path, options, word):
    with pytest.raises(ConfigError, match=word):
        small(tmp_path / "a.hdf5", **options)


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        small(tmp_path / "file" / "a.hdf5")
    for out in (tmp_path, ""):  # "" is what an unset variable of a shell gives
        with pytest.raises(ConfigError, match="--out '{}': expected the name of a file".format(out)):
            small(out)
    with pytest.raises(ConfigError, match="file exists already"):
        small(tmp_path / "file")


def test_the_filter_bears_trajectories_of_equal_cost():
    buffer = module._trajectory_buffer(4, 10)
    assert len(set(buffer.filter_points([np.array([float(i), 0.0]) for i in range(9)], 4))) == 4
    assert len(set(buffer.filter_points([np.zeros(2)] * 9, 4))) == 4


def test_the_shipped_dataset():
    path = os.path.join(folder("datasets"), "BallCircle.hdf5")
    assert os.path.getsize(path) <= 5e6
    data = by_dsrl(path)
    with h5py.File(path, "r") as file:
        about = dict(file.attrs)
    count = about["trajectories"]
    assert about["cost_limits"][0] == 4 and about["cost_limits"][-1] == 80
    assert {name: data[name].shape for name in data} == {
        name: (200 * count,) + rest for name, rest in COLUMNS.items()}
    assert about["task"] == TASK and about["command"].startswith("osrl-unlearn collect --task " + TASK)
    assert data["timeouts"].sum() == count >= 400 and data["timeouts"].reshape(count, 200)[:, -1].all()
    assert all(np.isfinite(data[name]).all() for name in data)
    returns, costs = (data[name].reshape(count, 200).sum(1) for name in ("rewards", "costs"))
    assert np.corrcoef(returns, costs)[0, 1] > 0.5
    assert 0.15 < (costs <= 10).mean() < 0.45 < (costs <= 40).mean() < 0.75
    assert returns[costs <= 40].max() > 700
