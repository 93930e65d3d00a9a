"""Batches of the forget set and of the retain set, as OSRL's ``TransitionDataset`` would give them."""
import copy
from typing import NamedTuple, Optional

import numpy as np
import torch

from osrl_unlearn.errors import ConfigError


class Batch(NamedTuple):
    """Transitions in the order of OSRL's ``train_one_step``; shapes [n, dim] or [n]."""
    observations: torch.Tensor
    next_observations: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    costs: torch.Tensor
    done: torch.Tensor
    is_init: torch.Tensor


def home_of(size, device):
    """Where columns of ``size`` bytes are kept: on ``device``, unless they would take over half of its free memory."""
    device = torch.device(device)
    if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] / 2:
        return torch.device("cpu")
    return device


def thinned(rows, limit):
    """All ``rows``, or ``limit`` of them at equal distances."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, limit, device=rows.device).long()]


class TransitionStore:
    """The columns of a data dictionary as tensors; rewards and costs are scaled when they are drawn.

    Batches are on ``device``. ``home`` is where the columns and row numbers are: on the device too if they fit, else on
    the CPU, and what is drawn goes to the device through pinned memory. On the CPU the tensors share memory with the
    arrays. ``done`` and ``is_init`` are those of the whole data, so that a subset keeps them (OSRL derives is_init from
    the previous row). ``rows`` are the numbers of the rows that the agent is trained on, shape [n]; default: all.
    ``extra`` is one more column of the observations, shape [rows]; the next observation of a row has the same value.
    """

    def __init__(self, data, reward_scale=1.0, cost_scale=1.0, device="cpu", rows=None, extra=None):
        done = np.logical_or(data["terminals"], data["timeouts"]).astype(np.float32)
        is_init = np.concatenate([[1.0], done[:-1]]).astype(np.float32)
        columns = [data["observations"], data["next_observations"], data["actions"], data["rewards"], data["costs"],
                   done, is_init]
        self.device, self.home = torch.device(device), home_of(sum(column.nbytes for column in columns), device)
        self.columns = Batch(*(torch.as_tensor(np.ascontiguousarray(c)).to(self.home) for c in columns))
        # NumPy 1 makes float64 of float32 * float, NumPy 2 does not; OSRL trains on what NumPy gives, and so do we.
        self._scales = [(scale, torch.as_tensor(np.zeros(1, column.dtype)[0] * scale).dtype)
                        for scale, column in ((reward_scale, data["rewards"]), (cost_scale, data["costs"]))]
        self.rows = np.arange(len(done)) if rows is None else rows
        self._extra = None if extra is None else torch.as_tensor(extra)[:, None].to(self.home)

    def __len__(self):
        return len(self.columns.rewards)

    def gather(self, rows):
        """The transitions at ``rows`` (int64 tensor, shape [n]) as a :class:`Batch` on the device."""
        return Batch(*map(self.deliver, self.take(rows.to(self.home))))

    def deliver(self, tensor):
        """``tensor`` on the device."""
        if self.home.type != self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def take(self, rows):
        """The transitions at ``rows`` (int64 tensor at home, shape [n]) as a :class:`Batch` at home."""
        columns = [column[rows] for column in self.columns]
        for i, (scale, dtype) in zip((3, 4), self._scales):
            columns[i] = columns[i].to(dtype) * scale
        if self._extra is not None:
            columns[:2] = [torch.cat([c, self._extra[rows].to(c.dtype)], -1) for c in columns[:2]]
        return Batch(*columns)

    def rewards(self):
        """The rewards of all rows, scaled as in batches. Shape [rows], at home."""
        scale, dtype = self._scales[0]
        return self.columns.rewards.to(dtype) * scale

    def highest_cost(self):
        """The highest cost of all rows, scaled as in batches."""
        return self.columns.costs.max().item() * self._scales[1][0]

    def relabelled(self, rows, order):
        """A store in which ``rows`` have the rewards and costs of ``rows[order]``; the other columns are shared."""
        other = copy.copy(self)
        changed = {}
        for name in ("rewards", "costs"):
            changed[name] = getattr(self.columns, name).clone()
            changed[name][rows] = changed[name][rows[order]]
        other.columns = self.columns._replace(**changed)
        return other

    def whole(self, rows):
        """All rows that have to go when ``rows`` are forgotten."""
        return np.asarray(rows)

    def view(self, rows, seed=0, training=False):
        """Batches of some ``rows``; with ``training`` drawn with all that OSRL's loader does in training."""
        return DatasetView(self, rows, seed)


class DatasetView:
    """Some rows of a :class:`TransitionStore`, sampled with replacement by a generator of its own.

    Args:
        store: the columns.
        rows: row numbers, shape [n], n >= 1.
        seed: seed of the view's generator; global generators are never used.
    """

    def __init__(self, store, rows, seed=0):
        if not len(rows):
            raise ConfigError("the set of rows to sample from is empty: the forget set must be neither empty nor the "
                              "whole dataset")
        self.store = store
        self.rows = torch.as_tensor(np.asarray(rows, np.int64)).to(store.home)
        self._generator = torch.Generator().manual_seed(int(seed))

    def __len__(self):
        return len(self.rows)

    def batch(self, n):
        """``n`` transitions drawn with replacement."""
        drawn = torch.randint(len(self.rows), (n,), generator=self._generator)
        return self.store.gather(self.rows[drawn.to(self.rows.device)])

    def everything(self, limit: Optional[int] = None):
        """All transitions in order, or ``limit`` of them at equal distances."""
        return self.store.gather(thinned(self.rows, limit))

    def split(self, share, seed=0):
        """Two disjoint views, the second with ``share`` of the rows (at least one row each if there are two)."""
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(int(seed)))
        cut = min(max(1, int(len(order) * share)), len(order) - 1) if len(order) > 1 else 0
        rows = self.rows.cpu()
        first = DatasetView(self.store, rows[order[cut:]].numpy(), seed + 1)
        return first, (DatasetView(self.store, rows[order[:cut]].numpy(), seed + 2) if cut else first)

    def state(self):
        """State of the generator, for resuming."""
        return self._generator.get_state()

    def set_state(self, state):
        """Continue sampling from a saved state."""
        self._generator.set_state(state)


def forget_and_retain(store, forget_rows, seed=0, absent=()):
    """The pair of views (forget, retain) of what the agent was trained on; ``absent`` rows are in neither of them."""
    trained, forgotten, gone = (np.zeros(len(store), bool) for _ in range(3))
    trained[store.rows] = forgotten[store.whole(forget_rows)] = True
    gone[store.whole(np.union1d(forget_rows, absent).astype(np.int64))] = True
    return (store.view(np.flatnonzero(trained & forgotten), seed),
            store.view(np.flatnonzero(trained & ~gone), seed + 1, True))
