"""Where trajectories, segments and transitions begin and end in DSRL's flat arrays."""
from typing import NamedTuple

import numpy as np

from osrl_unlearn.errors import ConfigError, DataError

UNITS = ("trajectory", "segment", "transition")


class Units(NamedTuple):
    """Stretches of rows that are poisoned or forgotten as a whole. All arrays have shape [units]."""
    trajectory: np.ndarray  # id of the trajectory that the unit is part of
    starts: np.ndarray      # first row in the data
    stops: np.ndarray       # one past the last row
    offsets: np.ndarray     # first row, counted from the start of the trajectory
    returns: np.ndarray     # sum of rewards
    costs: np.ndarray       # sum of costs

    @property
    def lengths(self):
        """Number of rows of each. Shape [units]."""
        return self.stops - self.starts

    def take(self, which):
        """The units at positions ``which``."""
        return Units(*(column[which] for column in self))

    def rows(self):
        """Row numbers of all units, concatenated in order. Shape [rows]."""
        lengths = self.lengths
        first = np.repeat(self.starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return (first + np.arange(lengths.sum())).astype(np.int64)


class Transitions:
    """Every row as a unit, with all that :class:`Units` has.

    There are as many as rows, which need not fit in memory: a column is made when it is asked for, of small numbers.
    """

    def __init__(self, index, returns, costs):
        self._index, self.returns, self.costs = index, returns, costs
        self._dtype = smallest(index.rows)

    trajectory = property(lambda self: self._index.row_ids(), doc="See :class:`Units`.")
    starts = property(lambda self: np.arange(self._index.rows, dtype=self._dtype), doc="See :class:`Units`.")
    stops = property(lambda self: np.arange(1, self._index.rows + 1, dtype=self._dtype), doc="See :class:`Units`.")
    lengths = property(lambda self: np.ones(self._index.rows, np.int8), doc="See :class:`Units`.")

    @property
    def offsets(self):
        """See :class:`Units`."""
        offsets = self.starts
        offsets -= np.repeat(self._index.starts.astype(self._dtype), self._index.stops - self._index.starts)
        return offsets

    def take(self, which):
        """The units at positions ``which``, as :class:`Units`."""
        return Units(*(getattr(self, name)[which] for name in Units._fields))

    def rows(self):
        """Row numbers of all units. Shape [rows]."""
        return np.arange(self._index.rows)


def smallest(rows):
    """The dtype of numbers of ``rows`` rows."""
    return np.int32 if rows < 2 ** 31 else np.int64


class TrajectoryIndex:
    """Trajectories of a data dictionary, cut at ``terminals | timeouts``; a tail without either is one more.

    Args:
        data: DSRL's dictionary; "rewards", "costs", "terminals" and "timeouts" of shape [rows].
        ids: id of the trajectory of each row, shape [rows]; default: 0, 1, ... in file order.
    """

    def __init__(self, data, ids=None):
        done = np.asarray(data["terminals"]).astype(bool) | np.asarray(data["timeouts"]).astype(bool)
        if not len(done):
            raise DataError("the dataset holds no transitions")
        stops = np.flatnonzero(done) + 1
        if not len(stops) or stops[-1] != len(done):
            stops = np.append(stops, len(done))
        self.starts, self.stops = np.concatenate([[0], stops[:-1]]), stops
        self.ids = np.arange(len(stops)) if ids is None else np.asarray(ids)[self.starts].astype(np.int64)
        self.rows = len(done)
        self._rewards, self._costs = data["rewards"], data["costs"]

    def units(self, unit, segment_length=10):
        """All units of one kind as :class:`Units` or :class:`Transitions`.

        The last segment of a trajectory may be shorter.
        """
        if unit not in UNITS:
            raise ConfigError("unknown unit '{}': choose one of {}".format(unit, ", ".join(UNITS)))
        if unit == "transition":
            return Transitions(self, *(values if values.dtype.kind == "f" else values.astype(np.float64)
                                       for values in map(np.asarray, (self._rewards, self._costs))))
        lengths = self.stops - self.starts
        size = lengths.max() if unit == "trajectory" else segment_length
        counts = -(-lengths // size)
        owner = np.repeat(np.arange(len(lengths)), counts)
        nth = np.arange(len(owner)) - np.repeat(np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        offsets = nth * size
        starts = self.starts[owner] + offsets
        stops = np.minimum(starts + size, self.stops[owner])
        return Units(self.ids[owner], starts, stops, offsets,
                     np.add.reduceat(np.asarray(self._rewards, np.float64), starts),
                     np.add.reduceat(np.asarray(self._costs, np.float64), starts))

    def row_ids(self):
        """Id of the trajectory of each row. Shape [rows]."""
        return np.repeat(self.ids, self.stops - self.starts)


def to_go(values, done, gamma):
    """Discounted sum of ``values`` from each row to the end of its trajectory. Shapes [rows]; numpy."""
    values = np.asarray(values, np.float64)
    stops = np.flatnonzero(done) + 1
    if not len(stops) or stops[-1] != len(values):
        stops = np.append(stops, len(values))
    starts = np.concatenate([[0], stops[:-1]])
    out = np.zeros(len(values))
    for back in range(int((stops - starts).max())):
        rows = (stops - 1 - back)[stops - 1 - back >= starts]
        following = rows + 1 < stops[stops - 1 - back >= starts]
        out[rows] = values[rows] + gamma * np.where(following, out[np.minimum(rows + 1, len(out) - 1)], 0)
    return out
