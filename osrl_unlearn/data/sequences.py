"""Batches of sequences of the forget set and of the retain set, as OSRL's ``SequenceDataset`` would give them."""
from typing import NamedTuple

import numpy as np
import torch

from osrl_unlearn.data.views import DatasetView, TransitionStore, thinned


class SequenceBatch(NamedTuple):
    """Stretches of trajectories, padded with zeros at the end; shapes [n, steps, dim], [n, steps] or [n].

    ``observations`` and ``actions`` are those of the last real step: where the policy would act next, given what came
    before. Returns and costs to go are undiscounted, scaled, and count the step itself.
    """
    states: torch.Tensor
    action_sequence: torch.Tensor
    returns: torch.Tensor
    costs_return: torch.Tensor
    time_steps: torch.Tensor
    mask: torch.Tensor
    episode_cost: torch.Tensor
    costs: torch.Tensor
    episode_return: torch.Tensor

    def last(self, sequence):
        """``sequence`` [n, steps, dim] at the last real step. Shape [n, dim]."""
        return sequence[torch.arange(len(sequence), device=sequence.device), self.mask.sum(1).long() - 1]

    @property
    def observations(self):
        """Shape [n, obs_dim]."""
        return self.last(self.states)

    @property
    def actions(self):
        """Shape [n, act_dim]."""
        return self.last(self.action_sequence)


class SequenceStore(TransitionStore):
    """Trajectories that end (a tail without an end is no sequence), with their returns and costs to go.

    Args:
        seq_len: steps per sequence.
        cost_reverse: count steps without a cost, as OSRL's option of that name does.
        plan: how training draws: a function of (list of trajectories, seed, training) that returns (trajectories to
            add, as pairs of the position of the source and the trajectory; weights of all [n], or None; probabilities
            of the first steps per trajectory, or None). A trajectory is {"returns", "cost_returns", "costs"}, shapes
            [steps], unscaled. Trajectories of weight 0 are never drawn.
    """

    def __init__(self, data, reward_scale, cost_scale, device, seq_len, cost_reverse, plan):
        super().__init__(data, reward_scale, cost_scale, device)
        self.seq_len, self.plan, self.scales = seq_len, plan, (reward_scale, cost_scale)
        # As TransitionStore has it for rewards: NumPy 1 makes float64 of a float32 number times a float.
        self.episode_dtype = torch.as_tensor(np.zeros(1, np.float32)[0] * cost_scale).dtype
        done = np.logical_or(data["terminals"], data["timeouts"])
        self.stops = np.flatnonzero(done) + 1
        self.starts = np.concatenate([[0], self.stops[:-1]]).astype(np.int64)
        costs = np.asarray(data["costs"], np.float32)
        costs = 1 - costs if cost_reverse else costs
        self.labels = {"returns": self._to_go(np.asarray(data["rewards"], np.float32)),
                       "cost_returns": self._to_go(costs), "costs": costs}
        self.trajectories = [{key: column[a:b] for key, column in self.labels.items()}
                             for a, b in zip(self.starts, self.stops)]
        weights = plan(self.trajectories, 0, False)[1]
        drawn = np.arange(len(self.starts)) if weights is None else np.flatnonzero(np.asarray(weights) > 0)
        self.rows = self.rows_of(drawn)

    def _to_go(self, column):
        # In float32 and from the end, as OSRL sums, so that the labels are bit for bit OSRL's.
        out = np.zeros_like(column)
        for start, stop in zip(self.starts, self.stops):
            out[start:stop] = np.cumsum(column[start:stop][::-1])[::-1]
        return out

    def rows_of(self, positions):
        """Row numbers of the trajectories at ``positions``. Shape [rows]."""
        return np.concatenate([np.arange(self.starts[i], self.stops[i]) for i in positions] + [np.arange(0)])

    def positions(self, rows):
        """Positions of the trajectories that ``rows`` touch, in order."""
        found = np.unique(np.searchsorted(self.stops, rows, side="right"))
        return found[found < len(self.stops)]

    def whole(self, rows):
        """All rows of the trajectories that are touched: every label to go counts what comes later."""
        return np.union1d(self.rows_of(self.positions(rows)), rows).astype(np.int64)

    def view(self, rows, seed=0, training=False):
        """Sequences of the trajectories that ``rows`` touch; with ``training`` also those that OSRL adds."""
        return SequenceView(self, self.positions(np.asarray(rows)), seed, training)


class SequenceView(DatasetView):
    """Some trajectories of a :class:`SequenceStore`, sampled as OSRL samples them by a generator of its own."""

    def __init__(self, store, positions, seed=0, training=False):
        super().__init__(store, store.rows_of(positions), seed)
        self._positions = np.asarray(positions)
        chosen = [store.trajectories[i] for i in positions]
        added, weights, starts = store.plan(chosen, seed, training)
        source = np.concatenate([self._positions, self._positions[[i for i, _ in added]]]).astype(np.int64)
        column = lambda values: torch.as_tensor(np.asarray(values, np.int64), device=store.home)  # noqa: E731
        self._start = column(store.starts[source])
        self._length = torch.as_tensor((store.stops - store.starts)[source])  # on the CPU, where sequences are drawn
        # What is added shares states and actions with its source, but has labels of its own behind all others.
        lengths = [len(trajectory["returns"]) for _, trajectory in added]
        behind = len(store) + np.cumsum([0] + lengths)[:len(added)]
        self._label = column(np.concatenate([store.starts[self._positions], behind]))
        self._labels = {key: torch.as_tensor(np.concatenate([values] + [t[key] for _, t in added]) if added else values,
                                             dtype=torch.float32, device=store.home)
                        for key, values in store.labels.items()}
        self._weights = None if weights is None else torch.as_tensor(np.asarray(weights, np.float64))
        self._cumulative = None
        if starts is not None:
            # Probabilities of the k-th trajectory rise from k to k + 1.
            self._cumulative = torch.as_tensor(np.concatenate(
                [k + np.cumsum(p) / np.sum(p) for k, p in enumerate(starts)]))
            self._first = torch.as_tensor(np.cumsum([0] + [len(p) for p in starts])[:-1])

    def batch(self, n):
        """``n`` sequences: a trajectory is drawn, then the step at which the sequence begins."""
        if self._weights is None:
            drawn = torch.randint(len(self._start), (n,), generator=self._generator)
        else:
            drawn = torch.multinomial(self._weights, n, True, generator=self._generator)
        where = torch.rand(n, dtype=torch.float64, generator=self._generator)
        length = self._length[drawn]
        if self._cumulative is None:
            begin = (where * length).long()
        else:
            begin = torch.searchsorted(self._cumulative, drawn + where) - self._first[drawn]
        begin = torch.minimum(begin, length - 1)
        return self._windows(drawn, begin, length)

    def everything(self, limit=None):
        """The sequence that leads to every row, or to ``limit`` of them at equal distances."""
        rows = thinned(self.rows, limit)
        own = len(self._positions)
        which = torch.searchsorted(self._start[:own], rows, right=True) - 1
        step = rows - self._start[which]
        return self._windows(which, (step - self.store.seq_len + 1).clamp(min=0), step + 1)

    def split(self, share, seed=0):
        """Two disjoint views, the second with ``share`` of the trajectories (at least one each if there are two)."""
        order = torch.randperm(len(self._positions), generator=torch.Generator().manual_seed(int(seed))).numpy()
        cut = min(max(1, int(len(order) * share)), len(order) - 1) if len(order) > 1 else 0
        first = SequenceView(self.store, np.sort(self._positions[order[cut:]]), seed + 1)
        return first, (SequenceView(self.store, np.sort(self._positions[order[:cut]]), seed + 2) if cut else first)

    def _windows(self, which, begin, stop):
        home, columns = self.store.home, self.store.columns
        which, begin, stop = (t.to(home)[:, None] for t in (which, begin, stop))
        steps = begin + torch.arange(self.store.seq_len, device=home)
        real = steps < stop
        inside = torch.minimum(steps, stop - 1)
        rows, labels = self._start[which] + inside, self._label[which] + inside
        reward_scale, cost_scale = self.store.scales
        taken = {key: values[labels] * real for key, values in self._labels.items()}
        episode = {key: values[self._label[which[:, 0]]] for key, values in self._labels.items()}
        return SequenceBatch(*map(self.store.deliver, (
            columns.observations[rows].float() * real[..., None], columns.actions[rows].float() * real[..., None],
            taken["returns"] * reward_scale, taken["cost_returns"] * cost_scale, steps, real.double(),
            episode["cost_returns"].to(self.store.episode_dtype) * cost_scale, taken["costs"],
            episode["returns"] * reward_scale)))
