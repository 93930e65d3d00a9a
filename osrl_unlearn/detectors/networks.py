"""Small perceptrons, a fold each, trained side by side."""
import numpy as np
import torch

from osrl_unlearn.detectors.models import FOLDS, ROUNDS, sample

BATCH = 512
HIDDEN = 64
BINS = 8
LEARNING_RATE = 3e-3


class Networks:
    """A learner for :func:`~osrl_unlearn.detectors.models.out_of_fold`.

    Args:
        steps: updates, divided into ROUNDS rounds.
        outputs: numbers that a network returns for each row.
        loss: (prediction [..., n, outputs], target [..., n, dim]) -> losses [..., n].
    """

    def __init__(self, steps, outputs, loss):
        self._steps, self._outputs, self._loss = steps, outputs, loss
        self._per_round = -(-steps // ROUNDS)
        self.rounds = -(-steps // self._per_round)
        self._done = 0

    def start(self, inputs, targets, index, seed, rng):
        """Take the data and new weights. ``rng`` is where batches come from."""
        self._inputs, self._targets, self._index, self._rng = inputs, targets, index, rng
        self._encode = Bins(inputs(sample(index.rows)))
        self._network = Perceptrons([self._encode.size, HIDDEN, HIDDEN, self._outputs],
                                    torch.Generator().manual_seed(seed))
        self._optimizer = torch.optim.Adam(self._network.parameters, lr=LEARNING_RATE)

    def fit(self, weights):
        """A round of updates with these weights of trajectories: shape [trajectories] for each fold."""
        lengths = self._index.stops - self._index.starts
        chances = [np.cumsum(each * lengths) for each in weights]
        for step in range(self._done, min(self._done + self._per_round, self._steps)):
            for group in self._optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, max(0.02, 2 * (1 - step / self._steps)))
            batch = np.concatenate([draw(c, self._index, self._rng) for c in chances])
            prediction = self._network(self._encode(torch.from_numpy(self._inputs(batch)).view(FOLDS, BATCH, -1)))
            value = self._loss(prediction, torch.from_numpy(self._targets(batch)).view(FOLDS, BATCH, -1)).mean() * FOLDS
            self._optimizer.zero_grad()
            value.backward()
            self._optimizer.step()
        self._done += self._per_round

    def predict(self, number, values):
        """What network ``number`` says of ``values`` [n, dim]. Shape [n, outputs]."""
        with torch.no_grad():
            return self._network.one(number, self._encode(torch.from_numpy(values)))


def draw(chances, index, rng):
    """BATCH row numbers: trajectories by the cumulative ``chances``, each row in them as likely as any other."""
    which = np.searchsorted(chances, rng.random(BATCH) * chances[-1], side="right").clip(max=len(chances) - 1)
    lengths = (index.stops - index.starts)[which]
    return index.starts[which] + (rng.random(BATCH) * lengths).astype(np.int64)


class Bins:
    """Piecewise linear encoding: BINS numbers in [0, 1] per feature, between its quantiles.

    Networks then see thresholds, which decide about most costs (Gorishniy et al., "On Embeddings for Numerical
    Features in Tabular Deep Learning", NeurIPS 2022). Values beyond the extremes are as the extremes.
    """

    def __init__(self, values):
        edges = np.quantile(values, np.linspace(0, 1, BINS + 1), axis=0).astype(np.float32)
        widths = np.maximum(np.diff(edges, axis=0), 1e-4 * np.maximum(edges[-1] - edges[0], 1e-6))
        self._low, self._width = torch.from_numpy(edges[:-1].T.copy()), torch.from_numpy(widths.T.copy())
        self.size = self._low.numel()

    def __call__(self, values):
        """[..., dim] -> [..., dim * BINS]"""
        return ((values[..., None] - self._low) / self._width).clamp_(0, 1).flatten(-2)


class Perceptrons:
    """FOLDS perceptrons of the same ``sizes`` that are trained side by side, much faster than one after the other."""

    def __init__(self, sizes, generator):
        self.parameters = []
        for fan_in, fan_out in zip(sizes[:-1], sizes[1:]):
            bound = (3 / fan_in) ** 0.5
            self.parameters += [(2 * torch.rand(FOLDS, fan_in, fan_out, generator=generator) - 1) * bound,
                                torch.zeros(FOLDS, 1, fan_out)]
        for parameter in self.parameters:
            parameter.requires_grad_(True)

    def __call__(self, values):
        """All networks on batches of their own. Shape [FOLDS, n, inputs] -> [FOLDS, n, outputs]."""
        for layer in range(0, len(self.parameters), 2):
            values = torch.baddbmm(self.parameters[layer + 1], torch.relu(values) if layer else values,
                                   self.parameters[layer])
        return values

    def one(self, number, values):
        """One network. Shape [n, inputs] -> [n, outputs]."""
        for layer in range(0, len(self.parameters), 2):
            values = torch.addmm(self.parameters[layer + 1][number], torch.relu(values) if layer else values,
                                 self.parameters[layer][number])
        return values
