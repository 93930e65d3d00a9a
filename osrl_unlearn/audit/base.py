"""What an audit works with, and the interface of its metrics."""
import dataclasses
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar, Dict, FrozenSet, List, NamedTuple, Optional

import numpy as np
import torch

from osrl_unlearn.data.sequences import SequenceStore
from osrl_unlearn.data.trajectories import TrajectoryIndex, to_go
from osrl_unlearn.data.trigger import Trigger
from osrl_unlearn.data.views import Batch, forget_and_retain
from osrl_unlearn.errors import ConfigError, EnvironmentProblem, OsrlUnlearnError
from osrl_unlearn.evaluate.rollouts import evaluate
from osrl_unlearn.generators import private_torch
from osrl_unlearn.registry import ATTACKS, METRICS

TRAJECTORIES, ROWS = 256, 64  # of each set, and of each trajectory, that agents are asked about
WHOLE = 128  # trajectories of each set of which every row is looked at
CHUNK = 4096
AGAINST = " - reference"  # ends the names of attacks that look at the difference to retrained agents
MISSING = {
    "reference": "no retrained agent is given: add --reference RUN_DIR",
    "original": "the agent before unlearning is not known: add --original RUN_DIR",
    "environment": "no episodes are to be run: add --episodes N",
    "values": "the agent has no critics",
    "action_values": "the agent has no critics of state and action",
    "trigger": "the attack on record has no trigger",
    "updates": "it is not known how many updates the training took",
    "non_members": "nothing is known to be no member: add --reference RUN_DIR or --holdout FILE",
    "states": "the agent acts on sequences",
    "noise": "the attack on record adds no noise to observations",
}


class Set(NamedTuple):
    """Transitions of some trajectories. ``owner`` is the position in ``ids`` of the trajectory of each, shape [n].

    ``rewards_to_go`` and ``costs_to_go`` are discounted and scaled as in training, shape [n].
    """
    batch: Any
    owner: np.ndarray
    ids: np.ndarray
    rewards_to_go: np.ndarray
    costs_to_go: np.ndarray

    def per_trajectory(self, values):
        """Mean of ``values`` [n] over the rows of each trajectory. Shape [trajectories]."""
        return np.bincount(self.owner, values, len(self.ids)) / np.bincount(self.owner, minlength=len(self.ids))


@dataclasses.dataclass
class Context:
    """An agent under audit with its data. Metrics leave agents as they were.

    ``original`` is the agent before unlearning, ``references`` are retrained without the forget set; ``holdout`` is
    data that none of them was trained on. Rewards and costs are scaled as in training; ``episodes`` may be 0.
    """
    adapter: Any
    data: Dict[str, np.ndarray]
    ids: Optional[np.ndarray]
    manifest: Any
    cost_limit: float
    reward_scale: float = 1.0
    cost_scale: float = 1.0
    batch_size: int = 256
    updates: Optional[int] = None
    original: Any = None
    references: List[Any] = dataclasses.field(default_factory=list)
    holdout: Optional[Dict[str, np.ndarray]] = None
    trigger: Optional[Trigger] = None
    episodes: int = 0
    seed: int = 0
    progress: bool = False

    def __post_init__(self):
        if not 0 < len(self.forget_rows) < len(self.data["rewards"]):
            raise ConfigError("the forget manifest names {} rows: expected some, and some to retain".format(
                "no" if not len(self.forget_rows) else "all"))

    @property
    def given(self):
        """What metrics may need and this audit has."""
        attack = (self.manifest.attack or {}).get("name")
        have = {"reference": self.references, "original": self.original is not None, "environment": self.episodes,
                "trigger": self.trigger is not None, "updates": self.updates,
                "non_members": self.references or self.holdout is not None,
                "states": not isinstance(self.store, SequenceStore),
                "noise": attack in ATTACKS.builtins and hasattr(ATTACKS.load(attack), "noise")}
        return frozenset(name for name, value in have.items() if value) | self.adapter.capabilities

    @property
    def agents(self):
        """{name: adapter} of all agents, the audited one first."""
        found = {"audited": self.adapter}
        if self.original is not None:
            found["original"] = self.original
        return dict(found, **{"reference" if not n else "reference {}".format(n + 1): adapter
                              for n, adapter in enumerate(self.references)})

    @cached_property
    def store(self):
        """The data as the agent sees them."""
        return self.adapter.store(self.data, self.reward_scale, self.cost_scale)

    @cached_property
    def forget_rows(self):
        """Sorted row numbers of the forget set."""
        return self.manifest.row_numbers(self.data, self.ids)

    @cached_property
    def views(self):
        """The views (forget, retain)."""
        return forget_and_retain(self.store, self.forget_rows, self.seed,
                                 self.manifest.absent_rows(self.data, self.ids))

    @cached_property
    def sets(self):
        """{"forget", "retain", and "holdout" if there is one}: :class:`Set` of at most TRAJECTORIES x ROWS rows."""
        return self._sets(TRAJECTORIES, ROWS)

    @cached_property
    def whole_sets(self):
        """As :attr:`sets`, but of at most WHOLE trajectories with every row, in order."""
        return self._sets(WHOLE, None)

    def _sets(self, *limits):
        forget, retain = (view.rows.cpu().numpy() for view in self.views)
        # A trajectory of which a part is forgotten is not an example of what was retained.
        owner = np.searchsorted(self._index.stops, np.arange(self._index.rows), side="right")
        clean = retain[~np.isin(owner[retain], owner[forget])]
        found = {"forget": self._set(self.data, self.ids, forget, *limits),
                 "retain": self._set(self.data, self.ids, clean if len(clean) else retain, *limits)}
        if self.holdout is not None:
            found["holdout"] = self._set(self.holdout, None, None, *limits)
        return found

    def trajectories(self, rows):
        """Ids of the trajectories that ``rows`` of the data are in. Shapes [rows]."""
        return self._index.ids[np.searchsorted(self._index.stops, rows, side="right")]

    @cached_property
    def _index(self):
        return TrajectoryIndex(self.data, self.ids)

    def _set(self, data, ids, rows, trajectories, each):
        index = TrajectoryIndex(data, ids)
        store = self.store if data is self.data else self.adapter.store(data, self.reward_scale, self.cost_scale)
        rows = store.rows if rows is None else rows
        owner = np.searchsorted(index.stops, rows, side="right")
        chosen = evenly(np.unique(owner), trajectories)
        rows = np.concatenate([evenly(rows[owner == i], each) for i in chosen])
        owner = np.searchsorted(index.stops, rows, side="right")
        done = np.asarray(data["terminals"]).astype(bool) | np.asarray(data["timeouts"]).astype(bool)
        rewards, costs = (to_go(np.asarray(data[key], np.float64) * scale, done, self.adapter.gamma)[rows]
                          for key, scale in (("rewards", self.reward_scale), ("costs", self.cost_scale)))
        batch = transitions(store, rows)
        return Set(batch, np.searchsorted(chosen, owner), index.ids[chosen], rewards, costs)

    def rollouts(self, name, trigger=None):
        """Episodes of the agent called ``name``; every agent starts from the same states. Asked twice, run once."""
        key = (name, repr(trigger))
        if key not in self._rollouts:
            self._rollouts[key] = evaluate(self.agents[name], self.episodes, self.seed, self.progress, name, trigger)
        return self._rollouts[key]

    @cached_property
    def _rollouts(self):
        return {}

    def ask(self, adapter, batch, question):
        """``question(batch)`` without gradient, in parts, as a float64 array; the same latents for every agent."""
        with torch.no_grad(), private_torch(self.seed, adapter.device):
            parts = [question(batch.__class__(*(None if column is None else column[start:start + CHUNK]
                                                for column in batch)))
                     for start in range(0, len(batch.actions), CHUNK)]
        return torch.cat(parts).double().cpu().numpy()


def evenly(values, limit):
    """``values``, or ``limit`` of them at equal distances; None: all."""
    if limit is None or len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).astype(int)]


def transitions(store, rows):
    """The transitions at ``rows``, or the sequences that lead to them if the agent learns from sequences."""
    if isinstance(store, SequenceStore):
        whole = store.view(rows)
        where = np.searchsorted(whole.rows.cpu().numpy(), rows)
        every = whole.everything()
        return every.__class__(*(column[torch.as_tensor(where, device=column.device)] for column in every))
    return store.gather(torch.as_tensor(rows, device=store.device))


def has_states_only(batch):
    """Whether agents can be asked about states without what came before: not if they see sequences."""
    return isinstance(batch, Batch)


class Result(NamedTuple):
    """``value``: figures by name, each a number or {"mean", "ci95", "n"}; ``per_trajectory``: {name: {id: number}}."""
    value: Dict[str, Any]
    per_trajectory: Optional[Dict[str, Any]] = None
    details: Optional[Dict[str, Any]] = None


class NotComputed(Exception):
    """Raised by a metric that cannot say anything here; the message says why."""


class Metric(ABC):
    """One way to look for what is left of the forget set.

    Class attributes:
        needs: names of MISSING, or capabilities of the agent.
        tests: {name of a figure, or of a group of them: the test or the interval behind it, or why it has none}.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[FrozenSet[str]] = frozenset()
    tests: ClassVar[Dict[str, str]] = {}

    @abstractmethod
    def compute(self, ctx):
        """The :class:`Result`. Raises NotComputed."""

    def run(self, ctx):
        """What goes into the audit: the result as a dictionary with the metric's ``tests``, or {"not_computed":
        "because ..."}.
        """
        missing = sorted(self.needs - ctx.given)
        try:
            if missing:
                raise NotComputed("; ".join(MISSING.get(name, "the agent has no " + name) for name in missing))
            found = {key: value for key, value in self.compute(ctx)._asdict().items() if value is not None}
            return dict(found, tests=dict(self.tests))
        except (NotComputed, OsrlUnlearnError) as error:
            return {"not_computed": "because {}".format(error)}


def compute(ctx):
    """{metric: result} of every metric; one of a third party that cannot be used is not computed."""
    found = {name: METRICS.load(name)().run(ctx) for name in METRICS.builtins}
    for name in METRICS.third_party():
        try:
            found[name] = METRICS.load(name)().run(ctx)
        except Exception as error:  # nobody has named it, so it must not cost the audit
            found[name] = {"not_computed": "because {}".format(
                error if isinstance(error, EnvironmentProblem) else "the plugin failed: {!r}".format(error))}
    return found
