"""Value suppression alone: the reward critic unlearns, cost critic and policy are left to the agent's own updates.

Bellman regression on the retain set plus a margin term on the forget set, as in Relative Fisher Forgetting (OpenReview
TidLO0qdp0, Eq. 3); written with the softplus of Safe-RULE's F1 (see :mod:`osrl_unlearn.methods.safe_rule`), with its
margin and weight, so that it is also Safe-RULE without its cost side, its actor terms, its repair and its gate.
"""
import dataclasses

import torch
import torch.nn.functional as F

from osrl_unlearn.methods.base import PROBE_ROWS, UpdateOptions
from osrl_unlearn.methods.fine_tune import FineTune
from osrl_unlearn.methods.safe_rule import preference_gap
from osrl_unlearn.options import option


@dataclasses.dataclass
class ValueSuppressionOptions(UpdateOptions):
    """As F1 of Safe-RULE."""
    reward_weight: float = option(0.1, "suppression of the reward critic on the forget set")
    margin: float = option(0.5, "margin, in units of the spread of the critic's preference on the retain set")


class ValueSuppression(FineTune):
    """Native updates on the retain set with one extra loss; every update is one."""

    name = "value_suppression"
    summary = "suppress the forget set in the reward critic only, while training on the retain set"
    requires = frozenset({"values"})
    Options = ValueSuppressionOptions

    def prepare(self, ctx):
        """The margin, from the agent before unlearning."""
        super().prepare(ctx)
        self._probe = ctx.retain.everything(PROBE_ROWS)
        with torch.no_grad():
            spread = ctx.reference.preference(self._probe).std().clamp(min=1e-6)
        self.margin = (self.options.margin * spread).item()

    def step(self, ctx, i):
        """A native update on the retain set."""
        adapter, forget, margin = ctx.adapter, ctx.forget.batch(ctx.batch_size), self.margin
        return adapter.update(ctx.retain.batch(ctx.batch_size), {
            "reward_critic": lambda: self.options.reward_weight * margin * F.softplus(
                preference_gap(adapter, forget, self._probe, margin) / margin).mean()})

    def state(self):
        """The margin: a stochastic policy would give another one when a run is resumed."""
        return {"margin": self.margin}

    def set_state(self, ctx, state):
        """The rows it was measured on are those of the retain set."""
        self._probe, self.margin = ctx.retain.everything(PROBE_ROWS), state["margin"]
