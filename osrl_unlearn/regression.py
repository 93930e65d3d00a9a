"""Regressions on the data: small networks, random features, and output layers by least squares."""
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from osrl_unlearn.data.views import thinned
from osrl_unlearn.generators import private_torch

BATCH, HIDDEN = 512, 128  # of the networks
FITTED, FEATURES, RIDGE = 8192, 512, 1e-3  # of the random features


class Regression:
    """Mean of ``target`` given ``x``: a few small networks, which start differently.

    Args:
        x: inputs, shape [rows, dim]; target: shape [rows] or [rows, outputs]; rows: which to fit, int64 tensor.
        steps: minibatches; heads: networks; seed: of the private generator.
    """

    last = ()  # layers behind the linear ones

    def __init__(self, x, target, rows, steps, heads, seed):
        device, outputs = x.device, target.shape[1] if target.dim() > 1 else 1
        self._mean, self._std = x[rows].mean(0), x[rows].std(0).clamp(min=1e-6)
        self._scale = self.scale_of(target[rows]).clamp(min=1e-6)
        self._flat = target.dim() == 1
        generator = torch.Generator().manual_seed(int(seed))
        with private_torch(int(seed), device), torch.enable_grad():
            self._heads = torch.nn.ModuleList([torch.nn.Sequential(
                torch.nn.Linear(x.shape[1], HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, HIDDEN),
                torch.nn.ReLU(), torch.nn.Linear(HIDDEN, outputs), *self.last) for _ in range(heads)]).to(device)
            optimizer = torch.optim.Adam(self._heads.parameters(), lr=1e-3)
            for _ in range(steps):
                drawn = rows[torch.randint(len(rows), (BATCH,), generator=generator).to(device)]
                value, wanted = self._standardise(x[drawn]), target[drawn] / self._scale
                loss = sum(F.mse_loss(h(value).view_as(wanted), wanted) for h in self._heads)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _standardise(self, x):
        return (x - self._mean) / self._std

    @torch.no_grad()
    def __call__(self, x):
        """Predictions of every head in units of the target. Shape [heads, n] or [heads, n, outputs]."""
        x = self._standardise(x)
        found = torch.stack([h(x) for h in self._heads]) * self._scale
        return found.squeeze(-1) if self._flat else found


class ToGo(Regression):
    """What follows a transition, of which there is none below 0."""

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


class RandomFeatures:
    """Mean of ``target`` given ``x``: ridge regression on random features (Rahimi & Recht, NeurIPS 2008).

    The features are linear and ReLU ones whose kinks lie at rows of the data. Near the data this is as good as small
    networks, in a tenth of the time; far from them it says something else than networks do.

    Args:
        x: inputs, shape [rows, dim]; target: shape [rows]; rows: which to fit, int64 tensor, of which FITTED are taken.
        seed: of the features; device: of the fit; default: that of ``x``.
    """

    def __init__(self, x, target, rows, seed, device=None):
        generator, rows = torch.Generator().manual_seed(int(seed)), thinned(rows, FITTED)
        x, target = (column[rows].to(x.device if device is None else device) for column in (x, target))
        self._mean, self._std = x.mean(0), x.std(0).clamp(min=1e-6)
        x = self.standardise(x)
        self._directions = torch.randn(x.shape[1], FEATURES, generator=generator).to(x)
        at = torch.randint(len(x), (FEATURES,), generator=generator).to(x.device)
        self._kinks = (x[at] * self._directions.T).sum(-1)
        with private_torch(int(seed), x.device):
            self._out = torch.nn.Linear(FEATURES + x.shape[1], 1).to(x)
        refit([self._out], [(lambda: self._out(self._features(x)), target)], RIDGE)

    def standardise(self, x):
        """``x`` in units of the spread of the fitted rows."""
        return (x - self._mean) / self._std

    def _features(self, x):
        return torch.cat([F.relu(x @ self._directions - self._kinks), x], -1)

    @torch.no_grad()
    def __call__(self, x):
        """Predictions. Shape [n]."""
        return self._out(self._features(self.standardise(x))).squeeze(-1)


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
