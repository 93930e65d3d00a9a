"""Unlearning as a library call: an OSRL trainer, its data, and what to forget."""
import dataclasses
import math
import time
from typing import Any, Callable, Dict, List, Optional

import numpy as np
from tqdm import trange

from osrl_unlearn.adapters import adapt
from osrl_unlearn.adapters.base import Adapter
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.views import forget_and_retain
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.generators import private_torch, set_torch_states, torch_states
from osrl_unlearn.methods.base import Context
from osrl_unlearn.methods.gate import SafetyGate
from osrl_unlearn.options import parse
from osrl_unlearn.registry import METHODS


@dataclasses.dataclass
class Prepared:
    """A method that is ready to run on an agent; made by :func:`prepare`."""
    method: Any
    context: Context
    seconds: float  # that the preparation took; fitting the gate is part of the price
    notes: List[str]  # for the report

    def run(self, resume=None):
        """Spend the budget; see :meth:`osrl_unlearn.methods.base.Method.run`. ``seconds`` include the preparation."""
        outcome = self.method.run(self.context, resume)
        outcome.seconds += self.seconds
        return outcome


def make_method(name, options=None):
    """The method called ``name`` with ``options`` (a mapping). Raises ConfigError."""
    cls = METHODS.load(name)
    return cls(parse(cls.Options, options or {}, "--unlearn."))


def check_budget(steps=None, budget=None):
    """Raise ConfigError if both are given, or one that cannot be spent."""
    if steps is not None and budget is not None:
        raise ConfigError("steps and budget exclude each other: give one")
    if steps is not None and steps < 1:
        raise ConfigError("the steps must be at least 1, got {}".format(steps))
    if budget is not None and not 0 < budget < math.inf:
        raise ConfigError("the budget must be a positive share of the training updates, got {}".format(budget))


def budget_steps(method, training_updates, steps=None, budget=None):
    """Number of updates: ``steps``, or ``budget`` as a share of the training's updates. Raises ConfigError."""
    check_budget(steps, budget)
    if steps is not None:
        return steps
    if not training_updates:
        raise ConfigError("it is not known how many updates the training took: give --unlearn.steps")
    return max(1, int(round((method.default_budget if budget is None else budget) * training_updates)))


def prepare(adapter, data, forget, *, method, steps, batch_size=256, seed=0, ids=None, reward_scale=1.0,
            cost_scale=1.0, progress=True, on_check=lambda step, metrics: None):
    """Check everything and build the views, the frozen reference and the safety gate.

    Args:
        adapter: an :class:`~osrl_unlearn.adapters.base.Adapter`, or an OSRL trainer that one exists for.
        data: the dictionary of arrays that the agent was trained on.
        forget: :class:`~osrl_unlearn.data.manifest.ForgetManifest` of that data.
        method: a name, or a :class:`~osrl_unlearn.methods.base.Method`.
        ids: trajectory id of each row; default: counted in file order.
        reward_scale, cost_scale: as given to OSRL's TransitionDataset.

    Raises:
        IncompatibleAgent, ManifestMismatch, ConfigError.
    """
    started = time.perf_counter()
    adapter = adapter if isinstance(adapter, Adapter) else adapt(adapter)
    method = make_method(method) if isinstance(method, str) else method
    method.check(adapter)
    forget.check_not_empty()
    forget.verify(data)
    rows, absent = forget.row_numbers(data, ids), forget.absent_rows(data, ids)
    every = np.union1d(rows, absent)
    if len(every) == len(data["rewards"]):
        raise ConfigError("the forget manifest names every row: nothing is left to retain")
    store = adapter.store(data, reward_scale, cost_scale)
    notes = adapter.notes() + check_seen(adapter, store.rows, rows, len(store))
    if not forget.withdrawn:
        notes += method.advice(adapter, steps)
    gone = store.whole(rows)
    if len(gone) > len(rows):
        notes.append("'{}' learns from sequences, so whole trajectories are forgotten: {:,} rows where the forget "
                     "manifest names {:,}".format(adapter.name, len(gone), len(rows)))
    forget_view, retain_view = forget_and_retain(store, gone, seed, absent)
    reference = adapter.frozen()
    gate = None
    if method.gated:
        gate = SafetyGate(store, retain_view, reference, adapter.gamma, adapter.cost_threshold, seed,
                          np.setdiff1d(np.arange(len(store)), store.whole(every)))
    return Prepared(method, Context(adapter, forget_view, retain_view, steps, batch_size, seed, gate, on_check,
                                    progress, reference, forget.withdrawn), time.perf_counter() - started, notes)


def check_seen(adapter, seen, forget, total):
    """Raise ConfigError if the agent was trained on none of the rows ``forget``, or on no others.

    Args:
        seen: row numbers that the agent was trained on; total: number of rows of the data.

    Returns:
        Notes for the report: none, if the agent was trained on all rows.
    """
    if len(seen) == total:
        return []
    known = len(np.intersect1d(seen, forget))
    if not known:
        raise ConfigError("there is nothing to forget: '{}' was trained on {:,} of the {:,} rows, as its configuration "
                          "selects them, and none of the {:,} rows of the forget manifest is among them; the agent "
                          "never saw them".format(adapter.name, len(seen), total, len(forget)))
    if known == len(seen):
        raise ConfigError("'{}' was trained on {:,} rows, and the forget manifest names all of them: nothing is left "
                          "to retain".format(adapter.name, known))
    return ["'{}' was trained on {:,} of the {:,} rows, as its configuration selects them; of the {:,} rows of the "
            "forget manifest it saw {:,}".format(adapter.name, len(seen), total, len(forget), known)]


def unlearn(trainer, data, forget: ForgetManifest, *, method="safe_rule", options: Optional[Dict[str, Any]] = None,
            steps: Optional[int] = None, budget: Optional[float] = None, training_updates: Optional[int] = None,
            batch_size=256, seed=0, ids=None, progress=True, on_check: Callable = lambda step, metrics: None):
    """Make the agent of an OSRL ``trainer`` forget; the agent is changed in place.

    ``steps`` updates are spent, or ``budget`` (a share; default: the method's) of ``training_updates``. Rewards and
    costs are scaled as the trainer's ``reward_scale`` and ``cost_scale`` say. See :func:`prepare` for the rest.

    Returns:
        :class:`~osrl_unlearn.methods.base.Outcome`; ``accepted`` is False if the safety gate let nothing pass, and the
        agent is then what it was.
    """
    chosen = make_method(method, options) if isinstance(method, str) else method
    adapter = adapt(trainer)
    return prepare(adapter, data, forget, method=chosen, steps=budget_steps(chosen, training_updates, steps, budget),
                   batch_size=batch_size, seed=seed, ids=ids, reward_scale=adapter.reward_scale,
                   cost_scale=adapter.cost_scale, progress=progress, on_check=on_check).run()


def train(adapter, data, *, steps, batch_size=256, seed=0, rows=None, reward_scale=1.0, cost_scale=1.0, progress=True,
          label="train", on_step: Callable = lambda done, state: None, resume=None):
    """OSRL's own updates on ``rows`` (default: all) of ``data``; returns the seconds they took.

    ``on_step`` is called after every update with the number of updates so far, and with a function that returns all
    that is needed to go on from there: given back as ``resume``, with everything else as it was, the training ends with
    the same weights as if it had not been stopped.
    """
    store = adapter.store(data, reward_scale, cost_scale)
    view = store.view(store.rows if rows is None else np.intersect1d(rows, store.rows), seed, True)
    with private_torch(seed, adapter.device):
        done, spent = 0, 0.0
        if resume is None:
            adapter.reset()
            adapter.set_data_constants(view)
        else:
            done, spent = resume["done"], resume["seconds"]
            adapter.restore(resume["agent"])
            view.set_state(resume["view"])
            set_torch_states(resume["torch"], adapter.device)
        started = time.perf_counter() - spent
        for step in trange(done, steps, desc=label, initial=done, total=steps, disable=not progress,
                           dynamic_ncols=True):
            adapter.update(view.batch(batch_size))
            on_step(step + 1, lambda: {
                "done": step + 1, "seconds": time.perf_counter() - started, "agent": adapter.state(),
                "view": view.state(), "torch": torch_states(adapter.device)})
    return time.perf_counter() - started
