"""Random labels: train on with the labels of the forget set exchanged among its rows.

The random-label baseline of supervised unlearning (Amnesiac unlearning: Graves et al., arXiv 2010.10981), where
rows that shall be forgotten get a wrong class and training goes on with all rows. A transition's labels are its reward
and its cost. They are permuted together, by one permutation that the seed fixes, so that their distribution in the
forget set stays and only their bond to states and actions is cut; relabelled and retained rows are drawn in their
natural proportion. TrajDeleter's baseline of this kind sets rewards to equally spaced values instead.

Where all forgotten rows carry the same label nothing is cut, and forgotten *actions* are imitated as before. Agents
without critics are refused: BC's loss has no labels, and CDT learns from sums of them over whole trajectories.
"""
import torch

from osrl_unlearn.methods.base import UpdateOptions
from osrl_unlearn.methods.fine_tune import FineTune


class RandomLabels(FineTune):
    """OSRL's own updates on the retain set and the relabelled forget set; every update is one."""

    name = "random_labels"
    summary = "continue training with rewards and costs permuted among the forget set's rows"
    requires = frozenset({"values"})
    Options = UpdateOptions

    def prepare(self, ctx):
        """Permute the labels."""
        super().prepare(ctx)
        self._derive(ctx)

    def _derive(self, ctx):
        rows = ctx.forget.rows
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(ctx.seed)).to(rows.device)
        store = ctx.forget.store.relabelled(rows, order)
        self._view = store.view(store.rows, ctx.seed, True)

    def step(self, ctx, i):
        """One native update."""
        return ctx.adapter.update(self._view.batch(ctx.batch_size))

    def state(self):
        """The generator of the batches; the permutation follows from the seed."""
        return {"view": self._view.state()}

    def set_state(self, ctx, state):
        """The same permutation again."""
        self._derive(ctx)
        self._view.set_state(state["view"])
