"""Models of a dataset that its poisoned minority does not pull along: fitted out of fold, by majority of trajectories.

Every row is scored by a network that has seen no row of its trajectory. What disagrees within the data is settled by
iteratively reweighted least squares (Holland & Welsch, Comm. Stat. 1977) with one weight per trajectory, not per row:
a trajectory that the others contradict loses its weight, however many rows of it lie where they are contradicted. The
most costly trajectories have most of the costly rows, so a vote of rows would be lost where one of trajectories is won.
"""
import numpy as np
import torch
from scipy.stats import iqr

FOLDS = 2
ROUNDS = 10
VOTES = 3            # of them, in which trajectories vote before any is distrusted
LEAST_DOUBT = 0.02   # what no trajectory goes below, so that none has all votes
BATCH = 512
HIDDEN = 64
BINS = 8
LEARNING_RATE = 3e-3
SAMPLE = 100_000   # rows that quantiles are taken of
CHUNK = 1 << 14    # rows that are scored at a time
PER_ROUND = 50     # rows per trajectory, at most about, that weights are computed from


def columns(data, names):
    """A function: row numbers -> the columns ``names`` side by side, float32. Shape [n, dim]."""
    def read(rows):
        return np.concatenate([np.asarray(data[name][rows], np.float32).reshape(len(rows), -1) for name in names], 1)
    return read


def sample(rows):
    """At most about SAMPLE of ``rows`` row numbers, at equal distances."""
    return np.arange(0, rows, -(-rows // SAMPLE))


def location_and_scale(values):
    """Median and interquartile range / 1.35 of each column; if most values are the same, the others' median distance.

    Shapes [n, dim] -> [dim], [dim]. A quarter of the values may be anything.
    """
    out = []
    for column in np.asarray(values, np.float64).T:
        middle = np.median(column)
        other = np.abs(column - middle)[column != middle]
        scale = iqr(column) / 1.35 if 2 * len(other) >= len(column) else np.median(other) if len(other) else 1.0
        out.append((middle, scale))
    location, scale = np.array(out, np.float32).T
    return location, np.maximum(scale, 1e-6)


def out_of_fold(inputs, targets, index, seed, steps, outputs, loss, judge=None, doubt=None, without=None,
                majority=True):
    """Score of every row under a network that was fitted to other trajectories. Shape [rows].

    Args:
        inputs, targets: functions of row numbers that return float32 arrays [n, dim].
        index: the TrajectoryIndex of the data.
        seed: seed of folds, weights and batches.
        steps: updates, divided into ROUNDS rounds with other weights of trajectories each.
        outputs: numbers that the network returns for each row.
        loss: (prediction [..., n, outputs], target [..., n, dim]) -> losses [..., n].
        judge: the same for scores, which also decide whom to :func:`trust`; default: ``loss``.
        doubt: the same for how disputed a row is, whoever is right. If given, the first VOTES rounds only see to it
            that every trajectory has one :func:`vote`.
        without: trajectories that are not learned from at all, shape [trajectories], bool.
        majority: whether to :func:`trust` some trajectories more than others.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    judge = judge or loss
    lengths = index.stops - index.starts
    owner = np.repeat(np.arange(len(lengths)), lengths)
    few = np.arange(0, index.rows, max(1, int(lengths.mean() / PER_ROUND)))
    fold = rng.permutation(len(lengths)) % FOLDS
    encode = Bins(inputs(sample(index.rows)))
    network = Networks([encode.size, HIDDEN, HIDDEN, outputs], generator)
    optimizer = torch.optim.Adam(network.parameters, lr=LEARNING_RATE)

    def score(where, judge):
        out = np.empty(len(where), np.float32)
        with torch.no_grad():
            for number in range(FOLDS):
                mine = np.flatnonzero(fold[owner[where]] == number)
                for part in np.array_split(mine, -(-len(mine) // CHUNK)) if len(mine) else ():
                    prediction = network.one(number, encode(torch.from_numpy(inputs(where[part]))))
                    out[part] = judge(prediction, torch.from_numpy(targets(where[part]))).numpy()
        return out

    def means(judge):
        totals = np.bincount(owner[few], score(few, judge), len(lengths))
        return totals / np.maximum(np.bincount(owner[few], minlength=len(lengths)), 1)

    per_round, weights = -(-steps // ROUNDS), np.ones(len(lengths))
    for step in range(steps):
        if majority and step and step % per_round == 0:
            voting = doubt is not None and step <= VOTES * per_round
            weights = vote(means(doubt)) if voting else trust(means(judge))
        if step % per_round == 0:
            mass = weights * lengths if without is None else weights * lengths * ~without
            chances = [np.cumsum(np.where(fold == number, 0, mass)) for number in range(FOLDS)]
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, max(0.02, 2 * (1 - step / steps)))
        batch = np.concatenate([draw(c, index, rng) for c in chances])
        prediction = network(encode(torch.from_numpy(inputs(batch)).view(FOLDS, BATCH, -1)))
        value = loss(prediction, torch.from_numpy(targets(batch)).view(FOLDS, BATCH, -1)).mean() * FOLDS
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return score(np.arange(index.rows), judge)


def draw(chances, index, rng):
    """BATCH row numbers: trajectories by the cumulative ``chances``, each row in them as likely as any other."""
    which = np.searchsorted(chances, rng.random(BATCH) * chances[-1], side="right").clip(max=len(chances) - 1)
    lengths = (index.stops - index.starts)[which]
    return index.starts[which] + (rng.random(BATCH) * lengths).astype(np.int64)


def trust(losses):
    """Weights of trajectories with mean ``losses``: 1 in the better half, beyond it (median / loss)^8.

    Shape [trajectories]. The better half settles what is disputed. Where the loss falls off more slowly, or where the
    better half is weighted too, the majority is not always found within so few rounds.
    """
    middle = max(float(np.median(losses)), 1e-9)
    return (middle / np.maximum(losses, middle)) ** 8


def vote(doubts):
    """Weights that give every trajectory one vote where labels are disputed, however many of its rows lie there.

    ``doubts`` are how disputed its rows are on average. Shapes [trajectories].
    """
    return 1 / (doubts + LEAST_DOUBT)


def distance(prediction, target):
    """Mean absolute error over dimensions, as scores for :func:`out_of_fold`."""
    return (prediction - target).abs().mean(-1)


def huber(delta):
    """Huber's loss for :func:`out_of_fold`, mean over dimensions: quadratic up to ``delta``, then linear."""
    def loss(prediction, target):
        error = (prediction - target).abs()
        return torch.where(error < delta, 0.5 * error ** 2 / delta, error - 0.5 * delta).mean(-1)
    return loss


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


class Networks:
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
