"""Which rows reach a trainer: its batches, compared with the data that they should come from."""
import inspect

import numpy as np
import torch

from osrl_unlearn.data.views import Batch

ENOUGH = 64  # rows with the observation of a forget row and other labels: by then it is no chance


class Reach:
    """Looks for the rows of one data dictionary in batches.

    Args:
        data: DSRL's columns, shapes [rows] and [rows, dim], as they should reach the trainer.
        forget: numbers of the rows that are to be found, shape [n].
    """

    def __init__(self, data, forget):
        self.rows = len(forget)
        self._keys = np.sort(_keys(data["observations"]))
        keys = _keys(data["observations"][forget])
        order = np.argsort(keys, kind="stable")
        self._forget_keys = keys[order]
        self._labels = {name: np.asarray(data[name], np.float32)[forget][order]
                        for name in ("actions", "rewards", "costs")}
        self._dim = data["observations"].shape[1]
        self.looked = False
        self.reached = 0    # forget rows seen so far, with their labels
        self.otherwise = 0  # rows with the observation of a forget row, and other labels

    def known(self, columns):
        """Share of the batch's rows whose observation is in the data; None if there are no such observations."""
        observations = self._observations(columns)
        if observations is None:
            return None
        keys = _keys(observations)
        return float((_at(self._keys, keys) == keys).mean()) if len(keys) else None

    def look(self, columns, reward_scale, cost_scale):
        """Count the forget rows of a batch whose labels are those of the data, for the columns that the batch has."""
        self.looked = True
        keys = _keys(self._observations(columns))
        found = np.flatnonzero(_at(self._forget_keys, keys) == keys) if len(self._forget_keys) else []
        if not len(found):
            return
        first = np.searchsorted(self._forget_keys, keys[found])
        last = np.searchsorted(self._forget_keys, keys[found], side="right")
        scales = {"actions": 1.0, "rewards": reward_scale, "costs": cost_scale}
        given = {name: _array(columns[name]).reshape((-1,) + self._labels[name].shape[1:])[found]
                 for name in scales if torch.is_tensor(columns.get(name))}
        same = np.zeros(len(found), bool)
        # Several rows may have one observation, such as a recording and its poisoned copy.
        for place in range(min(int((last - first).max()), ENOUGH)):
            row, fits = np.minimum(first + place, last - 1), np.ones(len(found), bool)
            for name, values in given.items():
                close = np.isclose(values, self._labels[name][row] * scales[name], rtol=1e-4, atol=1e-6)
                fits &= close.reshape(len(found), -1).all(1)
            same |= fits
        self.reached += int(same.sum())
        self.otherwise += int((~same).sum())

    def _observations(self, columns):
        values = columns.get("observations", columns.get("states"))
        if not torch.is_tensor(values) or values.shape[-1:] != (self._dim,):
            return None
        return _array(values).reshape(-1, self._dim)


def columns_of(function, args, kwargs):
    """{name: tensor} of a call of ``train_one_step``, which takes columns, or a list or dictionary of them."""
    arguments = list(inspect.signature(function).bind(*args, **kwargs).arguments.items())[1:]
    if len(arguments) == 1 and isinstance(arguments[0][1], (list, tuple)):
        values = arguments[0][1]
        values = values[0] if len(values) == 1 and isinstance(values[0], (list, tuple)) else values
        return dict(zip(Batch._fields, values))
    if len(arguments) == 1 and isinstance(arguments[0][1], dict):
        return arguments[0][1]
    return dict(arguments)


def _array(tensor):
    return tensor.detach().to("cpu", torch.float32).numpy()


def _at(ordered, keys):
    return ordered[np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)]


def _keys(observations):
    """One number per row, the same for the same float32 values. Shape [rows, dim] -> [rows]."""
    # Adding 0 makes -0.0 and 0.0 the same bits.
    words = (np.ascontiguousarray(observations, np.float32) + np.float32(0)).view(np.uint32)
    weights = np.random.default_rng(0).integers(2 ** 63, size=words.shape[1], dtype=np.uint64) * np.uint64(2)
    keys = np.zeros(len(words), np.uint64)
    for column, weight in zip(words.T, weights):
        keys += column.astype(np.uint64) * (weight + np.uint64(1))
    return keys
