"""Models of a dataset that its poisoned minority does not pull along: fitted out of fold, by majority of trajectories.

Every row is scored by a model that has seen no row of its trajectory. What disagrees within the data is settled by
iteratively reweighted least squares (Holland & Welsch, Comm. Stat. 1977) with one weight per trajectory, not per row:
a trajectory that the others contradict loses its weight, however many rows of it lie where they are contradicted. The
most costly trajectories have most of the costly rows, so a vote of rows would be lost where one of trajectories is won.
"""
import numpy as np
import torch
from scipy.stats import iqr
from tqdm import tqdm

FOLDS = 2
ROUNDS = 10
VOTES = 3            # of them, in which trajectories vote before any is distrusted
LEAST_DOUBT = 0.02   # what no trajectory goes below, so that none has all votes
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


def some_of_each(index):
    """Row numbers at equal distances, about PER_ROUND for each trajectory of mean length."""
    return np.arange(0, index.rows, max(1, int((index.stops - index.starts).mean() / PER_ROUND)))


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


def out_of_fold(inputs, targets, index, seed, learner, judge, doubt=None, without=None, majority=True,
                label=None):
    """Score of every row under a model that was fitted to other trajectories. Shape [rows].

    Args:
        inputs, targets: functions of row numbers that return float32 arrays [n, dim].
        index: the TrajectoryIndex of the data.
        seed: seed of folds, weights and batches.
        learner: what is fitted, a :class:`~osrl_unlearn.detectors.networks.Networks` or
            :class:`~osrl_unlearn.detectors.trees.Trees`, in ``rounds`` rounds with other weights of trajectories each.
        judge: (prediction [n, outputs], target [n, dim]) -> scores [n], which also decide whom to :func:`trust`.
        doubt: the same for how disputed a row is, whoever is right. If given, the first VOTES rounds only see to it
            that every trajectory has one :func:`vote`.
        without: trajectories that are not learned from at all, shape [trajectories], bool.
        majority: whether to :func:`trust` some trajectories more than others.
        label: what a progress bar calls this, or None for no bar.
    """
    rng = np.random.default_rng(seed)
    lengths = index.stops - index.starts
    owner = np.repeat(np.arange(len(lengths)), lengths)
    few = some_of_each(index)
    fold = rng.permutation(len(lengths)) % FOLDS
    learner.start(inputs, targets, index, seed, rng)

    def score(where, judge):
        out = np.empty(len(where), np.float32)
        for number in range(FOLDS):
            mine = np.flatnonzero(fold[owner[where]] == number)
            for part in np.array_split(mine, -(-len(mine) // CHUNK)) if len(mine) else ():
                prediction = learner.predict(number, inputs(where[part]))
                out[part] = judge(prediction, torch.from_numpy(targets(where[part]))).numpy()
        return out

    def means(judge):
        totals = np.bincount(owner[few], score(few, judge), len(lengths))
        return totals / np.maximum(np.bincount(owner[few], minlength=len(lengths)), 1)

    weights = np.ones(len(lengths))
    with tqdm(total=learner.rounds + 1, desc=label, disable=label is None, leave=False, dynamic_ncols=True) as bar:
        for done in range(learner.rounds):
            if majority and done:
                weights = vote(means(doubt)) if doubt is not None and done <= VOTES else trust(means(judge))
            wanted = weights if without is None else weights * ~without
            learner.fit([np.where(fold == number, 0, wanted) for number in range(FOLDS)])
            bar.update()
        found = score(np.arange(index.rows), judge)
        bar.update()
    return found


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
