"""Poison a DSRL file of any size: of every column only a bounded piece is in memory at a time.

The result, read by DSRL, is bit for bit what :func:`~osrl_unlearn.data.poison.poison` makes of the file read by DSRL.
"""
import hashlib

import h5py
import numpy as np
from tqdm import tqdm

from osrl_unlearn.data.dataset import check_file
from osrl_unlearn.data.manifest import DERIVED
from osrl_unlearn.data.poison import REQUIRED, Plan
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.errors import ConfigError, DataError

PIECE = 1 << 24  # bytes of a column that are read at a time; a row of the file's own chunks if that is more
FLAT = ("rewards", "costs", "terminals", "timeouts")
FLOATS = ("observations", "next_observations", "actions", "rewards", "costs")


def poison_file(source, out, attack, *, rate, unit="trajectory", seed=0, task=None, dataset=None, progress=True):
    """Write a poisoned copy of the DSRL file ``source`` to ``out``; returns (manifest, number of rows written).

    Everything else in the file is copied: further columns, attributes, dtypes, chunks and compression. Only where a
    dtype cannot hold what the attack writes it becomes float32, as which DSRL reads these columns anyway. Rows after
    the last end of a trajectory are left out: DSRL drops them too. ``attack`` is an
    :class:`~osrl_unlearn.attacks.base.Attack`; the other arguments are those of
    :func:`~osrl_unlearn.data.poison.poison`.

    Raises:
        ConfigError: as ``poison``, and if the attack chooses nothing.
        DataError: a file that is not DSRL's, or that holds NaN or infinity.
    """
    check_file(source)
    with h5py.File(source, "r") as file:
        flat = {name: file[name][:].reshape(-1) for name in FLAT}
        done = flat["terminals"].astype(bool) | flat["timeouts"].astype(bool)
        if not done.any():
            raise DataError("{}: no row is marked in 'terminals' or 'timeouts', so no trajectory ends; mark the last "
                            "row of each".format(source))
        rows = int(np.flatnonzero(done)[-1]) + 1
        columns, kept = _columns(file, len(done))
        before = _scan(columns, rows, source, progress)
        index = TrajectoryIndex({name: columns[name].seen(flat[name][:rows]) for name in FLAT})
        plan = Plan.make(attack, index, lambda which: {name: columns[name].seen(columns[name].take(which))
                                                       for name in REQUIRED}, rate=rate, unit=unit, seed=seed)
        chosen = int((plan.chosen.stops - plan.chosen.starts).sum())
        if not chosen:
            raise ConfigError("the attack '{}' chose nothing (rate {}, unit {}, {:,} trajectories): raise the rate or "
                              "choose another unit".format(attack.name, rate, unit, len(index.ids)))
        with h5py.File(out, "w") as new:
            after = _write(file, new, columns, kept, plan, rows, chosen, progress)
    manifest = plan.manifest({name: {"before": before[name], "after": after.get(name, before[name])}
                              for name in sorted(before) if name not in DERIVED}, task, dataset)
    return manifest, rows + chosen * (attack.adds_rows - attack.removes_rows)


class _Column:
    """A column of the file. ``step`` is the number of rows that are read or written at a time: whole chunks."""

    def __init__(self, dataset):
        self.dataset, self.name = dataset, dataset.name[1:]
        self.width = max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:])))  # bytes per row
        tall = dataset.chunks[0] if dataset.chunks else 1
        self.step = max(1, PIECE // self.width // tall) * tall

    def seen(self, values):
        """``values`` of this column as DSRL's ``get_dataset`` gives them."""
        values = values.reshape(-1) if self.name in FLAT else values
        with np.errstate(over="ignore"):
            return values.astype(np.float32, copy=False) if self.name in FLOATS else values

    def pieces(self, start, stop):
        """(first row, values in the file's dtype) from row ``start`` to ``stop``."""
        while start < stop:
            end = min(stop, (start // self.step + 1) * self.step)
            yield start, self.dataset[start:end]
            start = end

    def take(self, rows):
        """Values at ``rows``, ascending. HDF5 is slow with lists of rows, so stretches are read and picked from."""
        out = np.empty((len(rows),) + self.dataset.shape[1:], self.dataset.dtype)
        cuts = np.flatnonzero(np.diff(rows // self.step)) + 1
        for a, b in zip(np.append(0, cuts), np.append(cuts, len(rows))):
            first = rows[a]
            out[a:b] = self.dataset[first:rows[b - 1] + 1][rows[a:b] - first]
        return out

    def digest(self, rows, dtype):
        """A hash to which ``rows`` values of ``dtype`` can be given bit by bit; see ``files.sha256_array``."""
        like = self.seen(np.empty((0,) + self.dataset.shape[1:], dtype))
        return hashlib.sha256("{}{}".format(like.dtype.str, (rows,) + like.shape[1:]).encode())

    def update(self, digest, values):
        """Give ``values`` to a hash, as DSRL will see them. Texts have no bytes of their own, and no hash."""
        values = np.ascontiguousarray(self.seen(values))
        if values.size and not values.dtype.hasobject:
            digest.update(values.data.cast("B"))


class _Writer:
    """A column of the new file, written from its first row to its last in whole chunks."""

    def __init__(self, new, column, rows, dtype):
        like, shape = column.dataset, (rows,) + column.dataset.shape[1:]
        self.column, self.dtype = column, dtype
        self.dataset = new.create_dataset(
            column.name, shape, dtype, chunks=like.chunks and tuple(map(min, like.chunks, shape)),
            compression=like.compression, compression_opts=like.compression_opts, shuffle=like.shuffle,
            fletcher32=like.fletcher32)
        self.dataset.attrs.update(like.attrs)
        self.digest = column.digest(rows, dtype)
        self._buffer, self._filled = np.empty((min(column.step, rows),) + shape[1:], dtype), 0
        self._at = 0

    def append(self, values):
        """The next rows."""
        values = values.reshape((-1,) + self.dataset.shape[1:]).astype(self.dtype, copy=False)
        self.column.update(self.digest, values)
        while len(values):
            room = self._buffer[self._filled:self._filled + len(values)]
            room[:] = values[:len(room)]
            values = values[len(room):]
            self._filled += len(room)
            if self._filled == len(self._buffer):
                self._flush()

    def close(self):
        """Write what is left; returns the column's hash."""
        self._flush()
        return self.digest.hexdigest()

    def _flush(self):
        self.dataset[self._at:self._at + self._filled] = self._buffer[:self._filled]
        self._at, self._filled = self._at + self._filled, 0


def _columns(file, rows):
    """({name: _Column} of all datasets with a value per row, the names of the other datasets)."""
    columns, others = {}, []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            if item.shape and item.shape[0] == rows:
                columns[name] = _Column(item)
            else:
                others.append(name)

    file.visititems(visit)
    return columns, others


def _scan(columns, rows, path, progress):
    """{name: hash} of the first ``rows`` rows of every column. Raises DataError for NaN and infinity."""
    hashes = {}
    columns = {name: column for name, column in columns.items() if not column.dataset.dtype.hasobject}
    with _bar("read", sum(column.width for column in columns.values()) * rows, progress) as bar:
        for name, column in columns.items():
            digest = column.digest(rows, column.dataset.dtype)
            for first, values in column.pieces(0, rows):
                values = column.seen(values)
                if name in REQUIRED and values.dtype.kind == "f" and not np.isfinite(values).all():
                    bad = np.isfinite(values).reshape(len(values), -1).all(1)
                    raise DataError("{}: '{}' holds NaN or infinity, first in row {}".format(
                        path, name, first + int(np.argmin(bad))))
                column.update(digest, values)
                bar.update(len(values) * column.width)
            hashes[name] = digest.hexdigest()
    return hashes


def _write(file, new, columns, others, plan, rows, chosen, progress):
    """Write the new file; returns {name: hash} of the columns that may have changed."""
    adds, removes, declared = plan.attack.adds_rows, plan.attack.removes_rows, plan.attack.columns
    resized = adds or removes or rows != len(file["rewards"])
    new.attrs.update(file.attrs)
    file.visititems(lambda name, item: new.require_group(name).attrs.update(item.attrs)
                    if isinstance(item, h5py.Group) else None)
    writers = {}
    for name in list(columns) + others:
        if name in columns and (resized or name in declared):
            dtype = columns[name].dataset.dtype
            if name in FLOATS and name in declared and not np.can_cast(np.float32, dtype):
                dtype = np.dtype(np.float32)
            writers[name] = _Writer(new, columns[name], rows + chosen * (adds - removes), dtype)
        else:
            file.copy(name, new, name)  # as it lies in the file: nothing is decompressed
    keep = None
    if removes:
        keep = np.ones(rows, bool)
        keep[plan.chosen.rows()] = False
    with _bar("write", sum(writer.column.width for writer in writers.values()) * (rows + chosen * adds),
              progress) as bar:

        def copy(start, stop, which=None, values=()):
            for name, writer in writers.items():
                for first, piece in writer.column.pieces(start, stop):
                    read = len(piece)
                    if keep is not None:
                        piece = piece[keep[first:first + read]]
                    elif name in values:
                        piece = piece.astype(writer.dtype, copy=False)
                        a, b = np.searchsorted(which, [first, first + read])
                        piece[which[a:b] - first] = values[name][a:b].reshape((-1,) + piece.shape[1:])
                    writer.append(piece)
                    bar.update(read * writer.column.width)

        edge = 0
        if not adds and not removes:
            for which, values in plan.blocks():
                copy(edge, which[-1] + 1, which, values)
                edge = which[-1] + 1
        copy(edge, rows)
        for which, values in plan.blocks() if adds else ():
            for name, writer in writers.items():
                writer.append(values[name] if name in values else writer.column.take(which))
                bar.update(len(which) * writer.column.width)
        return {name: writer.close() for name, writer in writers.items()}


def _bar(label, size, progress):
    return tqdm(total=size, desc=label, unit="B", unit_scale=True, disable=not progress, dynamic_ncols=True)
