"""TrajAuditor with its defects mended: one critic for all, costs too, and false positives that are known."""
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from osrl_unlearn.audit.base import Metric, NotComputed, Result, has_states_only
from osrl_unlearn.audit.membership import separation
from osrl_unlearn.audit.trajauditor import PASSES, remoteness, shadow_actions, value_sums
from osrl_unlearn.generators import private_torch
from osrl_unlearn.regression import ToGo

NOISE = 0.08  # standard deviation, in units of each dimension's spread
STEPS, HEADS = 400, 2  # of the common critics


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
    needs = frozenset({"original", "updates"})

    def compute(self, ctx):
        """{"reference": separation of the forgotten trajectories' scores from a retrained agent's on the same ones,
        "calibration": the same with a second retrained agent in place of the audited one, "holdout": separation from
        matched held-out trajectories, "original": as "reference", of the agent before unlearning}; what is not given
        is left out. The true positive rate at a false positive rate is the share of forgotten trajectories that count
        as training data if the threshold is set for that rate on the non-members.
        """
        if not has_states_only(ctx.sets["forget"].batch):
            raise NotComputed("the agent acts on sequences")
        if not ctx.references and ctx.holdout is None:
            raise NotComputed("nothing is known to be no member: add --reference RUN_DIR or --holdout FILE")
        critics = self._critics(ctx)
        shadows = self._shadows(ctx, critics)
        scores = {name: self._scores(ctx, critics, shadows, adapter, "forget") for name, adapter in ctx.agents.items()}
        value = {}
        if ctx.references:
            value["reference"] = separation(scores["audited"], scores["reference"], ctx.seed)
            value["original"] = separation(scores["original"], scores["reference"], ctx.seed)
            if "reference 2" in scores:
                value["calibration"] = separation(scores["reference 2"], scores["reference"], ctx.seed)
        if ctx.holdout is not None:
            like = matched(ctx.whole_sets["forget"], ctx.whole_sets["holdout"])
            value["holdout"] = separation(scores["audited"], self._scores(
                ctx, critics, shadows, ctx.adapter, "holdout")[like], ctx.seed)
        ids = map(str, ctx.whole_sets["forget"].ids.tolist())
        return Result(value, {"score": dict(zip(ids, scores["audited"].tolist()))},
                      {"trajectories": {name: len(s.ids) for name, s in ctx.whole_sets.items()}})

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


def _sums(ctx, critic, where, actions, noise=0.0):
    observations = where.batch.observations
    actions = torch.as_tensor(actions, dtype=observations.dtype, device=observations.device)
    values = critic(torch.cat([observations + noise, actions], -1).float()).mean(0)
    return value_sums(values.double().cpu().numpy(), where.owner, ctx.adapter.gamma)
