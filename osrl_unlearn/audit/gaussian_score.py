"""Gaussian Unlearning Score (Pawelczyk et al., ICLR 2025, arXiv 2406.17216): does the agent remember the noise?"""
import numpy as np
import torch
from scipy.stats import ttest_1samp

from osrl_unlearn.audit.base import CHUNK, Metric, NotComputed, Result
from osrl_unlearn.data.poison import Plan
from osrl_unlearn.evaluate.statistics import summary
from osrl_unlearn.generators import private_torch


class GaussianScore(Metric):
    """Correlation of the noise that an attack added to observations with the gradient of the agent's error there.

    A forgotten row's score is -<g, xi> / |g| for its noise xi of unit variance per dimension and the gradient g, with
    respect to the observation before the attack, of the squared distance of the policy's action to the logged one.
    An agent that has not seen the noise cannot know it: its scores have mean 0 and variance 1. One that was fitted to
    the noisy observations errs less along the noise: its mean is positive. The noise is drawn again from the seed in
    the manifest, which also records its unit, the spread of the clean observations: with any other spread a part of the
    noise would stay in the observations, where every agent reacts to it.
    """

    name = "gaussian_score"
    summary = "does the agent remember the noise that the attack added to observations"
    needs = frozenset({"states", "noise"})
    tests = {"score": "95 % BCa bootstrap interval over trajectories",
             "p_value": "Student's t-test of one sample, the means of the trajectories, against 0"}

    def compute(self, ctx):
        """{agent: {"score": mean with its interval, "p_value": of a t-test against a mean of 0}}."""
        rows, noise, spread = recorded_noise(ctx)
        batch = ctx.store.gather(torch.as_tensor(rows, device=ctx.store.device))
        xi, spread = (torch.as_tensor(a, dtype=batch.observations.dtype, device=ctx.store.device)
                      for a in (noise, spread))
        batch = batch._replace(observations=batch.observations - spread * xi)
        xi = xi / xi.pow(2).mean().sqrt()
        ids, owner = np.unique(ctx.trajectories(rows), return_inverse=True)
        value, means = {}, {}
        for name, adapter in ctx.agents.items():
            scores = self._scores(ctx, adapter, batch, spread, xi)
            means[name] = np.bincount(owner, scores) / np.bincount(owner)
            value[name] = {"score": summary(means[name]), "p_value": float(ttest_1samp(means[name], 0).pvalue)}
        per = {"score": dict(zip(map(str, ids.tolist()), means["audited"].tolist()))}
        return Result(value, per)

    @staticmethod
    def _scores(ctx, adapter, batch, spread, xi):
        found = []
        with private_torch(ctx.seed, adapter.device):
            for start in range(0, len(xi), CHUNK):
                part = batch.__class__(*(column[start:start + CHUNK] for column in batch))
                part = part._replace(observations=part.observations.detach().clone().requires_grad_(True))
                error = (adapter.actions(part) - part.actions).pow(2).sum()
                # In units of the spread, in which the noise is the same in every dimension.
                gradient = torch.autograd.grad(error, part.observations)[0] * spread
                found.append(-(gradient * xi[start:start + CHUNK]).sum(-1) / gradient.norm(dim=-1).clamp(min=1e-12))
        return torch.cat(found).double().cpu().numpy()


def recorded_noise(ctx):
    """(forgotten rows [n], the noise that moved their observations [n, obs_dim], its unit [obs_dim]).

    Raises NotComputed.
    """
    spread = ctx.manifest.attack.get("facts", {}).get("spread")
    if spread is None:
        raise NotComputed("the forget manifest does not record the unit of the noise: it was made by an older version")
    plan = Plan.recorded(ctx.manifest, ctx.data, ctx.ids)
    units = plan.index.units(plan.unit, plan.attack.options.segment_length)
    if len(plan.chosen.starts) != round(plan.rate * len(units.starts)):
        raise NotComputed("the forget manifest is not the attack's own, of which the noise could be drawn again")
    blocks = list(plan.draws())
    return (np.concatenate([rows for _, rows, _, _ in blocks]),
            np.concatenate([plan.attack.noise(given, rng) for _, _, given, rng in blocks]), np.array(spread))
