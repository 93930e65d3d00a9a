"""Gradient ascent on the forget set: the first thing that anybody tries, and what the better methods are measured by.

A baseline of most benchmarks (negative gradient: Golatkar et al., arXiv 1911.04933; GA: Maini et al., arXiv
2401.06121). Here the loss is the agent's own, part by part: the Bellman errors of both critics, the policy's loss and
the generator's. It departs from them in that the gradients are clipped, since a squared error has no upper bound.
"""
import dataclasses

import torch

from osrl_unlearn.methods.base import NETWORKS, Method, UpdateOptions
from osrl_unlearn.options import option


@dataclasses.dataclass
class GradientAscentOptions(UpdateOptions):
    """Bound of the ascent."""
    clip: float = option(1.0, "largest norm of a network's gradient, in units of that norm on a batch of the retain "
                              "set before unlearning")


class GradientAscent(Method):
    """OSRL's own updates on the forget set with the gradients of all networks turned round.

    Every update is one of the budget; the batch that the unit of ``clip`` is measured on is not counted. Multipliers
    (COptiDICE's) and controllers (the PID integrators of BCQ-Lag) are put back after each update: forgotten rows must
    not drive them in either direction. No retained row is trained on, so nothing keeps the agent useful.
    """

    name = "gradient_ascent"
    summary = "climb the agent's own loss on the forget set, with clipped gradients"
    Options = GradientAscentOptions

    def prepare(self, ctx):
        """Constants of the retain set, and the norms that ``clip`` refers to."""
        ctx.adapter.set_data_constants(ctx.retain)
        gradients = ctx.adapter.gradients(ctx.retain.batch(ctx.batch_size))
        self.bounds = {role: self.options.clip * _norm(gradients[role]).item()
                       for role in NETWORKS if role in gradients}

    def step(self, ctx, i):
        """One update on the forget set, upwards; the metrics are the losses that climb."""
        with ctx.adapter.duals_kept():
            return ctx.adapter.update(ctx.forget.batch(ctx.batch_size), edit={
                role: lambda gradients, bound=bound: ascent(gradients, bound) for role, bound in self.bounds.items()})

    def state(self):
        """The norms at which gradients are clipped."""
        return {"bounds": self.bounds}

    def set_state(self, ctx, state):
        """They belong to the agent before unlearning."""
        self.bounds = state["bounds"]


def ascent(gradients, bound):
    """Minus the gradients, together no longer than ``bound``."""
    factor = (bound / _norm(gradients).clamp(min=1e-12)).clamp(max=1.0)
    return [None if g is None else -factor * g for g in gradients]


def _norm(gradients):
    norms = [g.norm() for g in gradients if g is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())
