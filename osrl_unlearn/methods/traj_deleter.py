"""TrajDeleter (Gong et al., NDSS 2025, arXiv 2404.12530), with the shares of its published code.

Of ten equal blocks of updates the first eight alternate: ordinary training on the retain set, then OSRL's own updates
on the forget set with rewards negated, so that what is forgotten becomes unattractive. The last two train on the retain
set with critics anchored to the original ones. There: 4 x (1000 + 1000), then 2000, out of a million; here blocks of a
tenth of any budget. As there, the policy's and the generator's losses on the forget set keep their sign, so a
generator goes on imitating forgotten actions.

Departures. The method knows no cost; ``flip_costs`` turns forgotten costs round as well: c becomes c_max - c, with
c_max the highest cost in all the data, so labels of 0 and 1 are exchanged. The anchor is 0.1 (Q(s, a) - Q_0(s, a))^2,
for both critics, where the code has a second Bellman error towards r + gamma Q_0(s', pi_0(s')): the same where the old
critic solves its own Bellman equation, and defined for agents whose critics value states alone. Multipliers and
controllers are put back after each update on the forget set: rows whose labels are false by intent must not drive them.
"""
import dataclasses

import torch

from osrl_unlearn.methods.base import UpdateOptions
from osrl_unlearn.methods.fine_tune import FineTune
from osrl_unlearn.options import option

BLOCKS, FLIPPING = 10, 8  # blocks in the budget; those of the first stage


@dataclasses.dataclass
class TrajDeleterOptions(UpdateOptions):
    """Weight of the anchor, and the variant for costs."""
    anchor: float = option(0.1, "second stage: weight of the anchor to the original critics")
    flip_costs: bool = option(False, "turn forgotten costs round too: c becomes the highest cost in the data minus c")


class TrajDeleter(FineTune):
    """Blocks of training on the retain set and on the forget set with flipped labels; every update is one."""

    name = "traj_deleter"
    summary = "train on flipped labels of the forget set in turn with the retain set, then anchor to the old critics"
    requires = frozenset({"values"})
    Options = TrajDeleterOptions

    def step(self, ctx, i):
        """One update; which one depends on the block that ``i`` is in."""
        block = i * BLOCKS // ctx.steps
        if block >= FLIPPING:
            batch = ctx.retain.batch(ctx.batch_size)
            return dict(ctx.adapter.update(batch, self._anchors(ctx, batch)), block=float(block))
        if block % 2 == 0:
            return dict(super().step(ctx, i), block=float(block))
        with ctx.adapter.duals_kept():
            return dict(ctx.adapter.update(self.flipped(ctx, ctx.forget.batch(ctx.batch_size))), block=float(block))

    def flipped(self, ctx, batch):
        """The batch with rewards, and costs if they are to be, turned round."""
        batch = batch._replace(rewards=-batch.rewards)
        if not self.options.flip_costs:
            return batch
        return batch._replace(costs=ctx.forget.store.highest_cost() - batch.costs)

    def _anchors(self, ctx, batch):
        def anchor(value, before):
            return lambda: self.options.anchor * ((value(batch) - before) ** 2).mean()

        with torch.no_grad():
            reward, cost = ctx.reference.reward_value(batch), ctx.reference.cost_value(batch)
        return {"reward_critic": anchor(ctx.adapter.reward_value, reward),
                "cost_critic": anchor(ctx.adapter.cost_value, cost)}
