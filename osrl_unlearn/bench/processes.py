"""Time and peak memory of whole processes: a script with and without the plugin, and what is done to large files."""
import json
import os
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np

from osrl_unlearn.data.poison import REQUIRED
from osrl_unlearn.errors import RunError

# Runs what follows its first argument, a file that it writes to. A small process of its own: what Linux calls the peak
# of a process is never less than the memory of the one that started it.
STOPWATCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
status = subprocess.call(sys.argv[2:], stdout=subprocess.DEVNULL)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
with open(sys.argv[1], "w") as file:
    json.dump({"status": status, "seconds": seconds, "peak_bytes": peak}, file)
"""

# Loads a dataset and trains as OSRL's scripts do, and writes down how long loading took.
SCRIPT = """
import argparse
import gc
import json
import time

import bullet_safety_gym  # noqa
import dsrl  # noqa
import gymnasium as gym
import matplotlib.pyplot  # noqa: DSRL does this while it loads data
import torch
from dsrl.offline_env import OfflineEnvWrapper, wrap_env
from fsrl.utils import DummyLogger
from osrl.algorithms import COptiDICE, COptiDICETrainer
from osrl.common import TransitionDataset
from torch.utils.data import DataLoader

parser = argparse.ArgumentParser()
parser.add_argument("--task")
parser.add_argument("--updates", type=int)
parser.add_argument("--times")
args = parser.parse_args()
torch.set_num_threads(1)
torch.manual_seed(0)
gc.collect()  # of what the imports left: which way of starting would otherwise pay for it is a matter of chance
started = time.perf_counter()
env = gym.make(args.task)
data = env.get_dataset()
env.set_target_cost(10)
data = env.pre_process_data(data)
env = OfflineEnvWrapper(wrap_env(env=env, reward_scale=0.1))
dataset = TransitionDataset(data, reward_scale=0.1, cost_scale=1, state_init=True)
loaded = time.perf_counter() - started
loader = iter(DataLoader(dataset, batch_size=256))
proportion, obs_std, act_std = dataset.get_dataset_states()
model = COptiDICE(state_dim=env.observation_space.shape[0], action_dim=env.action_space.shape[0],
                  max_action=env.action_space.high[0], f_type="softchi", init_state_propotion=proportion,
                  observations_std=obs_std, actions_std=act_std, a_hidden_sizes=[64, 64], c_hidden_sizes=[64, 64],
                  cost_limit=10, episode_len=200)
trainer = COptiDICETrainer(model, env, logger=DummyLogger(), reward_scale=0.1)
for _ in range(args.updates):
    trainer.train_one_step(next(loader))
with open(args.times, "w") as file:
    json.dump({"load": loaded}, file)
"""
SCRIPT_UPDATES = 50
PLUGIN = ["-m", "osrl_unlearn"]
WAYS = {  # name: (arguments of python before the script, and after it)
    "python": ([], []),
    "python again": ([], []),  # what two measurements of the same differ by
    "plugin": (PLUGIN, []),
    "plugin --poison": (PLUGIN, ["--poison", "cost_hide"]),
}


def observed(command, folder, **environment):
    """Run ``command`` in ``folder``: {"seconds", "peak_bytes"}. Raises RunError if its exit status is not 0."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    result = os.path.join(folder, "stopwatch.json")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", STOPWATCH, result] + command, cwd=folder,
                          stderr=subprocess.PIPE, universal_newlines=True,
                          env=dict(os.environ, PYTHONPATH=path, MPLBACKEND="agg", **environment))
    if done.returncode:
        raise RunError("the stopwatch failed: {}".format(done.stderr.strip()))
    with open(result, encoding="utf-8") as file:
        found = json.load(file)
    status = found.pop("status")
    if status:
        print(done.stderr, file=sys.stderr)
        raise RunError("a process that was to be timed ended with status {}{}: {}".format(
            status, " (killed, perhaps for want of memory)" if status == -9 else "",
            (done.stderr.strip().splitlines() or ["it said nothing"])[-1]))
    return found


def script(cell, out):
    """Time and memory of a script that loads cell["rows"] rows and trains on them, started in each of WAYS in turn.

    Returns:
        {"ways": {name: {"seconds": of the process, "load": seconds until OSRL's dataset is there, "peak_bytes"}}},
        lists [repetitions].
    """
    from osrl_unlearn import environments
    found = {name: {"seconds": [], "load": [], "peak_bytes": []} for name in WAYS}
    with tempfile.TemporaryDirectory(dir=os.path.abspath(out)) as folder:
        url = environments.make(cell["task"], 0).unwrapped.dataset_url
        repeat_rows(cell["path"], os.path.join(folder, os.path.basename(url)), cell["rows"])
        program, times = os.path.join(folder, "script.py"), os.path.join(folder, "times.json")
        with open(program, "w", encoding="utf-8") as file:
            file.write(SCRIPT)
        for _ in range(cell["repetitions"]):
            for name, (before, after) in WAYS.items():
                command = [sys.executable] + before + [program, "--task", cell["task"], "--updates",
                                                       str(cell["updates"]), "--times", times] + after
                process = observed(command, folder, DSRL_DATASET_DIR=folder)
                with open(times, encoding="utf-8") as file:
                    process.update(json.load(file))
                for what, value in process.items():
                    found[name][what].append(value)
    return {"ways": found}


# Large files ----------------------------------------------------------------------------------------------------------

def repeat_rows(source, path, rows):
    """Write a DSRL file of ``rows`` rows: the trajectories of ``source`` again and again, the last one cut to fit.

    Columns lie in one piece and uncompressed, so that they can be mapped into memory.
    """
    with h5py.File(source, "r") as old, h5py.File(path, "w") as new:
        whole = int(np.flatnonzero(old["terminals"][:] | old["timeouts"][:])[-1]) + 1
        for name in REQUIRED:
            values = old[name][:whole]
            column = new.create_dataset(name, (rows,) + values.shape[1:], values.dtype)
            for first in range(0, rows, whole):
                column[first:first + whole] = values[:rows - first]
        new["timeouts"][-1] = True


def size(cell, out):
    """Time and memory of cell["operation"], one of OPERATIONS, on a file of cell["rows"] rows.

    Returns:
        {"seconds": of the operation, "peak_bytes": of its process}, lists [repetitions], and "file_bytes".
    """
    found = {"seconds": [], "peak_bytes": []}
    with tempfile.TemporaryDirectory(dir=os.path.abspath(out)) as folder:
        path, times = os.path.join(folder, "data.hdf5"), os.path.join(folder, "times.json")
        repeat_rows(cell["path"], path, cell["rows"])
        program = "import sys; from osrl_unlearn.bench import processes; processes.operate(*sys.argv[1:])"
        for _ in range(cell["repetitions"]):
            process = observed([sys.executable, "-c", program, cell["operation"], path, times], folder)
            with open(times, encoding="utf-8") as file:
                process.update(json.load(file))  # importing torch is no part of it
            for what, value in process.items():
                found[what].append(value)
        return dict(found, file_bytes=os.path.getsize(path))


def operate(operation, path, times):
    """Do one of OPERATIONS to the file at ``path``, and write the seconds that it took to ``times``."""
    import torch
    torch.set_num_threads(1)
    work = OPERATIONS[operation]()
    started = time.perf_counter()
    work(path)
    with open(times, "w", encoding="utf-8") as file:
        json.dump({"seconds": time.perf_counter() - started}, file)


def _poison():
    from osrl_unlearn.data.poison import make_attack
    from osrl_unlearn.data.stream import poison_file

    def work(path):
        out = os.path.join(os.path.dirname(path), "poisoned")
        manifest, _ = poison_file(path, out + ".hdf5", make_attack("cost_hide"), rate=0.1, progress=False)
        manifest.save(out + ".json")
    return work


def _split():
    from osrl_unlearn.data.dataset import read_columns
    from osrl_unlearn.data.manifest import ForgetManifest
    from osrl_unlearn.data.trajectories import TrajectoryIndex
    from osrl_unlearn.data.views import TransitionStore, forget_and_retain

    def work(path):
        data = read_columns(path)
        ids = TrajectoryIndex(data).ids
        manifest = ForgetManifest.of_trajectories(data, ids[::10])
        for view in forget_and_retain(TransitionStore(data), manifest.row_numbers(data)):
            view.batch(512)
    return work


def _detect():
    from osrl_unlearn.data.dataset import check_arrays, read_columns
    from osrl_unlearn.detection import detect

    def work(path):
        data = read_columns(path)
        check_arrays(data, path)
        detect(data, progress=False).save(os.path.join(os.path.dirname(path), "found.json"))
    return work


OPERATIONS = {"poison": _poison, "split": _split, "detect": _detect}  # name: function that imports what it needs
