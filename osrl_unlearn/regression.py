"""Regressions on the data: small networks, and output layers by least squares."""
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from osrl_unlearn.generators import private_torch

BATCH, HIDDEN = 512, 128


class Regression:
    """Mean of ``target`` given ``x``: a few small networks, which start differently.

    Args:
        x: inputs, shape [rows, dim]; target: shape [rows] or [rows, outputs]; rows: which to fit, int64 tensor.
        steps: minibatches; heads: networks; seed: of the private generator.
        device: of the networks and their inputs; default: that of ``x``.
    """

    last = ()  # layers behind the linear ones

    def __init__(self, x, target, rows, steps, heads, seed, device=None):
        device, outputs = x.device if device is None else device, target.shape[1] if target.dim() > 1 else 1
        self.mean, self.std = x[rows].mean(0).to(device), x[rows].std(0).clamp(min=1e-6).to(device)
        self._scale = self.scale_of(target[rows]).clamp(min=1e-6).to(device)
        self._flat = target.dim() == 1
        generator = torch.Generator().manual_seed(int(seed))
        with private_torch(int(seed), device), torch.enable_grad():
            self._heads = torch.nn.ModuleList([torch.nn.Sequential(
                torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, HIDDEN),
                torch.nn.ReLU(), torch.nn.Linear(HIDDEN, outputs), *self.last) for _ in range(heads)]).to(device)
            optimizer = torch.optim.Adam(self._heads.parameters(), lr=1e-3)
            for _ in range(steps):
                drawn = rows[torch.randint(len(rows), (BATCH,), generator=generator).to(x.device)]
                value, wanted = self.standardise(x[drawn].to(device)), target[drawn].to(device) / self._scale
                loss = sum(F.mse_loss(h(value).view_as(wanted), wanted) for h in self._heads)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def standardise(self, x):
        """``x`` in units of the spread of the fitted rows."""
        return (x - self.mean) / self.std

    @torch.no_grad()
    def __call__(self, x):
        """Predictions of every head in units of the target. Shape [heads, n] or [heads, n, outputs]."""
        x = self.standardise(x)
        found = torch.stack([h(x) for h in self._heads]) * self._scale
        return found.squeeze(-1) if self._flat else found


class ToGo(Regression):
    """What the safety gate and the screening share: what follows a transition, of which there is none below 0."""

    @staticmethod
    def scale_of(target):
        """Its mean."""
        return target.mean()


class Behaviour(Regression):
    """Behaviour cloning: the logged actions of some states, bounded as these are."""

    last = (torch.nn.Tanh(),)

    @staticmethod
    def scale_of(target):
        """The largest action."""
        return target.abs().max()


@contextmanager
def one_thread():
    """One thread of torch inside, as many as before after it.

    OSRL's scripts ask for four; with more threads than cores, products in float64 take 600 times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
@torch.no_grad()
def refit(layers, batches, ridge):
    """Fit linear layers of one output each to a target, by ridge regression on what they are given now.

    Args:
        layers: list of torch.nn.Linear, each with one output; changed in place. Of one without a bias the fit has none.
        batches: [(function that calls each of the layers once on n inputs, target [n])], one batch at a time.
        ridge: the penalty of the weights, in units of the inputs' mean variance (without a bias: mean square).
    """
    inputs, sums = {}, [0.0 for _ in layers]
    handles = [layer.register_forward_hook(lambda layer, given, out: inputs.update({layer: given[0]}))
               for layer in layers]
    try:
        for call, target in batches:
            call()
            for n, layer in enumerate(layers):
                # All that least squares needs is in one matrix of inner products.
                x = torch.cat([inputs[layer], torch.ones_like(target)[:, None], target[:, None]], -1).double()
                sums[n] = sums[n] + x.T @ x
    finally:
        for handle in handles:
            handle.remove()
    for layer, products in zip(layers, sums):
        square, sum_, cross = (products[:-2, column] for column in (slice(-2), -2, -1))
        count, total = products[-2, -2], products[-2, -1]
        if layer.bias is not None:
            square = square - torch.outer(sum_, sum_) / count
            cross = cross - sum_ * total / count
        penalty = (ridge * square.diagonal().mean()).clamp(min=1e-12)
        weight = torch.linalg.solve(square + penalty * torch.eye(len(square)).to(square), cross)
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_((total - weight @ sum_) / count)
