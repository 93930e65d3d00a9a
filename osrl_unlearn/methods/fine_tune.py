"""Ordinary training on the retain set, from the poisoned agent."""
from osrl_unlearn.methods.base import Method, UpdateOptions


class FineTune(Method):
    """OSRL's own updates on the retain set: the reference that costs nothing to implement."""

    name = "fine_tune"
    summary = "continue OSRL's training on the retain set"
    Options = UpdateOptions

    def prepare(self, ctx):
        """Constants that came from the poisoned data are recomputed on the retain set."""
        ctx.adapter.set_data_constants(ctx.retain)

    def step(self, ctx, i):
        """One native update."""
        return ctx.adapter.update(ctx.retain.batch(ctx.batch_size))
