"""How far the agent is from agents retrained without the forget set, and how far these are from each other."""
import itertools

import numpy as np
import torch
from scipy.stats import ks_2samp, wasserstein_distance
from torch.distributions import Normal, kl_divergence

from osrl_unlearn.audit.base import Metric, Result, Set, has_states_only
from osrl_unlearn.data.views import Batch
from osrl_unlearn.evaluate.rollouts import evaluate
from osrl_unlearn.evaluate.statistics import summary
from osrl_unlearn.generators import private_torch

PAIRS = 2048  # states and actions that an agent visits in evaluation
VALUES = ("reward_value", "cost_value")
RESAMPLES = 500
BCA = "95 % BCa bootstrap interval over trajectories"


@torch.no_grad()
def says(adapter, batch, seed):
    """{"actions", of agents with critics "reward_value", "cost_value", and of those that draw their actions from a
    Gaussian its "mean" and "std"} on a batch, as arrays.
    """
    with private_torch(seed, adapter.device):  # the same latents for every agent
        found = {"actions": adapter.actions(batch)}
        normal = adapter.normal(batch)
        if normal is not None:
            found.update(mean=normal.mean, std=normal.stddev)
        if "values" in adapter.capabilities:
            found.update({name: getattr(adapter, name)(batch).mean(0) for name in VALUES})
    return {name: value.double().cpu().numpy() for name, value in found.items()}


def visited(adapter, play):
    """A Batch of at most PAIRS states that an agent visits and actions that it takes there; it holds nothing else.

    ``play()`` runs episodes of the agent. Also returns the number of the episode of each pair.
    """
    trainer = adapter.trainer
    env, trainer.env = trainer.env, Recorded(trainer.env)
    try:
        play()
        pairs = trainer.env.pairs
    finally:
        trainer.env = env
    chosen = np.linspace(0, len(pairs) - 1, min(PAIRS, len(pairs))).astype(int)
    observations, actions = (torch.as_tensor(np.stack([pairs[i][column] for i in chosen]).astype(np.float32),
                                             device=adapter.device) for column in (0, 1))
    return Batch(observations, None, actions, *[None] * 4), np.array([pairs[i][2] for i in chosen])


class Recorded:
    """An environment that notes what its agent sees and does: ``pairs`` of observation and action, and the episode."""

    def __init__(self, env):
        self._env, self._seen, self._episode, self.pairs = env, None, -1, []

    def __getattr__(self, name):
        return getattr(self._env, name)

    def reset(self, *args, **kwargs):
        """Start an episode."""
        self._seen, info = self._env.reset(*args, **kwargs)
        self._episode += 1
        return self._seen, info

    def step(self, action):
        """One step."""
        self.pairs.append((np.array(self._seen), np.array(action), self._episode))
        self._seen, *rest = self._env.step(action)
        return (self._seen, *rest)


class Distance(Metric):
    """Actions and values of the agent against those of retrained agents, beside the spread of the retrained ones."""

    name = "distance"
    summary = "distance of actions and values to retrained agents"
    needs = frozenset({"reference"})
    tests = {"actions": BCA, "kl": BCA, "wasserstein": "Wasserstein-1; wasserstein_ci95: 95 % percentile bootstrap "
             "interval over trajectories, {} resamples".format(RESAMPLES),
             "ks": "two-sample Kolmogorov-Smirnov statistic of one row per trajectory, no interval",
             "p_value": "of ks; of a two-sided Kolmogorov-Smirnov test"}

    def compute(self, ctx):
        """{set: {"actions", "kl", "reward_value", "cost_value"}} for every pair with a reference.

        "actions" is the mean over trajectories of the squared distance of the actions, with its interval, in units of
        the squared spread of the retained actions, and "kl" the Kullback-Leibler divergence of the policies from the
        first to the second, of agents that draw their actions from a Gaussian; values have "wasserstein" (in units of
        the first reference's spread on the retain set) with its interval, and the Kolmogorov-Smirnov statistic "ks"
        with its p-value. Rows of one trajectory depend on each other, so intervals are over trajectories and p-values
        those of one row per trajectory. Of each forgotten trajectory: the mean over rows and references of what
        "actions" and "kl" average, and of the distance of the values, in the same units.
        """
        sets = dict(ctx.sets)
        details = {"fresh": "states that the first reference visits in evaluation"}
        if not ctx.episodes:
            details["fresh"] = "not computed: no episodes were asked for"
        elif not has_states_only(sets["forget"].batch):
            details["fresh"] = "not computed: the agent acts on sequences"
        else:
            sets["fresh"] = fresh(ctx)
        answers = {name: {where: says(adapter, s.batch, ctx.seed) for where, s in sets.items()}
                   for name, adapter in ctx.agents.items() if name != "original"}
        spread = max(float((sets["retain"].batch.actions.double().std(0) ** 2).sum()), 1e-12)
        references = [name for name in answers if name != "audited"]
        units = {value: max(float(answers["reference"]["retain"][value].std()), 1e-6)
                 for value in VALUES if value in answers["reference"]["retain"]}
        pairs = [("audited", name) for name in references] + list(itertools.combinations(references, 2))
        value = {"{} - {}".format(a, b): {where: _between(answers[a][where], answers[b][where], s, spread, units)
                                          for where, s in sets.items()} for a, b in pairs}
        forget, own = sets["forget"], answers["audited"]["forget"]
        rows = [_apart(own, answers[name]["forget"], spread, units) for name in references]
        per = {key: dict(zip(map(str, forget.ids.tolist()), forget.per_trajectory(
            np.mean([found[key] for found in rows], 0)).tolist())) for key in rows[0]}
        return Result(value, per, details)


def fresh(ctx):
    """The :class:`~osrl_unlearn.audit.base.Set` of what the first reference visits; an episode is a trajectory."""
    agent = ctx.references[0]
    batch, owner = visited(agent, lambda: evaluate(agent, ctx.episodes, ctx.seed, ctx.progress, "fresh states"))
    names, owner = np.unique(owner, return_inverse=True)
    return Set(batch, owner, names, None, None)


def wasserstein(a, b, where):
    """Wasserstein-1 distance of values [rows] of two agents on a Set, and its interval over trajectories.

    As SciPy's, but what is drawn again and again is sorted once.
    """
    values = np.concatenate([a, b])
    order = np.argsort(values)
    gaps = np.diff(values[order])
    owner, sign = np.tile(where.owner, 2)[order], np.where(order < len(a), 1.0, -1.0)

    def resampled(chosen):
        times = np.bincount(chosen, minlength=len(where.ids))
        return np.abs(np.cumsum(sign * times[owner])[:-1]) @ gaps / times[where.owner].sum()
    rng, n = np.random.default_rng(0), len(where.ids)
    drawn = [resampled(rng.integers(n, size=n)) for _ in range(RESAMPLES)]
    return float(wasserstein_distance(a, b)), [float(v) for v in np.percentile(drawn, [2.5, 97.5])]


def _apart(a, b, spread, units):
    """{"actions", "kl" of Gaussian policies, values}: distances of two agents' answers, each [rows]."""
    found = {"actions": ((a["actions"] - b["actions"]) ** 2).sum(-1) / spread}
    if "mean" in a and "mean" in b:
        one, other = (Normal(*(torch.as_tensor(said[key]) for key in ("mean", "std"))) for said in (a, b))
        found["kl"] = kl_divergence(one, other).sum(-1).numpy()
    found.update({name: np.abs(a[name] - b[name]) / unit for name, unit in units.items()})
    return found


def _between(a, b, where, spread, units):
    found = {key: summary(where.per_trajectory(rows)) for key, rows in _apart(a, b, spread, {}).items()}
    first = np.unique(where.owner, return_index=True)[1]
    middle = first + np.bincount(where.owner) // 2
    for name, unit in units.items():
        test = ks_2samp(a[name][middle], b[name][middle])
        distance, interval = wasserstein(a[name] / unit, b[name] / unit, where)
        found[name] = {"wasserstein": distance, "wasserstein_ci95": interval,
                       "ks": float(test.statistic), "p_value": float(test.pvalue)}
    return found
