"""What every detector is: data in, one score per row out."""
import dataclasses
import math
from abc import ABC, abstractmethod
from typing import ClassVar, FrozenSet, Tuple

import numpy as np
from scipy import stats

from osrl_unlearn.options import option

TAIL = 0.1       # share of a trajectory's rows that may be all that is poisoned of it
BEYOND = 5       # standard deviations above the clean centre that are worth attention
CENTRAL = 0.5    # share of the trajectories that the null is fitted to


@dataclasses.dataclass
class DetectorOptions:
    """Options of detectors that learn nothing: none."""


@dataclasses.dataclass
class ModelOptions(DetectorOptions):
    """Options of detectors that fit a model to the data."""
    steps: int = option(2000, "updates of each model that the detector fits")

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError("steps must be at least 1, got {}".format(self.steps))


class Detector(ABC):
    """Says how suspicious every row is. It sees the data, and what it ``needs``: "agent", or nothing more.

    Scores are at least 0 and grow with suspicion; what they count is up to the detector. ``floor`` says how much is
    worth anybody's attention, however surely it is not chance: the mean score of a whole trajectory, and of the most
    suspicious tenth of its rows. Detectors must not change what they are given, and must draw random numbers from
    generators of their own, seeded with ``seed``.
    """

    name: ClassVar[str]
    needs: ClassVar[FrozenSet[str]] = frozenset()
    floor: ClassVar[Tuple[float, float]]
    Options: ClassVar[type] = DetectorOptions

    def __init__(self, options=None):
        self.options = options if options is not None else self.Options()
        self.without = None  # trajectories that are known to be poisoned, bool [trajectories]: not to be learned from
        self.label = None  # what a progress bar calls the detector, if there is to be one

    def check(self, adapter):
        """Raise ConfigError if the detector cannot work with ``adapter``; None stands for no agent."""

    @abstractmethod
    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """How suspicious each row is. Shape [rows].

        Args:
            data: DSRL's dictionary of arrays, shapes [rows] and [rows, dim].
            index: the :class:`~osrl_unlearn.data.trajectories.TrajectoryIndex` of ``data``.
            seed: seed of everything random.
            adapter: the :class:`~osrl_unlearn.adapters.base.Adapter` of an agent trained on ``data``, or None.
            reward_scale, cost_scale: what rewards and costs were multiplied by when that agent was trained.

        Raises:
            ConfigError: the detector needs an agent, or one with other capabilities.
        """

    def parts(self, data, index, seed, **agent):
        """The detectors that this one consists of, with their scores: [(detector, scores [rows]), ...]."""
        return [(self, self.scores(data, index, seed, **agent))]


def ratios(scores, index, floor):
    """Scores of trajectories in units of what is worth attention. Shapes [rows] -> [trajectories]."""
    whole = np.add.reduceat(scores.astype(np.float64), index.starts) / (index.stops - index.starts)
    few = np.array([np.sort(scores[a:b])[-math.ceil(TAIL * (b - a)):].mean()
                    for a, b in zip(index.starts, index.stops)])
    out = np.zeros(len(index.starts))
    for values, least in zip((whole, few), floor):
        centre, spread = clean_majority(values)
        out = np.maximum(out, values / max(least, centre + BEYOND * spread))
    return out


def clean_majority(values):
    """Centre and spread (as a standard deviation) of the densest half of ``values``: Rousseeuw's shorth."""
    ordered = np.sort(values)
    size = math.ceil(CENTRAL * len(ordered))
    widths = ordered[size - 1:] - ordered[:len(ordered) - size + 1]
    first = int(np.argmin(widths))
    return (float(np.median(ordered[first:first + size])),
            float(widths[first] / (2 * stats.norm.ppf((1 + CENTRAL) / 2))))
