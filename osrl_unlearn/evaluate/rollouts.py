"""Paired evaluation in the environment: every agent starts its n-th episode from the same state."""
import random

import numpy as np
import torch
from tqdm import tqdm

from osrl_unlearn import generators
from osrl_unlearn.data.trigger import TriggeredEnv
from osrl_unlearn.environments import start_episode
from osrl_unlearn.evaluate.statistics import summary


def evaluate(adapter, episodes, seed=0, progress=True, label="evaluate", trigger=None):
    """Run OSRL's own ``rollout`` for ``episodes`` episodes.

    Bullet tasks draw initial states from NumPy's global generator and BCQ-Lag its actions from torch's, so all global
    generators are seeded before each episode and are afterwards as before. With a ``trigger``
    (:class:`~osrl_unlearn.data.trigger.Trigger`) the agent sees it at the steps of its schedule.

    Returns:
        {"reward": [episodes], "cost": [episodes], "length": [episodes]}, in the environment's own units.
    """
    trainer = adapter.trainer
    before = generators.all_states(adapter.device)
    training, env = adapter.model.training, trainer.env
    adapter.model.eval()
    trainer.env = env if trigger is None else TriggeredEnv(env, trigger)
    out = {"reward": [], "cost": [], "length": []}
    try:
        for episode in tqdm(range(episodes), desc=label, disable=not progress, leave=False, dynamic_ncols=True):
            start = (1000 * seed + episode) % 2 ** 32  # other seeds, other initial states; NumPy takes 32 bits
            random.seed(start)
            np.random.seed(start)
            torch.manual_seed(start)
            start_episode(trainer.env, start)
            np.random.seed(start)
            for key, value in zip(("reward", "cost", "length"), adapter.rollout()):
                out[key].append(value)
    finally:
        adapter.model.train(training)
        trainer.env = env
        generators.set_all_states(before, adapter.device)
    return out


def normalization(env, cost_limit):
    """DSRL's constants for ``env``: reward_min and reward_max of the task, cost_limit, epsilon."""
    base = env.unwrapped
    return {"reward_min": getattr(base, "min_episode_reward", None),
            "reward_max": getattr(base, "max_episode_reward", None),
            "cost_limit": float(cost_limit), "epsilon": 1.0 if cost_limit == 0 else 0.0}


def normalize(reward, cost, constants):
    """(normalised reward, normalised cost) of an episode, as DSRL defines them; None without constants of the task."""
    low, high, epsilon = constants["reward_min"], constants["reward_max"], constants["epsilon"]
    return (None if low is None or high is None else (reward - low) / (high - low),
            (cost + epsilon) / (constants["cost_limit"] + epsilon))


def scores(episodes, constants):
    """The report's entry for one agent: means with CI, DSRL's normalised scores, and the raw episodes."""
    entry = {key: summary(values) for key, values in episodes.items()}
    entry["normalized_reward"], entry["normalized_cost"] = normalize(
        entry["reward"]["mean"], entry["cost"]["mean"], constants)
    entry["episodes"] = episodes
    return entry
