"""Train an agent on data that are already in memory, and keep it as a run directory."""
import dataclasses
import os
import time

import yaml

from osrl_unlearn import rundir
from osrl_unlearn.engine import train
from osrl_unlearn.errors import RunError
from osrl_unlearn.files import load_tensors, save_tensors, write_text

SAVE_EVERY = 60.0  # seconds: what a training loses at most that is killed


def checkpoint_path(folder, updates):
    """Where the weights after ``updates`` updates are, if they were to be kept; the last are in model.pt."""
    return os.path.join(os.path.dirname(rundir.model_path(folder)), "model_{}.pt".format(updates))


def trained(folder, cls, env, agent, data, *, rows=None, manifest=None, attack_state=None, keep=(), progress=True):
    """The agent of the run directory ``folder``: loaded, or trained and saved there if it is not finished.

    A training that was killed goes on from what it last saved, and ends with the same weights.

    Args:
        cls: the agent's :class:`~osrl_unlearn.adapters.base.Adapter`.
        agent: OSRL's configuration, with "task", "seed", "update_steps" and "batch_size"; without "device" on the CPU.
        data, rows: as for :func:`~osrl_unlearn.engine.train`.
        manifest, attack_state: forget manifest of ``data``, and what its attack learned; saved beside the agent.
        keep: numbers of updates after which the weights are kept too, see :func:`checkpoint_path`.

    Returns:
        (adapter, seconds that the training took)

    Raises:
        RunError: the folder holds an agent with other settings.
    """
    adapter = cls.build(agent, env, agent.get("device", "cpu"))
    about = yaml.safe_dump(agent)
    path = os.path.join(folder, "config.yaml")
    if os.path.isfile(rundir.state_path(folder)) and os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            if file.read() != about:
                raise RunError("{} holds an agent with other settings: give another --out".format(folder))
        adapter.load_weights(load_tensors(rundir.model_path(folder))["model_state"])
        state = load_tensors(rundir.state_path(folder))
        adapter.restore(state["hidden"])
        return adapter, state["train_seconds"]

    half, resume = os.path.join(folder, "osrl_unlearn", "training.pt"), None
    if os.path.isfile(half):
        saved = load_tensors(half)
        resume = saved["training"] if saved["about"] == about else None
    last = time.monotonic()

    def on_step(done, state):
        nonlocal last
        if done in keep:
            save_tensors(checkpoint_path(folder, done), {"model_state": adapter.model.state_dict()})
        if time.monotonic() - last >= SAVE_EVERY:
            save_tensors(half, {"about": about, "training": state()})
            last = time.monotonic()

    seconds = train(adapter, data, steps=agent["update_steps"], batch_size=agent["batch_size"], seed=agent["seed"],
                    rows=rows, reward_scale=agent["reward_scale"], cost_scale=agent["cost_scale"], progress=progress,
                    label="train " + os.path.basename(folder), on_step=on_step,
                    resume=resume)
    write_text(path, about)
    if manifest is not None:
        dataclasses.replace(manifest, reward_scale=agent["reward_scale"], cost_scale=agent["cost_scale"],
                            cost_limit=agent["cost_limit"]).save(rundir.manifest_path(folder))
    if attack_state:
        save_tensors(rundir.attack_path(folder), attack_state)
    save_tensors(rundir.model_path(folder), {"model_state": adapter.model.state_dict()})
    save_tensors(rundir.state_path(folder), rundir.side_state(
        adapter, updates=agent["update_steps"], batch_size=agent["batch_size"], train_seconds=seconds,
        reward_scale=agent["reward_scale"], cost_scale=agent["cost_scale"],
        dataset=None if manifest is None else manifest.dataset))
    if os.path.exists(half):
        os.unlink(half)
    return adapter, seconds
