"""What every attack is: arrays in, arrays out."""
import dataclasses
from abc import ABC, abstractmethod
from typing import ClassVar, FrozenSet

import numpy as np

from osrl_unlearn.data.trajectories import smallest
from osrl_unlearn.options import option


KINDS = ("label", "action", "trigger", "state", "coverage", "camouflage")


@dataclasses.dataclass
class AttackOptions:
    """Options that every attack has."""
    segment_length: int = option(10, "rows per segment, for --poison.unit segment")

    def __post_init__(self):
        if self.segment_length < 1:
            raise ValueError("segment_length must be at least 1, got {}".format(self.segment_length))


class Attack(ABC):
    """A data-poisoning attack on a logged dataset.

    Subclasses state in ``threat`` what the attacker sees and may change, in ``kind`` what sort of attack it is (one of
    KINDS), and in ``columns`` which columns they touch. They are called by
    :mod:`osrl_unlearn.data.poison` only, must not change what they are given, and must draw random numbers from the
    generator they are given and from nowhere else.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    threat: ClassVar[str]
    columns: ClassVar[FrozenSet[str]]
    units: ClassVar[FrozenSet[str]] = frozenset({"trajectory", "segment", "transition"})
    adds_rows: ClassVar[bool] = False
    removes_rows: ClassVar[bool] = False
    Options: ClassVar[type] = AttackOptions

    def __init__(self, options=None):
        self.options = options if options is not None else self.Options()

    def prepare(self, data, seed):
        """Look at the data once before anything is chosen, and learn from them what the attack needs.

        ``data``: DSRL's columns, whole trajectories, the whole dataset or an even sample of it if that is large.
        """

    def state(self):
        """What :meth:`prepare` learned that repeating it would not give bit for bit: tensors and plain values.

        Empty if it has not been called: at rate 0 it is not.
        """
        return {}

    def set_state(self, state):
        """Called instead of :meth:`prepare`, with what :meth:`state` returned."""

    def facts(self):
        """What the attack found out in :meth:`prepare`, as plain values; the manifest records it."""
        return {}

    def trigger(self):
        """The :class:`~osrl_unlearn.data.trigger.Trigger` that switches the bad behaviour on, or None."""
        return None

    @abstractmethod
    def select(self, units, count, rng):
        """Choose ``count`` of ``units``, or all that the attack can use if those are fewer.

        ``units``: :class:`~osrl_unlearn.data.trajectories.Units`, of arrays [units]. Returns positions, sorted.
        """

    def parts(self, count, rng):
        """A label of each of ``count`` chosen units, if the attack treats them differently; the manifest has them."""
        return None

    @abstractmethod
    def corrupt(self, rows, rng):
        """New values for the chosen rows: {column: array [rows, ...]} for a subset of ``columns``.

        ``rows`` holds DSRL's columns and "step" (the row's number in its trajectory) and "part" (the label of its unit,
        if :meth:`parts` gives any). Large choices come in blocks of whole units, each with a generator that is
        seeded anew; that of the first draws the same numbers as the one that :meth:`select` was given.
        """


def most_costly(units, count, rng, among=None):
    """Positions of the ``count`` units with the highest cost; ties by return, then at random.

    Units without any cost are never chosen: hiding a cost that is not there poisons nothing. ``among``: positions of
    those that may be chosen; default: all.
    """
    order = _shuffled(units, rng, among)
    order = order[units.costs[order] > 0]
    return np.sort(order[np.lexsort((-units.returns[order], -units.costs[order]))[:count]])


def least_costly(units, count, rng):
    """Positions of the ``count`` units with the lowest cost per row; of equal ones those with the highest return."""
    order = _shuffled(units, rng)
    lengths = units.lengths[order]
    return np.sort(order[np.lexsort((-(units.returns[order] / lengths), units.costs[order] / lengths))[:count]])


def at_random(units, count, rng):
    """Positions of ``count`` units, each as likely as any other."""
    return np.sort(rng.choice(len(units.costs), min(count, len(units.costs)), replace=False))


def _shuffled(units, rng, among=None):
    """Positions of all units, or those ``among`` them, in random order; there may be as many as rows of a file."""
    count = len(units.costs)
    order = np.arange(count, dtype=smallest(count)) if among is None else among.astype(smallest(count))
    rng.shuffle(order)
    return order
