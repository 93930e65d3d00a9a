"""TrajAuditor with its defects mended: one critic for all, costs too, and false positives that are known."""
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from osrl_unlearn.audit.base import Metric, Result
from osrl_unlearn.audit.membership import BOOTSTRAP, LOW, RESAMPLES, separation, threshold
from osrl_unlearn.audit.trajauditor import PASSES, remoteness, shadow_actions, value_sums
from osrl_unlearn.evaluate.statistics import share
from osrl_unlearn.generators import private_torch
from osrl_unlearn.regression import ToGo

NOISE = 0.08  # standard deviation, in units of each dimension's spread
STEPS, HEADS = 400, 2  # of the common critics
MEMBER = 0.05  # false positive rate at which a trajectory is called training data


def matched(forget, others):
    """Positions of the trajectories of the Set ``others`` closest in return, cost and length to those of ``forget``.

    Each is used once; all are returned if there are not more than in ``forget``. In units of the spread in ``others``.
    """
    if len(others.ids) <= len(forget.ids):
        return np.arange(len(others.ids))
    facts = [np.stack([np.bincount(s.owner, weights, len(s.ids)) for weights in (
        s.batch.rewards.double().cpu().numpy(), s.batch.costs.double().cpu().numpy(), None)], 1)
        for s in (forget, others)]
    spread = np.maximum(facts[1].std(0), 1e-9)
    return np.sort(linear_sum_assignment(cdist(facts[0] / spread, facts[1] / spread))[1])


class Auditor(Metric):
    """Is the agent closer to the one before unlearning, along forgotten trajectories, than a retrained agent is?

    As :class:`~osrl_unlearn.audit.trajauditor.TrajAuditor`, but two critics judge every agent and every set: they are
    fitted to the rewards and costs that followed the retained rows, so no agent can move them, and agents without
    critics can be audited; shadows are trained on with all data, so that they are members; noise has mean 0 and the
    size of each dimension's spread. A trajectory's score is minus the larger of Grubbs' statistics of rewards and
    costs, one-sided: only who is farther off than the shadows is none of them. Scores are compared with those of
    agents and trajectories for which "not trained on it" is true.
    """

    name = "auditor"
    summary = "TrajAuditor, corrected: forgotten trajectories against non-members (AUROC, TPR at a known FPR)"
    needs = frozenset({"original", "updates", "non_members", "states"})
    tests = {"auroc": BOOTSTRAP, "tpr_at_fpr": BOOTSTRAP, "threshold_at_fpr": BOOTSTRAP,
             "achieved_fpr": "95 % Wilson interval; of the non-members that the threshold was set on"}

    def compute(self, ctx):
        """{"reference": separation of the forgotten trajectories' scores from all retrained agents' on the same ones,
        "calibration": the same with a retrained agent in place of the audited one and the others as its references, of
        the one that looks most like a member, "holdout": separation from matched held-out trajectories, "original": as
        "reference", of the agent before unlearning}; what is not given is left out.

        The true positive rate at a false positive rate is the share of forgotten trajectories that count as training
        data if the threshold is set for that rate on the non-members; that of "calibration" is the rate of false
        positives in an agent that the threshold was not set on. "threshold_at_fpr" is that threshold, and
        "achieved_fpr" the share of the non-members above it: 0 where there are fewer than 1 / rate of them. A
        trajectory is a "member" if its score is above the threshold for MEMBER.
        """
        critics = self._critics(ctx)
        shadows = self._shadows(ctx, critics)
        scores = {name: self._scores(ctx, critics, shadows, adapter, "forget") for name, adapter in ctx.agents.items()}
        value, never = {}, [own for name, own in scores.items() if "reference" in name]
        if ctx.holdout is not None:
            like = matched(ctx.whole_sets["forget"], ctx.whole_sets["holdout"])
            others = self._scores(ctx, critics, shadows, ctx.adapter, "holdout")[like]
            value["holdout"] = dict(separation(scores["audited"], others, ctx.seed), **thresholds(others, ctx.seed))
        if never:
            others = np.stack(never)
            value["reference"] = dict(separation(scores["audited"], others, ctx.seed), **thresholds(others, ctx.seed))
            value["original"] = separation(scores["original"], others, ctx.seed)
        if len(never) > 1:
            value["calibration"] = max((separation(own, np.delete(others, n, 0), ctx.seed)
                                        for n, own in enumerate(never)), key=lambda found: found["auroc"]["mean"])
        ids = list(map(str, ctx.whole_sets["forget"].ids.tolist()))
        member = scores["audited"] > threshold(others.ravel(), MEMBER)
        return Result(value, {"score": dict(zip(ids, scores["audited"].tolist())),
                              "member": dict(zip(ids, member.tolist()))},
                      {"trajectories": {name: len(s.ids) for name, s in ctx.whole_sets.items()},
                       "member": "score above the threshold for a false positive rate of {:g} on {}".format(
                           MEMBER, "the references" if never else "held-out trajectories")})

    @staticmethod
    def _critics(ctx):
        pairs = ctx.sets["retain"]
        x = torch.cat([pairs.batch.observations, pairs.batch.actions], -1).float()
        rows = torch.arange(len(x), device=x.device)
        return [ToGo(x, torch.as_tensor(target, dtype=torch.float32, device=x.device), rows, STEPS, HEADS, ctx.seed)
                for target in (pairs.rewards_to_go, pairs.costs_to_go)]

    @staticmethod
    def _shadows(ctx, critics):
        """{set: [samples of sums per critic]}, a sample for each shadow and each draw of noise."""
        found, trained = {}, shadow_actions(ctx, ctx.store.rows)
        for name in ("forget", "holdout") if ctx.holdout is not None else ("forget",):
            where = ctx.whole_sets[name]
            spread = ctx.sets["retain"].batch.observations.std(0)
            with private_torch(ctx.seed, ctx.adapter.device):
                noises = [NOISE * spread * torch.randn_like(where.batch.observations)
                          for _ in range(PASSES * len(trained))]
            found[name] = [[_sums(ctx, critic, where, trained[n // PASSES][name], noise)
                            for n, noise in enumerate(noises)] for critic in critics]
        return found

    @staticmethod
    def _scores(ctx, critics, shadows, adapter, name):
        where = ctx.whole_sets[name]
        actions = ctx.ask(adapter, where.batch, adapter.actions)
        apart = []
        for critic, samples in zip(critics, shadows[name]):
            own = _sums(ctx, critic, where, actions)
            apart.append([remoteness(o, np.stack(s)) for o, s in zip(own, zip(*samples))])
        return -np.max(apart, 0)


def thresholds(others, seed):
    """{"threshold_at_fpr_RATE", "achieved_fpr_RATE"}, each {"mean", "ci95", "n"}, of scores [m] or [agents, m]."""
    others, found = np.atleast_2d(others), {}
    drawn = np.random.default_rng(seed).integers(others.shape[-1], size=(RESAMPLES, others.shape[-1]))
    again = np.concatenate([row[drawn] for row in others], -1)
    for rate in LOW:
        limit = float(threshold(others.ravel(), rate))
        found["threshold_at_fpr_{:g}".format(rate)] = {
            "mean": limit, "ci95": [float(v) for v in np.percentile(threshold(again, rate), [2.5, 97.5])],
            "n": others.size}
        found["achieved_fpr_{:g}".format(rate)] = share((others > limit).sum(), others.size)
    return found


def _sums(ctx, critic, where, actions, noise=0.0):
    observations = where.batch.observations
    actions = torch.as_tensor(actions, dtype=observations.dtype, device=observations.device)
    values = critic(torch.cat([observations + noise, actions], -1).float()).mean(0)
    return value_sums(values.double().cpu().numpy(), where.owner, ctx.adapter.gamma)
