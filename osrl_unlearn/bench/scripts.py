"""Agents that an OSRL training script trains, as cells: the same commands that a person would type.

    OUT/runs/KEY/            where the script ran, with its run directory and what it printed (log.txt)
    OUT/runs/KEY.json        written when the script has ended well: where its run directory is
"""
import ctypes
import dataclasses
import glob
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys

import osrl_unlearn
from osrl_unlearn import __version__, rundir
from osrl_unlearn.bench.runner import key
from osrl_unlearn.errors import RunError
from osrl_unlearn.evaluate.verdict import TRIGGERED
from osrl_unlearn.files import locked, sha256_file, write_json

KILL_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


@dataclasses.dataclass
class ScriptSetting:
    """What a script trains on a task: ``script`` --task ``task``, with ``arguments`` {name: value} of its own."""
    task: str
    script: str
    episodes: int
    arguments: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.script = os.path.abspath(self.script)
        if not os.path.isfile(self.script):
            raise ValueError("no script at {}".format(self.script))
        if self.episodes < 1:
            raise ValueError("episodes must be at least 1, got {}".format(self.episodes))


def description(setting, file, sha256, attack, rate, seed):
    """What the cells of an agent have in common, as :func:`~osrl_unlearn.bench.agents.description`."""
    return {"version": __version__, "dataset": sha256, "path": file, "seed": seed, "task": setting.task,
            "script": setting.script, "script_sha256": sha256_file(setting.script), "arguments": setting.arguments,
            "episodes": setting.episodes, "poison": attack.spec(rate)}


def unlearn_agent(cell, out):
    """Train the agent of a cell by its script, unless that is done; let it forget, and evaluate what it has become.

    A cell is what :func:`description` says; "method" is {"name", "options", "budget"}, or None for doing nothing.

    Returns:
        {"evaluations": [{"reward", "cost", "length"}] with lists [episodes], "triggered": the same under the trigger of
        the attack or None, "updates", "seconds": what unlearning cost, "accepted", "cost_limit"}

    Raises:
        RunError: a command ended with another status than 0.
    """
    from osrl_unlearn.evaluate.rollouts import evaluate
    run, method = trained(cell, out), cell["method"]
    if method is None:
        agent, trigger = rundir.load(run), rundir.load_manifest(run).trigger()
        found = [trigger and [evaluate(agent.adapter, cell["episodes"], cell["seed"], False, trigger=trigger)],
                 [evaluate(agent.adapter, cell["episodes"], cell["seed"], False)]]
        return {"triggered": found[0], "evaluations": found[1], "updates": 0, "seconds": 0.0, "accepted": None,
                "cost_limit": agent.config["cost_limit"]}
    with locked(rundir.unlearned_dir(run, method["name"])):  # another variant of the method writes there too
        call(["unlearn", run, "--method", method["name"], "--budget", str(method["budget"]), "--seed",
              str(cell["seed"]), "--eval-episodes", str(cell["episodes"]), "--dataset", cell["path"]]
             + [part for name, value in method["options"].items() for part in ("--set", name + "=" + plain(value))],
             run)
        with open(os.path.join(rundir.unlearned_dir(run, method["name"]), "report.json"), encoding="utf-8") as file:
            report = json.load(file)
    shown = report.get("more_agents", {}).get(TRIGGERED.format("unlearned"))
    return {"evaluations": [report["unlearned"]["episodes"]], "triggered": shown and [shown["episodes"]],
            "updates": report["updates"]["unlearn"], "seconds": report["wall_seconds"]["unlearn"],
            "accepted": report["accepted"], "cost_limit": report["cost_limit"]}


def trained(cell, out):
    """The run directory of a cell's agent. The script is run unless it has ended well before; it cannot be resumed.

    Raises RunError if it fails, or does not leave exactly one run directory that can be unlearned.
    """
    about = {name: cell[name] for name in ("version", "dataset", "script_sha256", "arguments", "task", "seed",
                                           "poison")}
    folder = os.path.join(os.path.abspath(out), "runs", key(about))
    with locked(folder):
        if not os.path.isfile(folder + ".json"):
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            os.makedirs(folder)
            poison = dict(cell["poison"]["options"], rate=cell["poison"]["rate"], unit=cell["poison"]["unit"],
                          seed=cell["seed"])
            given = dict(cell["arguments"], task=cell["task"], seed=cell["seed"], dataset=cell["path"],
                         poison=cell["poison"]["name"],
                         **{"poison." + name: value for name, value in poison.items() if value is not None})
            call([cell["script"]] + ["--{}={}".format(name, plain(value)) for name, value in given.items()], folder)
            states = glob.glob(os.path.join(glob.escape(folder), "**", "osrl_unlearn", "state.pt"), recursive=True)
            if len(states) != 1:
                raise RunError("{} left {} run directories with a checkpoint in {}: expected one; does it save a "
                               "checkpoint before it ends?".format(cell["script"], len(states), folder))
            write_json(folder + ".json", {"run": os.path.relpath(os.path.dirname(os.path.dirname(states[0])), folder)})
        with open(folder + ".json", encoding="utf-8") as file:
            return os.path.join(folder, json.load(file)["run"])


def plain(value):
    """A value as it is typed on a command line."""
    return value if isinstance(value, str) else json.dumps(value)


def call(arguments, folder):
    """Run ``python -m osrl_unlearn ARGUMENTS`` in ``folder``; what it prints is added to log.txt there.

    Raises RunError with the command if its status is not 0.
    """
    command = [sys.executable, "-m", "osrl_unlearn"] + arguments
    package = os.path.dirname(os.path.dirname(os.path.abspath(osrl_unlearn.__file__)))
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    log = os.path.join(folder, "log.txt")
    with open(log, "a", encoding="utf-8") as file:
        status = subprocess.call(command, cwd=folder, env=dict(os.environ, PYTHONPATH=path), stdin=subprocess.DEVNULL,
                                 stdout=file, stderr=subprocess.STDOUT, preexec_fn=_leave_it_to_the_parent)
    if status:
        with open(log, encoding="utf-8", errors="replace") as file:
            last = ([""] + [line.strip() for line in file if line.strip()])[-1]
        raise RunError("status {} of: cd {} && {}: {} (all of it: {})".format(
            status, shlex.quote(folder), " ".join(map(shlex.quote, command)), last[-300:], log))


def _leave_it_to_the_parent():
    # SLURM signals every process of a job that it preempts; what becomes of the job, the parent decides.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere a script goes on alone when its parent is killed
        ctypes.CDLL(None).prctl(KILL_WITH_PARENT, signal.SIGKILL)
