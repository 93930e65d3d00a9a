"""What every detector is: data in, one score per row out."""
import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, FrozenSet, Tuple

from osrl_unlearn.options import option


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
