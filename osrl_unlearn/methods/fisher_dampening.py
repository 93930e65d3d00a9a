"""Selective synaptic dampening (SSD: Foster et al., AAAI 2024, arXiv 2308.07707): shrink what the forget set relies on.

The importance of a parameter for some data is the diagonal of the Fisher information, estimated by the mean square of
the gradients of batches. Parameters with I_forget > alpha I_retain are multiplied by min(beta I_retain / I_forget, 1)
(there beta is called lambda); all others stay.

Departures. The loss is the agent's own, part by part, in place of a classifier's likelihood. Importance is compared
with that for the retain set; the paper takes all training data. The paper reads both sets once; here half of the
budget's batches are drawn from each. Target networks are set to the dampened networks, which they would follow.
"""
import copy
import dataclasses

import torch

from osrl_unlearn.errors import ConfigError
from osrl_unlearn.methods.base import NETWORKS, Method
from osrl_unlearn.options import option


@dataclasses.dataclass
class FisherDampeningOptions:
    """The paper's constants for its ResNet experiments."""
    alpha: float = option(10.0, "how many times as important for the forget set as for the retain set a parameter must "
                                "be to be dampened")
    beta: float = option(1.0, "dampening constant: factor of I_retain / I_forget")

    def __post_init__(self):
        if not self.alpha >= 0 or not self.beta >= 0:
            raise ValueError("alpha and beta must not be negative, got {} and {}".format(self.alpha, self.beta))


class FisherDampening(Method):
    """No training: every update of the budget is one batch whose gradients are only squared, the last one dampens."""

    name = "fisher_dampening"
    summary = "shrink the parameters that matter for the forget set more than for the retain set (SSD)"
    Options = FisherDampeningOptions

    def prepare(self, ctx):
        """Constants of the retain set."""
        if ctx.steps < 2:
            raise ConfigError("'{}' needs a budget of at least 2: a batch of each set".format(self.name))
        ctx.adapter.set_data_constants(ctx.retain)
        self.importance = {kind: {role: [torch.zeros_like(p) for p in ctx.adapter.parameters(role)]
                                  for role in NETWORKS if role in ctx.adapter.parts} for kind in ("forget", "retain")}

    def step(self, ctx, i):
        """Even steps square gradients on the forget set, odd ones on the retain set."""
        kind, view = (("forget", ctx.forget), ("retain", ctx.retain))[i % 2]
        gradients = ctx.adapter.gradients(view.batch(ctx.batch_size))
        for role, squares in self.importance[kind].items():
            for square, gradient in zip(squares, gradients[role]):
                if gradient is not None:
                    square += gradient ** 2
        if i + 1 < ctx.steps:
            return {}
        # An odd budget holds one batch of the forget set more.
        return {"dampened": self.dampen(ctx.adapter, (i + 1) // 2 / (i // 2 + 1))}

    @torch.no_grad()
    def dampen(self, adapter, batches):
        """Shrink; ``batches``: of the retain set per one of the forget set. Returns the share of shrunk parameters."""
        shrunk = total = 0
        for role, squares in self.importance["forget"].items():
            for parameter, forget, retain in zip(adapter.parameters(role), squares, self.importance["retain"][role]):
                forget = forget * batches
                chosen = forget > self.options.alpha * retain
                factor = (self.options.beta * retain / forget.clamp(min=1e-30)).clamp(max=1.0)
                parameter.copy_(torch.where(chosen, factor * parameter, parameter))
                shrunk, total = shrunk + chosen.sum().item(), total + chosen.numel()
        adapter.sync_targets()
        return shrunk / total

    def state(self):
        """The sums of squares so far."""
        return {"importance": copy.deepcopy(self.importance)}

    def set_state(self, ctx, state):
        """Go on summing."""
        device = ctx.adapter.device  # saved states are read to the CPU
        self.importance = {kind: {role: [square.clone().to(device) for square in squares]
                                  for role, squares in roles.items()} for kind, roles in state["importance"].items()}
