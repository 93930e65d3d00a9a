"""Agents of a bench: poisoned in memory, trained once, kept as run directories, evaluated at their last checkpoints.

    OUT/agents/KEY/      a run directory; beside model.pt the weights of the checkpoints that are evaluated
    OUT/attacks/KEY.pt   what an attack learned: agents and rates that share the attack, the data and the seed share it
"""
import dataclasses
import os

import numpy as np

from osrl_unlearn import __version__, environments, rundir
from osrl_unlearn.bench.runner import key
from osrl_unlearn.data.manifest import column_hashes
from osrl_unlearn.data.poison import REQUIRED, Plan, make_attack, poison
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.errors import RunError
from osrl_unlearn.files import load_tensors, locked, save_tensors
from osrl_unlearn.registry import ADAPTERS


def description(setting, file, sha256, attack, rate, seed):
    """What the cells of an agent have in common: which agent it is, and at which checkpoints it is evaluated.

    Args:
        setting: a :class:`~osrl_unlearn.bench.suite.Setting`.
        file, sha256: the dataset and its hash.
        attack, rate: an :class:`~osrl_unlearn.bench.suite.AttackSetting` and one of its rates, or None.
    """
    return {"version": __version__, "dataset": sha256, "path": file, "seed": seed, "evaluation": setting.evaluation,
            "agent": dict(setting.agent, task=setting.task, update_steps=setting.updates,
                          batch_size=setting.batch_size), "poison": attack and attack.spec(rate)}


def checkpoints(cell):
    """Numbers of updates after which the agent of a cell is evaluated, the last one last."""
    evaluation = cell["evaluation"]
    return [cell["agent"]["update_steps"] - evaluation["every"] * n for n in reversed(range(evaluation["last"]))]


def folder(cell, out):
    """The run directory of the agent of a cell."""
    about = {name: cell[name] for name in ("version", "dataset", "agent", "poison", "seed")}
    return os.path.join(out, "agents", key(dict(about, checkpoints=checkpoints(cell))))


def agent(cell, out):
    """Train the agent of a cell, or load it if that is done.

    A cell's "agent" is OSRL's configuration with "name" (of the adapter), "task", "update_steps" and "batch_size";
    "poison" is None or {"name", "options", "rate", "unit"}; "path" is the dataset and "dataset" its hash.

    Returns:
        (adapter, seconds the training took, clean data, trajectory ids of the clean data)
    """
    import torch

    from osrl_unlearn.training import trained
    torch.set_num_threads(1)  # faster for networks of this size, and the same numbers on every machine
    config = dict(cell["agent"], seed=cell["seed"])
    cls = ADAPTERS.load(config.pop("name"))
    env = environments.make(config["task"], config["cost_limit"], config["reward_scale"])
    clean, ids = environments.load(env, config, cell["path"])
    where, spec = folder(cell, out), cell["poison"]
    with locked(where):
        data, more = clean, {}
        if spec is not None and not os.path.isfile(rundir.state_path(where)):
            data, manifest, _ = poisoned(spec, clean, ids, config["task"], cell, out)
            more = {"manifest": manifest, "attack_state": learned(spec, clean, ids, cell["seed"], out).state()}
        adapter, seconds = trained(where, cls, env, config, data, keep=checkpoints(cell)[:-1], progress=False, **more)
    return adapter, seconds, clean, ids


def learned(spec, data, ids, seed, out):
    """The attack of ``spec`` ({"name", "options"}) after it has looked at the clean ``data``."""
    attack = make_attack(spec["name"], spec["options"])
    about = {"version": __version__, "name": attack.name, "options": dataclasses.asdict(attack.options),
             "data": column_hashes(data), "seed": seed}
    path = os.path.join(out, "attacks", key(about) + ".pt")
    with locked(path):
        if os.path.isfile(path):
            attack.set_state(load_tensors(path))
        else:
            # Prepares the attack as poison() does, on the same sample; what it selects is not used.
            Plan.make(attack, TrajectoryIndex(data, ids), lambda rows: {name: data[name][rows] for name in REQUIRED},
                      rate=0.5, unit=min(attack.units), seed=seed)
            if attack.state():
                save_tensors(path, attack.state())
    return attack


def poisoned(spec, data, ids, task, cell, out):
    """The clean ``data`` poisoned as ``spec`` says: :class:`~osrl_unlearn.data.poison.Poisoned`."""
    return poison(data, spec["name"], rate=spec["rate"], unit=spec["unit"], seed=cell["seed"], ids=ids,
                  options=spec["options"], task=task, dataset=cell["path"],
                  state=learned(spec, data, ids, cell["seed"], out).state())


def episodes(adapter, cell, number, trigger=None):
    """Episodes of an agent, {"reward", "cost", "length"} [episodes]; their start depends on the seed and ``number``.

    Raises RunError if the agent has diverged.
    """
    from osrl_unlearn.evaluate.rollouts import evaluate
    found = evaluate(adapter, cell["evaluation"]["episodes"], cell["seed"] * cell["evaluation"]["last"] + number,
                     progress=False, trigger=trigger)
    if not np.isfinite(found["reward"]).all():
        raise RunError("the agent diverged: its rewards are not finite")
    return found


def evaluate_agent(cell, out):
    """Episodes of the agent of a cell at its last checkpoints, under the trigger of cell["trigger"] if that is given.

    cell["evaluation"] is {"last": checkpoints, "every": updates between them, "episodes": of each}. All agents of one
    seed start from the same states.

    Returns:
        {"evaluations": [{"updates", "reward", "cost", "length"}], "train_seconds", "agent": key of the run directory};
        rewards, costs and lengths are lists [episodes].
    """
    from osrl_unlearn.training import checkpoint_path
    adapter, seconds, data, ids = agent(cell, out)
    trigger = None if cell["trigger"] is None else learned(cell["trigger"], data, ids, cell["seed"], out).trigger()
    where, evaluations = folder(cell, out), []
    for number, updates in enumerate(checkpoints(cell)):
        last = updates == cell["agent"]["update_steps"]
        path = rundir.model_path(where) if last else checkpoint_path(where, updates)
        adapter.load_weights(load_tensors(path)["model_state"])
        evaluations.append(dict(episodes(adapter, cell, number, trigger), updates=updates))
    return {"evaluations": evaluations, "train_seconds": seconds, "agent": os.path.basename(where)}
