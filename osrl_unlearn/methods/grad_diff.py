"""Gradient difference: the first version of Safe-RULE by its authors, as their development code has it.

First phase, on a batch k of the retain set and a batch f of the forget set:

    critics   TD(k) - TD(f), for the reward critic and for the cost critic
    actor     -G_r + lambda G_c,  G = mean_k A - mean_f A,  A(s, a) = Q(s, a) - Q(s, pi(s))

lambda is "fixed" at 1, "gradnorm" |grad G_r| / |grad G_c|, or "dual" lambda <- lambda + 0.1 (G_c - 10), always within
[0, 10]. The second phase is ordinary training on the retain set. As there, both phases have the same number of steps,
the generator is frozen in the first, and nothing anchors the second to the old agent.

This is a baseline, and its defects are kept: TD(f) is climbed without a bound (an agent that diverges is rolled back by
the loop, which is the only thing mended); only Q(s, pi(s)) depends on the actor, so its term lowers Q_r and raises Q_c
of the policy in *retained* states; with "dual", lambda is 0 after few steps unless G_c is near 10. Neither does it
choose by evaluations in the environment, as its authors did. Mean over K actions of the policy: K = 1, batches average.

Agents without critics of actions are refused: without Q(s, pi(s)) no gap objective is left, and the rest would be
another method.
"""
import dataclasses

import torch

from osrl_unlearn.methods.base import Method, UpdateOptions
from osrl_unlearn.options import option

CRITICS = ("reward_critic", "cost_critic")


@dataclasses.dataclass
class GradDiffOptions(UpdateOptions):
    """The multiplier of the actor's cost gap."""
    multiplier: str = option("dual", "fixed, gradnorm or dual")
    multiplier_rate: float = option(0.1, "dual: step of the multiplier")
    multiplier_max: float = option(10.0, "upper bound of the multiplier")
    cost_gap: float = option(10.0, "dual: cost gap above which the multiplier grows")

    def __post_init__(self):
        super().__post_init__()
        if self.multiplier not in ("fixed", "gradnorm", "dual"):
            raise ValueError("multiplier must be fixed, gradnorm or dual, got '{}'".format(self.multiplier))


class GradDiff(Method):
    """Descent on the retain set and ascent on the forget set at once, then descent alone.

    A step of the first phase takes two updates of the budget: one that only computes the gradients on the forget set,
    and one on the retain set that uses them.
    """

    name = "grad_diff"
    summary = "descend on the retain set and climb on the forget set, then train on (Safe-RULE's first version)"
    requires = frozenset({"action_values"})
    Options = GradDiffOptions

    def prepare(self, ctx):
        """Constants of the retain set; the multiplier starts at 1."""
        ctx.adapter.set_data_constants(ctx.retain)
        self.multiplier, self.gap, self.climb = 1.0, 0.0, None

    def step(self, ctx, i):
        """In the first phase even updates find the way up on the forget set, and odd ones go both ways."""
        if i >= 2 * int(round(ctx.steps / 3)):
            return dict(ctx.adapter.update(ctx.retain.batch(ctx.batch_size)), phase=2.0)
        metrics = {}
        if self.climb is None:
            gradients = ctx.adapter.gradients(ctx.forget.batch(ctx.batch_size))
            self.climb = {role: gradients[role] for role in CRITICS}
        else:
            retain, forget = ctx.retain.batch(ctx.batch_size), ctx.forget.batch(ctx.batch_size)
            edit = {role: lambda gradients: [None] * len(gradients) for role in ("actor", "generator")
                    if role in ctx.adapter.parts}
            edit.update({role: lambda gradients, climb=climb: [g - c for g, c in zip(gradients, climb)]
                         for role, climb in self.climb.items()})
            metrics = ctx.adapter.update(retain, {"actor": lambda: self._actor_loss(ctx.adapter, retain, forget)}, edit)
            self.climb = None
        return dict(metrics, multiplier=self.multiplier, cost_gap=self.gap, phase=1.0)

    def _actor_loss(self, adapter, retain, forget):
        o = self.options
        reward, cost = (_gap(adapter, heads, retain, forget) for heads in (adapter.reward_heads, adapter.cost_heads))
        self.gap = cost.item()
        if o.multiplier == "dual":
            self.multiplier += o.multiplier_rate * (self.gap - o.cost_gap)
        elif o.multiplier == "gradnorm":
            norms = [torch.cat([g.flatten() for g in torch.autograd.grad(
                gap, adapter.parameters("actor"), retain_graph=True)]).norm().item() for gap in (reward, cost)]
            self.multiplier = norms[0] / max(norms[1], 1e-12)
        self.multiplier = min(max(self.multiplier, 0.0), o.multiplier_max)
        return -reward + self.multiplier * cost

    def state(self):
        """The multiplier, and in the middle of a step the gradients on the forget set."""
        return {"multiplier": self.multiplier, "gap": self.gap, "climb": self.climb}

    def set_state(self, ctx, state):
        """Nothing else changes."""
        self.multiplier, self.gap, self.climb = state["multiplier"], state["gap"], state["climb"]
        if self.climb is not None:  # saved states are read to the CPU
            self.climb = {role: [g.to(ctx.adapter.device) for g in climb] for role, climb in self.climb.items()}


def _gap(adapter, heads, retain, forget):
    def advantage(batch):
        own = heads(batch.observations, adapter.actions(batch)).mean()
        return heads(batch.observations, batch.actions).mean() - own
    return advantage(retain) - advantage(forget)
