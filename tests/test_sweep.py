"""Sweeps: the grid, its table, and that they survive whatever ends a process: kills, preemption, failures."""
import contextlib
import functools
import getpass
import glob
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch
import yaml
from agents import QUICK, make_trainer, subprocess_environment
from cells import AGENT, SUITE

from osrl_unlearn import cli, resources, rundir, training
from osrl_unlearn.adapters import adapt
from osrl_unlearn.bench import cluster, runner, scripts, sweep
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.commands import bench
from osrl_unlearn.engine import train
from osrl_unlearn.errors import ConfigError, EnvironmentProblem, RunError
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.registry import ADAPTERS
from osrl_unlearn.testing import toy_data

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(HERE, "checkout", "examples", "train", "train_standin.py")
FUNCTION = "cells:square"  # tests/cells.py
TASK = "OfflineBallCircle-v0"
BCQL = {"name": "bcql", "cost_limit": 40, "episode_len": 200, "reward_scale": 0.1, "cost_scale": 1,
        "a_hidden_sizes": [8], "c_hidden_sizes": [8], "vae_hidden_sizes": 8, "sample_action_num": 2,
        "PID": [0.1, 0.003, 0.001], "gamma": 0.99, "tau": 0.005, "lmbda": 0.75, "beta": 0.5, "phi": 0.05, "num_q": 1,
        "num_qc": 1, "actor_lr": 1e-3, "critic_lr": 1e-3, "vae_lr": 1e-3}
SWEEP = {"agents": {agent["name"]: {"updates": 30, "batch_size": 16, "agent": agent} for agent in (AGENT, BCQL)},
         "tasks": [TASK], "attacks": ["reward_bait", "cost_hide"], "rates": [0.2],
         "methods": ["gradient_ascent", "fine_tune"], "seeds": [0, 1], "budget": 0.2,
         "evaluation": {"last": 1, "every": 1, "episodes": 1}}
SMALL = dict(SWEEP, agents={"coptidice": SWEEP["agents"]["coptidice"]}, attacks=["reward_bait"], methods=["fine_tune"],
             seeds=[0])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the first 40 trajectories of the shipped dataset."""
    folder = tmp_path_factory.mktemp("data")
    with h5py.File(os.path.join(resources.folder("datasets"), "BallCircle.hdf5"), "r") as whole, \
            h5py.File(str(folder / "BallCircle.hdf5"), "w") as some:
        for name in whole:
            some[name] = whole[name][:40 * 200]
    return folder


def written(folder, values):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


def command(path, data, out, *more):
    return [sys.executable, "-m", "osrl_unlearn", "sweep", path, "--data", str(data), "--out", str(out), *more]


def start(arguments, **more):
    environment = subprocess_environment(HERE, QUICK, os.environ.get("PYTHONPATH", ""), **more)
    return subprocess.Popen(arguments, env=environment, start_new_session=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, universal_newlines=True)


def run(arguments, status=0, **more):
    process = start(arguments, **more)
    try:
        text = process.communicate(timeout=900)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status, text[-3000:]
    return text


def wait_for(condition, seconds=240, every=0.05):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain for {} seconds".format(seconds)
        time.sleep(every)


def results(out):
    """{file: when it was written} of the cells that are finished."""
    return {path: os.stat(path).st_mtime_ns for path in glob.glob(str(out / "results" / "*.json"))}


# The grid and its table -----------------------------------------------------------------------------------------------

def here(path, data, out, *more):
    """The same in this process; on a terminal it is called with --cluster debug."""
    return cli.main(command(path, data, out, "--cluster", "debug", *more)[3:])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """(SWEEP.yaml, output folder) of two agents x two attacks x two methods x two seeds, not disturbed."""
    pytest.importorskip("rliable")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("sweep")
    path = written(folder, SWEEP)
    assert here(path, data, folder / "out") == 0
    return path, folder / "out"


def test_a_sweep(finished):
    report = json.loads((finished[1] / "sweep.json").read_text())
    assert report["cells"] == {"finished": 24, "all": 24}
    assert [(row["method"], row["tasks"]) for row in report["overall"]] == [
        (sweep.NOTHING, 4), ("gradient_ascent", 4), ("fine_tune", 4)]
    assert {(row["setting"], row["attack"], row["method"]) for row in report["rows"]} == {
        (agent + "/BallCircle", attack, method) for agent in SWEEP["agents"] for attack in SWEEP["attacks"]
        for method in [sweep.NOTHING] + SWEEP["methods"]}
    lines = [json.loads(line) for line in (finished[1] / "sweep.jsonl").read_text().splitlines()]
    costs = [sum(line["result"]["evaluations"][0]["cost"]) / 40 for line in lines if line["cell"]["method"] is None]
    iqm = report["overall"][0]["normalized_cost"]  # of 8 runs: the mean of the 4 in the middle
    assert len(costs) == 8 and iqm["mean"] == pytest.approx(np.mean(sorted(costs)[2:6]))
    assert (iqm["n"], iqm["tasks"]) == (2, 4)
    assert len(list((finished[1] / "agents").glob("*/config.yaml"))) == 8
    text = (finished[1] / "sweep.md").read_text()
    assert "| reward_bait | 0.2 | gradient_ascent | " in text and "## bcql/BallCircle" in text
    assert (finished[1] / "sweep.png").stat().st_size > 5000


def test_a_sweep_that_is_killed_at_a_random_moment_resumes_to_the_same_table(finished, data, tmp_path):
    path, whole = finished
    out, seed = tmp_path / "out", random.randrange(10 ** 6)
    moment = random.Random(seed)
    process = start(command(path, data, out, "--jobs", "2"))
    count = moment.randrange(20)
    try:
        wait_for(lambda: len(results(out)) >= count and (out / "results").is_dir())
        time.sleep(moment.random())
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the parent and its workers
        process.communicate()
    before = results(out)
    assert not (out / "sweep.md").exists() and count <= len(before) < 24, seed
    assert here(path, data, out) == 0
    assert before.items() <= results(out).items(), seed  # nothing was computed twice
    for name in ("sweep.md", "sweep.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), seed


def test_a_finished_sweep_computes_nothing_unless_something_changes(finished, data, monkeypatch, capsys):
    planned = []
    monkeypatch.setattr(runner, "_compute", lambda todo, *more: planned.extend(todo) or [])
    path, out = finished
    assert cli.main(command(path, data, out)[3:]) == 0 and planned == []
    text = (out / "sweep.md").read_text()
    assert cli.main(command(path, data, out, "--table")[3:]) == 0 and text in capsys.readouterr().out
    values = yaml.safe_load(open(path))
    suite = suites.read(sweep.expand(values), cls=sweep.SweepSuite)
    cells = sweep.plan(suite, {TASK: "elsewhere"}, {TASK: "other bytes"})
    assert not any(runner.finished(cell, str(out)) for cell in cells.values())  # other data, other cells
    changed = dict(values, methods={"gradient_ascent": {"options": {"clip": 0.5}}, "fine_tune": {}})
    cli.main(command(written(out.parent, changed), data, out)[3:])
    assert {cell["method"]["name"] for cell in planned} == {"gradient_ascent"} and len(planned) == 8
    written(out.parent, SWEEP)


def test_one_seed_has_no_interval_and_no_figure():
    suite = suites.read(sweep.expand(SMALL), cls=sweep.SweepSuite)
    cells = sweep.plan(suite, {TASK: "file"}, {TASK: "hash"})
    result = {"evaluations": [{"cost": [10, 30], "reward": [1, 2]}], "triggered": None, "accepted": True}
    report = dict(sweep.aggregate(suite, dict.fromkeys(cells, result)), suite={"seeds": [0]})
    assert [row["normalized_cost"]["mean"] for row in report["rows"]] == [0.5, 0.5] and sweep.draw(report) is None
    assert "| doing nothing | 1 | - | - |" in sweep.text(report)


def test_the_agents_of_the_benches():
    values = dict(SWEEP, agents=["coptidice", "bcql"], tasks=[TASK, "OfflineCarCircle-v0"],
                  attacks={"cost_hide": None, "both": {"name": "reward_bait", "rates": [0.1]}}, rates=[0.2, 0.3])
    suite = suites.read(sweep.expand(values), cls=sweep.SweepSuite)
    assert list(suite.settings) == ["coptidice/BallCircle", "coptidice/CarCircle", "bcql/BallCircle", "bcql/CarCircle"]
    assert suite.settings["bcql/CarCircle"].task == "OfflineCarCircle-v0" and suite.settings[
        "coptidice/CarCircle"].agent["cost_limit"] == 60
    assert {name: attack.rates for name, attack in suite.attacks.items()} == {"cost_hide": [0.2, 0.3], "both": [0.1]}
    cells = sweep.plan(suite, dict.fromkeys(values["tasks"], "file"), dict.fromkeys(values["tasks"], "hash"))
    assert len({runner.key(cell) for cell in cells.values()}) == len(cells) == 4 * 3 * 3 * 2


@pytest.mark.parametrize("change, match", [
    ({"rates": []}, "rates is missing: a sweep needs agents, tasks"), ({"agents": ["td3"]}, "setting 'td3/BallCircle'"),
    ({"methods": ["safe_rul"]}, "unknown method 'safe_rul'"), ({"attacks": "cost_hide"}, "attacks: expected a list"),
    ({"tasks": TASK}, "tasks: expected a list, got .Offline"), ({"agents": [["a"]]}, "expected a list of names"),
    ({"script": 5}, "script: expected a path, got 5"), ({"script": "no.py"}, "no script at .*no.py"),
    ({"seed": 1}, "unknown option seed"),
    ({"methods": {"safe_rule": {"options": {"sigm": 1}}}}, "sigm")])
def test_broken_sweeps(tmp_path, data, monkeypatch, capsys, change, match):
    monkeypatch.setattr(intervals, "check_rliable", lambda: None)
    values = dict(SWEEP, **change)
    if "script" in change:
        del values["evaluation"]
        values["agents"] = ["a"]
    assert cli.main(command(written(tmp_path, values), data, tmp_path / "out")[3:]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(match, error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more, match", [
    (["--jobs", "0"], "--jobs must be"), (["--set", "timeout_min=3"], "--set needs --cluster"),
    (["--repeat", "nothing"], "give SWEEP.yaml, or --repeat"), (["--cluster", "debug", "--set", "x"], "--set x: exp")])
def test_broken_commands(tmp_path, data, capsys, more, match):
    assert cli.main(command(written(tmp_path, SMALL), data, tmp_path / "out", *more)[3:]) == 2
    assert re.search(match, capsys.readouterr().err)


# Failures -------------------------------------------------------------------------------------------------------------

def test_a_failure_is_listed_with_the_command_that_repeats_it(tmp_path, capfd):
    out, needed = str(tmp_path / "my out"), tmp_path / "needed"
    os.makedirs(out)
    cells = [{"x": 1, "needs": str(needed), "label": "one"}, {"x": 2}]
    assert [result is None for result in runner.run_cells(cells, FUNCTION, out)] == [True, False]
    error = capfd.readouterr().err.splitlines()
    assert "  one: no file at {}".format(needed) in error
    line, = [line.strip() for line in error if "--repeat" in line]
    name, *again = shlex.split(line)
    assert name == "osrl-unlearn" and cli.main(again) == 1 and "no file at" in capfd.readouterr().err
    needed.write_text("")
    assert "done" in run([sys.executable, "-m", "osrl_unlearn"] + again)
    assert runner.finished(cells[0], out)["square"] == 1 and os.listdir(os.path.join(out, "failed")) == []
    assert cli.main(again) == 2 and "expected OUT/failed/KEY.json" in capfd.readouterr().err


def test_a_cell_that_another_process_has_finished_is_not_computed_again(tmp_path):
    cell = {"x": 3}
    assert runner.work(FUNCTION, cell, str(tmp_path)) is None and runner.work(FUNCTION, cell, str(tmp_path)) is None
    assert (tmp_path / "calls").read_text() == "3\n"


# Training that is killed ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("agent", ["bcql", "cdt", "coptidice"])
def test_training_goes_on_from_any_step(agent):
    states, data = {}, toy_data()
    torch.manual_seed(0)
    first, second = adapt(make_trainer(agent)), adapt(make_trainer(agent))

    def keep(done, state):
        if done == 4:
            states.update(state())

    train(first, data, steps=9, batch_size=8, progress=False, on_step=keep)
    train(second, data, steps=9, batch_size=8, progress=False, resume=states)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_an_agent_of_a_bench_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    from osrl_unlearn import environments
    config = dict(AGENT, task=TASK, seed=0, update_steps=12, batch_size=16)
    cls, steps = ADAPTERS.load(config.pop("name")), []
    env, toy = environments.make(TASK, 40, 0.1), toy_data()
    monkeypatch.setattr(training, "SAVE_EVERY", 0)
    whole, _ = training.trained(str(tmp_path / "whole"), cls, env, config, toy, progress=False)
    update = cls.update

    def dying(adapter, batch, *more):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return update(adapter, batch, *more)

    monkeypatch.setattr(cls, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        training.trained(str(tmp_path / "killed"), cls, env, config, toy, progress=False)
    assert not os.path.exists(rundir.state_path(str(tmp_path / "killed")))
    again, _ = training.trained(str(tmp_path / "killed"), cls, env, config, toy, progress=False)
    assert len(steps) == 8 + 5 and not (tmp_path / "killed" / "osrl_unlearn" / "training.pt").exists()
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))


# Scripts --------------------------------------------------------------------------------------------------------------

def test_a_sweep_of_a_script(data, tmp_path):
    pytest.importorskip("rliable")
    values = {"script": SCRIPT.replace("standin", "{agent}"), "agents": {"standin": {"agent": "coptidice"}},
              "arguments": {"update_steps": 20, "cost_limit": 35}, "tasks": [TASK], "attacks": ["trigger_backdoor"],
              "rates": [0.2], "methods": ["fine_tune"], "seeds": [3], "budget": 0.2, "episodes": 2}
    path, out = written(tmp_path, values), tmp_path / "out"
    run(command(path, data, out))
    report = json.loads((out / "sweep.json").read_text())
    assert [(row["method"], row["cost_limit"], row["triggered"]) for row in report["rows"]] == [
        (sweep.NOTHING, 35, True), ("fine_tune", 35, True)]
    folder, = glob.glob(str(out / "runs" / "*" / "logs" / "standin"))
    written_report = json.load(open(os.path.join(folder, "unlearned", "fine_tune", "report.json")))
    assert report["rows"][1]["cost"]["mean"] == np.mean(
        written_report["more_agents"]["unlearned, with the trigger"]["episodes"]["cost"])
    assert report["rows"][0]["cost"]["mean"] == np.mean(
        written_report["more_agents"]["poisoned, with the trigger"]["episodes"]["cost"])
    assert written_report["updates"]["unlearn"] == 4 and written_report["attack"]["seed"] == 3
    assert rundir.read_config(folder)["seed"] == 3 and rundir.read_config(folder)["update_steps"] == 20


def test_a_script_that_fails_is_shown_with_its_command(tmp_path):
    script, folder = tmp_path / "script.py", tmp_path / "a folder"
    script.write_text("import sys; print('last words'); sys.exit(3)")
    folder.mkdir()
    with pytest.raises(RunError) as error:
        scripts.call([str(script), "--x=a b"], str(folder))
    text = "status 3 of: cd '{}' && {} -m osrl_unlearn {} '--x=a b': last words".format(folder, sys.executable, script)
    assert text in str(error.value) and (folder / "log.txt").read_text() == "last words\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_script_ends_with_the_process_that_runs_it_and_only_with_it(tmp_path):
    (tmp_path / "script.py").write_text("import os, time\nopen('pid.part', 'w').write(str(os.getpid()))\n"
                                        "os.rename('pid.part', 'pid')\ntime.sleep(120)")
    worker = os.fork()
    if worker == 0:
        try:
            scripts.call(["script.py"], str(tmp_path))
        finally:
            os._exit(0)
    try:
        wait_for((tmp_path / "pid").exists)
        script = int((tmp_path / "pid").read_text())
        for number in (signal.SIGTERM, signal.SIGUSR2):  # SLURM signals every process of a job
            os.kill(script, number)
        time.sleep(0.3)
        os.kill(script, 0)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)

    def gone():
        with open("/proc/{}/stat".format(script)) as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"

    with contextlib.suppress(FileNotFoundError):
        wait_for(gone, 20)


# Benches --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", sorted(bench.BENCHES))
def test_every_bench_runs_through_submitit(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit")
    for task in ("BallCircle", "CarCircle"):
        (tmp_path / (task + ".hdf5")).write_text(task)
    given = []
    monkeypatch.setattr(intervals, "check_rliable", lambda: None)
    monkeypatch.setattr(suites, "check_agents", lambda suite: None)
    monkeypatch.setattr(cluster, "compute", lambda todo, total, function, out, jobs, executor: given.append(
        (len(todo), function, jobs, executor.cluster)) or [])
    cli.main(command(written(tmp_path, {"bench": name}), tmp_path, tmp_path / "out", "--cluster", "debug")[3:])
    cli.main(["bench", name, "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--cluster", "debug"])
    assert given[0] == given[1] and given[0][0] > 10 and given[0][1].startswith("osrl_unlearn.bench.")
    assert capsys.readouterr().err.count("nothing in") == 2  # no cell was computed


def test_a_sweep_may_hold_the_suite_of_a_bench(data, tmp_path, capsys):
    pytest.importorskip("submitit")
    suite = dict(SUITE, attacks={"cost_hide": {"rates": [0.2]}})
    path = written(tmp_path, dict(suite, bench="attacks"))
    assert cli.main(command(path, data, tmp_path / "out", "--cluster", "debug")[3:]) == 0
    assert "| cost_hide | 0.2 |" in (tmp_path / "out" / "attacks.md").read_text()
    assert cli.main(command(written(tmp_path, {"bench": "attack"}), data, tmp_path)[3:]) == 2
    assert cli.main(command(written(tmp_path, {"bench": "attacks", "suite": "small", "seeds": [1]}), data,
                            tmp_path)[3:]) == 2
    error = capsys.readouterr().err
    assert "unknown bench 'attack'" in error and "not both" in error


# submitit -------------------------------------------------------------------------------------------------------------

def computing(name, out, parameters=()):
    return functools.partial(cluster.compute, executor=cluster.executor(name, dict(parameters), str(out)))


@pytest.fixture
def importable(monkeypatch):
    """Jobs import the function of tests/cells.py."""
    pytest.importorskip("submitit")
    environment = subprocess_environment(HERE, os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])


def test_without_submitit(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(EnvironmentProblem, match=r"needs submitit.*install osrl-unlearn\[sweep\]"):
        cluster.executor("local", {}, str(tmp_path))


@pytest.mark.parametrize("name, parameters, match", [
    ("debug", {"timeout": 3}, "--cluster debug: .*timeout"), ("local", {"timeout_min": "long"}, "timeout_min"),
    ("local", {"slurm_x": 1}, "slurm_x")])
def test_parameters_that_submitit_does_not_know(tmp_path, name, parameters, match):
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match=match):
        cluster.executor(name, parameters, str(tmp_path / "out"))


def test_in_this_process(tmp_path, importable):
    found = runner.run_cells([{"x": 1}, {"x": 2, "error": "ours"}, {"x": 3}], FUNCTION, str(tmp_path), 2,
                             computing("debug", tmp_path))
    assert [result and result["square"] for result in found] == [1, None, 9]


def test_in_local_processes(tmp_path, importable, capfd):
    cells = [{"x": 1}, {"x": 2, "error": "other", "label": "two"}, {"x": 3, "die": True, "label": "three"}]
    found = runner.run_cells(cells, FUNCTION, str(tmp_path), 3, computing("local", tmp_path))
    assert [result and result["square"] for result in found] == [1, None, None] and found[0]["threads"] == "1"
    error = capfd.readouterr().err
    assert "  two: ValueError: because of 2" in error and "  three: the job ended without a result" in error
    assert error.count("--repeat") == 2


def test_a_preempted_local_job_is_requeued(tmp_path, importable):
    job = cluster.executor("local", {}, str(tmp_path)).submit(cluster.Job(FUNCTION, {"x": 3, "sleep": 2},
                                                                         str(tmp_path)))
    wait_for((tmp_path / "calls").exists)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR2)  # what SLURM sends to a job that is preempted
    assert job.result() is None and runner.finished({"x": 3, "sleep": 2}, str(tmp_path))["square"] == 9
    assert (tmp_path / "calls").read_text() == "3\n3\n" and "Requeued job" in job.stderr() + job.stdout()


# A SLURM of our own ---------------------------------------------------------------------------------------------------

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES State=UP
"""


@contextlib.contextmanager
def slurm_cluster(folder):
    """The environment of a SLURM cluster of one node whose daemons run as long as the block; skips without them."""
    daemons = {name: shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
               for name in ("munged", "slurmctld", "slurmd")}
    missing = [name for name in list(daemons) if daemons[name] is None] + [
        name for name in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(name) is None]
    if missing:
        pytest.skip("SLURM is not installed ({} not found): apt-get install slurmctld slurmd munge".format(
            ", ".join(missing)))
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(2):
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(SLURM_CONF.format(host=host, ports=ports, folder=folder,
                                                         user=getpass.getuser()))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = dict(os.environ, SLURM_CONF=str(folder / "slurm.conf"))
    munge = ["--{}={}".format(option, folder / name) for option, name in (
        ("key-file", "munge.key"), ("socket", "munge.socket"), ("pid-file", "munged.pid"), ("log-file", "munged.log"),
        ("seed-file", "munged.seed"))]
    processes = []
    try:
        for name, arguments in (("munged", ["--foreground", "--force"] + munge), ("slurmctld", ["-D"]),
                                ("slurmd", ["-D", "-N", host])):
            with open(str(folder / (name + ".out")), "wb") as file:
                processes.append(subprocess.Popen([daemons[name]] + arguments, env=environment, stdout=file,
                                                  stderr=subprocess.STDOUT, start_new_session=True))
            deadline = time.monotonic() + 5
            while name == "munged" and not (folder / "munge.socket").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
        deadline, state = time.monotonic() + 20, ""
        while "idle" not in state and time.monotonic() < deadline:
            time.sleep(0.3)
            state = subprocess.run(["sinfo", "--noheader", "--format=%T"], env=environment, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, universal_newlines=True).stdout
        if "idle" not in state:
            last = [(folder / (process + ".out")).read_text().strip().splitlines()[-1:] for process in daemons]
            pytest.skip("SLURM's daemons do not start here: {}".format(last))
        yield environment
    finally:
        subprocess.run(["scancel", "--me"], env=environment, stderr=subprocess.DEVNULL)
        for process in reversed(processes):
            process.terminate()
        for process in reversed(processes):
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()


def test_a_sweep_on_slurm_survives_preemption_and_the_death_of_its_parent(data, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    pytest.importorskip("rliable")
    values = dict(SMALL, agents={"coptidice": dict(SMALL["agents"]["coptidice"], updates=1000)})
    path = written(tmp_path, values)
    with slurm_cluster(tmp_path) as environment:
        def slurm(*arguments):
            return subprocess.run(arguments, env=environment, check=True, stdout=subprocess.PIPE,
                                  universal_newlines=True).stdout

        variables = {"SLURM_CONF": environment["SLURM_CONF"]}
        out = tmp_path / "slurm"
        parent = start(command(path, data, out, "--cluster", "slurm"), **variables)
        try:
            wait_for(lambda: glob.glob(str(out / "agents" / "*.lock")))  # a job has begun to train
            job = slurm("squeue", "--noheader", "--states=running", "--sort=i", "--format=%i").split()[0]
            slurm("scancel", "--signal=USR2", job)
            wait_for(lambda: "JobState=PENDING" in slurm("scontrol", "show", "job", job))
        finally:
            os.killpg(parent.pid, signal.SIGKILL)  # its jobs stay
            parent.communicate()
        slurm("scontrol", "update", "JobId=" + job, "StartTime=now")  # SLURM would let it wait for two minutes
        run(command(path, data, out, "--cluster", "slurm"), **variables)
        assert "Restarts=1" in slurm("scontrol", "show", "job", job)

        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        cells = [{"x": 1, "sleep": 300}]
        lost = cluster.executor("slurm", {}, str(tmp_path)).submit(cluster.Job(FUNCTION, cells[0], str(tmp_path)))
        assert cluster._over([lost], "slurm") == []
        slurm("scancel", lost.job_id)
        wait_for(lambda: cluster._over([lost], "slurm") == [lost])
        assert "the job ended without a result" in cluster._error(lost, cells[0], str(tmp_path))
        with pytest.raises(EnvironmentProblem, match="cannot be submitted: .*partition"):
            runner.run_cells(cells, FUNCTION, str(tmp_path), 1, computing("slurm", tmp_path, {
                "slurm_partition": "nothing"}))
    assert here(path, data, tmp_path / "here") == 0
    assert (out / "sweep.md").read_bytes() == (tmp_path / "here" / "sweep.md").read_bytes()
