"""TrajAuditor (Gong et al., TrajDeleter, NDSS 2025, arXiv 2404.12530), as its authors' code has it."""
import numpy as np
import torch
from scipy.stats import t, wasserstein_distance

from osrl_unlearn.audit.base import Metric, Result
from osrl_unlearn.evaluate.statistics import share
from osrl_unlearn.generators import private_torch

SHADOWS, PASSES = 5, 4
SHADOW_SHARE = 0.005  # of the training's updates that a shadow is trained on for
WINDOW, ALPHA = 128, 1e-4


def shadow_actions(ctx, rows):
    """[{set: actions [rows, act_dim]}] of the shadows on the whole trajectories of each set.

    A shadow is the agent before unlearning after some more training on ``rows`` of the data.
    """
    agent, found = ctx.original, []
    before, training = agent.state(), agent.model.training
    try:
        for shadow in range(SHADOWS):
            agent.restore(before)
            agent.model.train()
            view = ctx.store.view(rows, ctx.seed + shadow, True)
            with private_torch(ctx.seed + shadow, agent.device):
                for _ in range(max(1, round(SHADOW_SHARE * ctx.updates))):
                    agent.update(view.batch(ctx.batch_size))
            agent.model.eval()
            found.append({name: ctx.ask(agent, s.batch, agent.actions) for name, s in ctx.whole_sets.items()})
    finally:
        agent.restore(before)
        agent.model.train(training)
    return found


def value_sums(values, owner, gamma):
    """[sums of each trajectory]: what ``values`` [rows] add up to from each row to the end of its window, discounted.

    Windows of WINDOW rows are cut from the start of each trajectory; ``owner`` [rows] ascends.
    """
    found = []
    for own in np.split(values, np.flatnonzero(np.diff(owner)) + 1):
        sums = np.array(own)
        for row in range(len(own) - 2, -1, -1):
            if (row + 1) % WINDOW:
                sums[row] += gamma * sums[row + 1]
        found.append(sums)
    return found


def remoteness(target, shadows):
    """Grubbs' statistic of one trajectory: how far ``target`` [rows] is from the mean of ``shadows`` [samples, rows].

    Distances are Wasserstein-1 between the sums; positive if the target is farther off than the shadows are.
    """
    mean = shadows.mean(0)
    own = [wasserstein_distance(mean, sample) for sample in shadows]
    return (wasserstein_distance(mean, target) - np.mean(own)) / max(np.std(own), 1e-12)


def critical_value(samples, alpha=ALPHA):
    """What the statistic of a member stays below, as the authors' code has it: stricter than Grubbs' own."""
    return t.isf(alpha / (2 * samples), samples - 2) * np.sqrt((samples - 1) / (samples * (samples - 2)))


class TrajAuditor(Metric):
    """Which trajectories an agent is still taken to be trained on, from what its policy is worth along them.

    Known defects, kept here and mended in :class:`~osrl_unlearn.audit.auditor.Auditor`: forgotten trajectories are
    judged by the unlearned agent's own critic and retained ones by the original's, so lowering the values on the forget
    set passes; shadows are trained on without the forget set, which begins to unlearn it; the noise has a mean of -0.04
    and the same size in every dimension; costs are not looked at; no false positive rate is known. Departures: a shadow
    takes 0.5 % of the training's updates (5,000 of a million there), and at most 128 trajectories of each set are
    looked at.
    """

    name = "trajauditor"
    summary = "TrajAuditor as published: trajectories taken for training data"
    needs = frozenset({"original", "updates", "action_values", "states"})
    tests = {name: "95 % Wilson interval; each trajectory by the published variant of Grubbs' test, alpha = {:g}"
             .format(ALPHA) for name in ("forget", "retain")}

    def compute(self, ctx):
        """{set: {agent: share of its trajectories that count as training data}}."""
        value, per = {}, {}
        trained = shadow_actions(ctx, ctx.views[1].rows.cpu().numpy())
        for name in ("forget", "retain"):
            where, gamma = ctx.whole_sets[name], ctx.adapter.gamma
            shadows = []
            with private_torch(ctx.seed, ctx.adapter.device):
                for shadow in trained:
                    for _ in range(PASSES):
                        noise = 0.08 * (torch.randn_like(where.batch.observations) - 0.5)
                        shadows.append(self._sums(ctx, ctx.original, where, shadow[name], gamma, noise))
            bound = critical_value(len(shadows))
            value[name] = {}
            for agent, adapter in ctx.agents.items():
                critic = adapter if name == "forget" else ctx.original
                own = self._sums(ctx, critic, where, ctx.ask(adapter, where.batch, adapter.actions), gamma)
                member = [abs(remoteness(o, np.stack(s))) <= bound for o, s in zip(own, zip(*shadows))]
                value[name][agent] = share(sum(member), len(member))
                if (name, agent) == ("forget", "audited"):
                    per = {"member": dict(zip(map(str, where.ids.tolist()), map(float, member)))}
        return Result(value, per, {"shadows": SHADOWS, "trajectories": {n: len(ctx.whole_sets[n].ids) for n in value}})

    @staticmethod
    def _sums(ctx, critic, where, actions, gamma, noise=0.0):
        batch = where.batch._replace(
            observations=where.batch.observations + noise,
            actions=torch.as_tensor(actions, dtype=where.batch.actions.dtype, device=where.batch.actions.device))
        return value_sums(ctx.ask(critic, batch, lambda b: critic.reward_value(b).mean(0)), where.owner, gamma)
