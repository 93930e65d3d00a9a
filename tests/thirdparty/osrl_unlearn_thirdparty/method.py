"""An unlearning method of a third party."""
from osrl_unlearn.methods.base import Method


class Descent(Method):
    """OSRL's own updates on the retain set."""

    name = "thirdparty_descent"
    summary = "train on the retain set"

    def step(self, ctx, i):
        """One native update."""
        return ctx.adapter.update(ctx.retain.batch(ctx.batch_size))
