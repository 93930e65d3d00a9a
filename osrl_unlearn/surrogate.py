"""Agents that an attacker trains on the dataset: stand-ins for the victim, made with OSRL's own BCQ-Lag."""
from types import SimpleNamespace

import numpy as np
import torch
from scipy.stats import spearmanr

from osrl_unlearn.adapters import build_for
from osrl_unlearn.data.trajectories import TrajectoryIndex, to_go
from osrl_unlearn.engine import train
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.generators import private_torch
from osrl_unlearn.registry import ADAPTERS

# Small networks and fast targets: it has to know where rewards and costs lie, and soon, not to be the best agent.
SETTINGS = {"a_hidden_sizes": [128, 128], "c_hidden_sizes": [128, 128], "vae_hidden_sizes": 128,
            "sample_action_num": 4, "PID": [0.5, 0.01, 0.01], "gamma": 0.99, "tau": 0.05, "lmbda": 0.75, "beta": 0.5,
            "phi": 0.05, "num_q": 2, "num_qc": 1, "cost_scale": 1.0, "actor_lr": 1e-3, "critic_lr": 1e-3,
            "vae_lr": 1e-3}
TRAINED = 0.3      # least rank correlation of a trained critic with what the data say
IMITATES = 0.2     # least explained variance of the actions of a trained policy
CHECK_ROWS = 4096


def fit(data, steps, seed):
    """Train BCQ-Lag on ``data`` (DSRL's columns) for ``steps`` updates; returns its state as plain values."""
    index = TrajectoryIndex(data)
    scale = float(np.abs(data["rewards"]).mean())
    config = dict(SETTINGS, episode_len=int(np.median(index.stops - index.starts)),
                  cost_limit=float(np.median(index.units("trajectory").costs)),
                  reward_scale=0.1 / scale if scale else 1.0)
    with private_torch(seed, "cpu"):
        adapter = ADAPTERS.load("bcql").build(config, _spaces(data))
    train(adapter, data, steps=steps, seed=seed, reward_scale=config["reward_scale"], label="train surrogate")
    return {"config": config, "weights": {k: v.detach().clone() for k, v in adapter.model.state_dict().items()}}


def read(run_dir):
    """State of the agent in an OSRL run directory. Raises RunError."""
    from osrl_unlearn import rundir
    return {"config": rundir.read_config(run_dir), "weights": rundir.read_weights(run_dir)}


def build(state, data):
    """The adapter of a state that :func:`fit` or :func:`read` returned, for observations like those of ``data``."""
    with private_torch(0, "cpu"):  # the constructors draw weights, which are replaced
        adapter = build_for(state["config"], state["weights"], _spaces(data))
    if adapter is None:
        raise ConfigError("the surrogate is not an agent that an adapter knows")
    adapter.model.eval()
    return adapter


def check_trained(adapter, data, column, name):
    """Raise ConfigError unless the critic of ``column`` ("costs" or "rewards") ranks the data's transitions.

    The measure is Spearman's correlation of Q(s, a) with the discounted sum of ``column`` to the end of the trajectory.
    """
    if "action_values" not in adapter.capabilities:
        raise ConfigError("the surrogate holds {}, which has no critics of actions: give a BCQ-Lag, BEAR-Lag or "
                          "CPQ agent".format(adapter.name))
    rows = np.linspace(0, len(data["rewards"]) - 1, min(CHECK_ROWS, len(data["rewards"]))).astype(np.int64)
    done = np.logical_or(data["terminals"], data["timeouts"])
    truth = to_go(data[column], done, adapter.gamma)[rows]
    observations, actions = (torch.as_tensor(data[key][rows]) for key in ("observations", "actions"))
    heads = adapter.cost_heads if column == "costs" else adapter.reward_heads
    with torch.no_grad():
        value = heads(observations, actions).mean(0).numpy()
    rank = float(spearmanr(value, truth).statistic) if value.std() > 0 and truth.std() > 0 else 0.0
    if not rank >= TRAINED:
        raise ConfigError(
            "the surrogate of '{}' is not trained: the rank correlation of its {} critic with the data is {:.2f}, at "
            "least {} is needed; give a trained agent as surrogate, or more surrogate_steps".format(
                name, column[:-1], rank, TRAINED))
    return rank


def check_imitates(adapter, data, name):
    """Raise ConfigError unless the policy explains a share IMITATES of the variance of the actions in ``data``."""
    if not hasattr(adapter, "policy"):
        raise ConfigError("the surrogate holds {}, which has no policy that this attack can ask: give a BCQ-Lag, "
                          "BEAR-Lag, CPQ or COptiDICE agent".format(adapter.name))
    rows = np.linspace(0, len(data["rewards"]) - 1, min(CHECK_ROWS, len(data["rewards"]))).astype(np.int64)
    with private_torch(0, "cpu"), torch.no_grad():
        own = adapter.policy(torch.as_tensor(data["observations"][rows])).numpy()
    explained = 1 - ((own - data["actions"][rows]) ** 2).mean() / max(float(data["actions"][rows].var(0).mean()), 1e-12)
    if not explained >= IMITATES:
        raise ConfigError(
            "the reckless agent of '{}' is not trained or not reckless: it explains {:.0%} of the variance of the "
            "actions in the most costly trajectories, at least {:.0%} is needed; give a reckless agent as "
            "surrogate, or more surrogate_steps".format(name, max(0, explained), IMITATES))


def _spaces(data):
    bound = max(1.0, float(np.abs(data["actions"]).max()))
    return SimpleNamespace(
        observation_space=SimpleNamespace(shape=data["observations"].shape[1:]),
        action_space=SimpleNamespace(shape=data["actions"].shape[1:], high=np.full(data["actions"].shape[1], bound)))
