"""Which rows reach a trainer: its batches, compared with the data that they should come from."""
import inspect

import numpy as np
import torch

from osrl_unlearn.data.trajectories import to_go
from osrl_unlearn.data.views import Batch

ENOUGH = 64  # rows with the observation of a forget row and other labels: by then it is no chance
_KNOWN = {"observations", "states"}  # what OSRL's trainers call them


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
        done = np.logical_or(data["terminals"], data["timeouts"])
        labels = {name: np.asarray(data[name], np.float32) for name in ("actions", "rewards", "costs")}
        # As SequenceDataset names what is to go; its option cost_reverse counts the steps without a cost.
        labels.update(returns=to_go(data["rewards"], done, 1), costs_return=to_go(data["costs"], done, 1),
                      safe_steps=to_go(1 - labels["costs"], done, 1))
        self._labels = {name: values[forget][order] for name, values in labels.items()}
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

    def look(self, columns, reward_scale, cost_scale, cost_reverse=False):
        """Count the forget rows of a batch whose labels are those of the data, for the columns that the batch has.

        What SequenceDataset adds has actions and costs of the data, but other returns and costs to go: such a row is
        not counted at all.
        """
        self.looked = True
        keys = _keys(self._observations(columns))
        found = np.flatnonzero(_at(self._forget_keys, keys) == keys) if len(self._forget_keys) else []
        if not len(found):
            return
        first = np.searchsorted(self._forget_keys, keys[found])
        last = np.searchsorted(self._forget_keys, keys[found], side="right")
        labels = dict(self._labels)
        if _mask(columns) is None:
            scales = {"actions": 1.0, "rewards": reward_scale, "costs": cost_scale}
        else:
            scales = {"actions": 1.0, "costs": 1.0, "returns": reward_scale, "costs_return": cost_scale}
            if cost_reverse:
                labels.update(costs=1 - labels["costs"], costs_return=labels["safe_steps"])
        given = {name: _rows(columns, name, labels[name].shape[1:])[found]
                 for name in scales if torch.is_tensor(columns.get(name))}
        same, same_step = np.zeros(len(found), bool), np.zeros(len(found), bool)
        # Several rows may have one observation, such as a recording and its poisoned copy.
        for place in range(min(int((last - first).max()), ENOUGH)):
            row = np.minimum(first + place, last - 1)
            fits = fits_step = np.ones(len(found), bool)
            for name, values in given.items():
                close = np.isclose(values, labels[name][row] * scales[name], rtol=1e-4, atol=1e-6)
                close = close.reshape(len(found), -1).all(1)
                fits, fits_step = fits & close, fits_step & (close | (name in ("returns", "costs_return")))
            same, same_step = same | fits, same_step | fits_step
        self.reached += int(same.sum())
        self.otherwise += int((~same_step).sum())

    def _observations(self, columns):
        name = "observations" if "observations" in columns else "states"
        # BC in mode "multi-task" has the cost return behind them.
        if not torch.is_tensor(columns.get(name)) or columns[name].shape[-1] not in (self._dim, self._dim + 1):
            return None
        return _rows(columns, name, columns[name].shape[-1:])[:, :self._dim]


def columns_of(function, trainer, args, kwargs):
    """{name: tensor} of a call of ``train_one_step``, which takes columns, or a list or dictionary of them.

    Those of a call of ``CDT.forward`` get the names that CDTTrainer has for them.
    """
    arguments = list(inspect.signature(function).bind(trainer, *args, **kwargs).arguments.items())[1:]
    if len(arguments) == 1 and isinstance(arguments[0][1], (list, tuple)):
        values = arguments[0][1]
        values = values[0] if len(values) == 1 and isinstance(values[0], (list, tuple)) else values
        return dict(zip(_names(type(trainer), function.__name__), values))
    if len(arguments) == 1 and isinstance(arguments[0][1], dict):
        return arguments[0][1]
    columns = dict(arguments)
    if args and not _KNOWN & set(columns):
        columns = dict(zip(_names(type(trainer), function.__name__), args))
        shapes = {getattr(columns[name], "shape", None) for name in ("observations", "next_observations")
                  if name in columns}
        if len(shapes) > 1:
            return dict(arguments)  # the script's own order
    if "returns_to_go" in columns:
        padding = columns.get("padding_mask")
        mask = torch.ones(columns["states"].shape[:2]) if padding is None else ~padding.bool()
        columns.update(returns=columns["returns_to_go"], costs_return=columns["costs_to_go"], mask=mask)
    return columns


def _names(cls, method):
    """Names of a trainer's columns: those of the first class whose method names them one by one, as OSRL does."""
    found = []
    for base in cls.__mro__:
        if method in vars(base):
            parameters = list(inspect.signature(vars(base)[method]).parameters.values())[1:]
            if len(parameters) > 1 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
                found.append([p.name for p in parameters])
    return ([names for names in found if _KNOWN & set(names)] or found or [Batch._fields])[0]


def _mask(columns):
    """Which steps of a batch of sequences are real, shape [n * steps]; None for a batch of transitions."""
    mask = columns.get("mask")
    return _array(mask).reshape(-1) > 0 if torch.is_tensor(mask) and mask.dim() == 2 else None


def _rows(columns, name, shape):
    """A column of a batch, row by row, without padding. Shape [rows, *shape]."""
    rows, mask = _array(columns[name]).reshape((-1,) + tuple(shape)), _mask(columns)
    return rows if mask is None else rows[mask]


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
