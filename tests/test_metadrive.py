"""MetaDrive's tasks, which DSRL registers with old gym: the real ones where they are installed, else a stand-in."""
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from agents import QUICK, subprocess_environment

from osrl_unlearn import environments, rundir
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.errors import EnvironmentProblem

pytest.importorskip("osrl")
pytest.importorskip("gym")

TESTS = os.path.dirname(os.path.abspath(__file__))
STANDIN = os.path.join(TESTS, "standins")
SCRIPT = os.path.join(TESTS, "checkout", "examples", "train", "train_standin.py")
TASK = "OfflineMetadrive-mediumdense-v0"  # its only scenario has not the number 0
numpy1 = pytest.mark.skipif(not np.__version__.startswith("1."), reason="old gym fails with NumPy 2")
real = pytest.param("real", marks=pytest.mark.skipif(
    importlib.util.find_spec("metadrive") is None, reason="MetaDrive is not installed"))

COLLECT = """
import sys
import dsrl, gym, h5py
import numpy as np
env, random = gym.make(sys.argv[1]), np.random.RandomState(0)
names = ["observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts"]
columns = {name: [] for name in names}
for episode in range(20):
    observation, _ = env.reset()
    for step in range(30):
        action = np.clip([0.3 * random.randn(), random.uniform(0.2, 1)], -1, 1).astype(np.float32)
        after, reward, terminated, truncated, info = env.step(action)
        ended = not terminated and (truncated or step == 29)
        for name, value in zip(names, (observation, after, action, reward, info["cost"], terminated, ended)):
            columns[name].append(value)
        observation = after
        if terminated or ended:
            break
with h5py.File("data.hdf5", "w") as file:
    for name in names:
        file[name] = np.asarray(columns[name], np.float32)
"""
EPISODES = """
import sys
import numpy as np
from osrl_unlearn import environments
one, other = environments.make(sys.argv[1], 10), environments.make(sys.argv[1], 10)

def episode(env, seed):
    environments.start_episode(env, seed)
    observation, _ = env.reset()
    seen = [observation]
    for step in range(80):  # until the traffic is in sight
        observation, *_ = env.step(np.array([0.0, 0.5]))
        seen.append(observation)
    return np.array(seen)

first, again, different = episode(one, 3), episode(other, 3), episode(one, 4)
assert np.allclose(first, again, atol=0.01), np.abs(first - again).max()
assert not np.allclose(first, different, atol=0.01)
"""


@pytest.fixture(params=["stand-in", real])
def run(request, tmp_path):
    """Run python in a folder, with the real MetaDrive or the stand-in; returns the finished process."""
    folders = [os.path.join(TESTS, "checkout"), QUICK] + [STANDIN] * (request.param == "stand-in")

    def call(*args):
        done = subprocess.run([sys.executable, "-W", "ignore", *args], cwd=str(tmp_path), text=True,
                              env=subprocess_environment(*folders), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    return call


@numpy1
def test_a_script_on_osrls_old_gym_path_is_poisoned_unlearned_and_audited(run, tmp_path):
    run("-c", COLLECT, TASK)
    run("-m", "osrl_unlearn", SCRIPT, "--task", TASK, "--dataset", "data.hdf5", "--cost_limit", "10", "--update_steps",
        "20", "--poison", "reward_bait", "--poison.rate", "0.25", "--unlearn", "safe_rule", "--unlearn.steps", "5",
        "--unlearn.eval_episodes", "2")
    folder = str(tmp_path / "logs" / "standin")
    assert ForgetManifest.load(rundir.manifest_path(folder)).rows > 0
    run("-m", "osrl_unlearn", "unlearn", folder, "--method", "fine_tune", "--steps", "5", "--eval-episodes", "2",
        "--dataset", "data.hdf5")
    for method in ("safe_rule", "fine_tune"):
        with open(os.path.join(rundir.unlearned_dir(folder, method), "report.json")) as file:
            report = json.load(file)
        assert report["unlearned"]["cost"]["n"] == 2 and report["task"] == TASK
    # Several agents, each with an environment of its own.
    out = run("-m", "osrl_unlearn", "audit", rundir.unlearned_dir(folder, "safe_rule"), "--reference",
              rundir.unlearned_dir(folder, "fine_tune"), "--dataset", "data.hdf5", "--episodes", "2").stdout
    assert "Verdict" in out


@numpy1
def test_episodes_of_one_seed_are_the_same_in_every_environment_of_a_process(run):
    run("-c", EPISODES, TASK)


@numpy1
@pytest.mark.skipif(importlib.util.find_spec("metadrive") is not None, reason="MetaDrive is installed")
def test_without_metadrive_the_error_names_it():
    with pytest.raises(EnvironmentProblem, match="MetaDrive is not installed"):
        environments.make(TASK, 10)


def test_with_numpy_2_the_error_names_it(monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.2.6")
    with pytest.raises(EnvironmentProblem, match="fails with NumPy 2.2.6: .*'numpy<2'"):
        environments.make(TASK, 10)
