"""What every attack is: arrays in, arrays out."""
import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, FrozenSet

import numpy as np

from osrl_unlearn.options import option


@dataclasses.dataclass
class AttackOptions:
    """Options that every attack has."""
    segment_length: int = option(10, "rows per segment, for --poison.unit segment")

    def __post_init__(self):
        if self.segment_length < 1:
            raise ValueError("segment_length must be at least 1, got {}".format(self.segment_length))


class Attack(ABC):
    """A data-poisoning attack on a logged dataset.

    Subclasses state in ``threat`` what the attacker sees and may change, and in ``columns`` which columns they touch.
    They are called by :func:`osrl_unlearn.data.poison.poison` only, must not change what they are given, and must draw
    random numbers from the generator they are given and from nowhere else.
    """

    name: ClassVar[str]
    threat: ClassVar[str]
    columns: ClassVar[FrozenSet[str]]
    units: ClassVar[FrozenSet[str]] = frozenset({"trajectory", "segment", "transition"})
    adds_rows: ClassVar[bool] = False
    Options: ClassVar[type] = AttackOptions

    def __init__(self, options=None):
        self.options = options if options is not None else self.Options()

    @abstractmethod
    def select(self, units, count, rng):
        """Choose at most ``count`` of ``units`` (a Units of arrays [units]); return their positions."""

    @abstractmethod
    def corrupt(self, rows, rng):
        """New values for the chosen rows: {column: array [rows, ...]} for a subset of ``columns``."""


def most_costly(units, count, rng):
    """Positions of the ``count`` units with the highest cost; ties by return, then at random.

    Units without any cost are never chosen: hiding a cost that is not there poisons nothing.
    """
    shuffle = rng.permutation(len(units.costs))
    order = shuffle[np.lexsort((-units.returns[shuffle], -units.costs[shuffle]))]
    return np.sort(order[units.costs[order] > 0][:count])
