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


class TransitionStore:
    """The columns of a data dictionary as tensors on one device; rewards and costs are scaled when they are drawn.

    On the CPU the tensors share memory with the arrays. ``done`` and ``is_init`` are those of the whole data, so that a
    subset keeps them (OSRL derives is_init from the previous row).
    """

    def __init__(self, data, reward_scale=1.0, cost_scale=1.0, device="cpu"):
        done = np.logical_or(data["terminals"], data["timeouts"]).astype(np.float32)
        is_init = np.concatenate([[1.0], done[:-1]]).astype(np.float32)
        columns = [data["observations"], data["next_observations"], data["actions"], data["rewards"], data["costs"],
                   done, is_init]
        self.columns = Batch(*(torch.as_tensor(np.ascontiguousarray(c)).to(device) for c in columns))
        # NumPy 1 makes float64 of float32 * float, NumPy 2 does not; OSRL trains on what NumPy gives, and so do we.
        self._scales = [(scale, torch.as_tensor(np.zeros(1, column.dtype)[0] * scale).dtype)
                        for scale, column in ((reward_scale, data["rewards"]), (cost_scale, data["costs"]))]
        self.device = device
        self.reward_scale, self.cost_scale = reward_scale, cost_scale

    def __len__(self):
        return len(self.columns.rewards)

    def gather(self, rows):
        """The transitions at ``rows`` (int64 tensor on the device, shape [n]) as a :class:`Batch`."""
        columns = [column[rows] for column in self.columns]
        for i, (scale, dtype) in zip((3, 4), self._scales):
            columns[i] = columns[i].to(dtype) * scale
        return Batch(*columns)

    def highest_cost(self):
        """The highest cost of all rows, scaled as in batches."""
        return self.columns.costs.max().item() * self.cost_scale

    def relabelled(self, rows, order):
        """A store in which ``rows`` have the rewards and costs of ``rows[order]``; the other columns are shared."""
        other = copy.copy(self)
        changed = {}
        for name in ("rewards", "costs"):
            changed[name] = getattr(self.columns, name).clone()
            changed[name][rows] = changed[name][rows[order]]
        other.columns = self.columns._replace(**changed)
        return other


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
        self.rows = torch.as_tensor(np.asarray(rows, np.int64)).to(store.device)
        self._generator = torch.Generator().manual_seed(int(seed))

    def __len__(self):
        return len(self.rows)

    def batch(self, n):
        """``n`` transitions drawn with replacement."""
        drawn = torch.randint(len(self.rows), (n,), generator=self._generator)
        return self.store.gather(self.rows[drawn.to(self.rows.device)])

    def everything(self, limit: Optional[int] = None):
        """All transitions in order, or ``limit`` of them at equal distances."""
        rows = self.rows
        if limit is not None and len(rows) > limit:
            rows = rows[torch.linspace(0, len(rows) - 1, limit, device=rows.device).long()]
        return self.store.gather(rows)

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


def forget_and_retain(store, forget_rows, seed=0):
    """The pair of views (forget, retain) of a store."""
    mask = np.ones(len(store), bool)
    mask[forget_rows] = False
    return DatasetView(store, np.asarray(forget_rows), seed), DatasetView(store, np.flatnonzero(mask), seed + 1)
