"""Training from scratch on the retain set: exact unlearning, at full price."""
from osrl_unlearn.methods.base import NoOptions
from osrl_unlearn.methods.fine_tune import FineTune


class Retrain(FineTune):
    """A freshly initialised agent, trained by OSRL's own updates on the retain set."""

    name = "retrain"
    summary = "train from scratch on the retain set (the exact reference)"
    Options = NoOptions
    default_budget = 1.0

    def prepare(self, ctx):
        """New weights, optimisers and duals."""
        ctx.adapter.reset()
        super().prepare(ctx)
