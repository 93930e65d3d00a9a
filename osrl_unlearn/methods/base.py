"""The loop that every unlearning method runs in: budget, trace, gate, interruption, divergence."""
import dataclasses
import math
import time
from abc import ABC, abstractmethod
from typing import Any, Callable, ClassVar, Dict, FrozenSet, List, Optional

import torch
from tqdm import tqdm

from osrl_unlearn.errors import ConfigError, IncompatibleAgent
from osrl_unlearn.generators import private_torch, set_torch_states, torch_states
from osrl_unlearn.methods.gate import SafetyGate
from osrl_unlearn.options import option

CHECKS = 10  # how often in a run the trace is written and the gate asked
PROBE_ROWS = 1024


NETWORKS = ("actor", "reward_critic", "cost_critic", "generator")


@dataclasses.dataclass
class NoOptions:
    """A method without options of its own."""


@dataclasses.dataclass
class UpdateOptions:
    """Options of methods that continue from the trained agent."""
    learning_rate: float = option(3e-3, "of the networks' optimisers at the first step, falling linearly to their own "
                                        "at the last; a higher own rate stays; 0 leaves all as they are")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not value >= 0 and field.name != "sigma":
                raise ValueError("{} must not be negative, got {}".format(field.name, value))


@dataclasses.dataclass
class Context:
    """What a method works with. ``adapter`` is changed in place; ``reference`` is the agent before unlearning.

    ``steps`` is the budget in native updates of the agent; a method that needs less may lower it before it starts.
    ``withdrawn``: nothing is wrong with the forget set, it is only to be gone.
    """
    adapter: Any
    forget: Any
    retain: Any
    steps: int
    batch_size: int
    seed: int = 0
    gate: Optional[SafetyGate] = None
    on_check: Callable[[int, Dict[str, float]], None] = lambda step, metrics: None
    progress: bool = True
    reference: Any = None
    withdrawn: bool = False

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError("the unlearning budget is {} updates: give more steps or a larger "
                              "budget".format(self.steps))
        self.reference = self.reference or self.adapter.frozen()


@dataclasses.dataclass
class Outcome:
    """What a run of a method did."""
    steps: int
    seconds: float
    trace: List[Dict[str, float]]
    accepted: bool
    rollbacks: int
    reason: str
    gate: Dict[str, Any]
    before: Dict[str, float]
    after: Dict[str, float]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during unlearning. ``state`` continues the run through :meth:`Method.run`'s ``resume``."""

    def __init__(self, state):
        self.state = state
        super().__init__()


class Method(ABC):
    """One way to make an agent forget. Sees the agent through its adapter only."""

    name: ClassVar[str]
    summary: ClassVar[str]
    requires: ClassVar[FrozenSet[str]] = frozenset()
    Options: ClassVar[type] = NoOptions
    gated: ClassVar[bool] = False
    default_budget: ClassVar[float] = 0.05

    def __init__(self, options=None):
        self.options = options if options is not None else self.Options()

    def check(self, adapter):
        """Raise IncompatibleAgent if the agent lacks what the method requires."""
        missing = self.requires - adapter.capabilities
        if missing:
            raise IncompatibleAgent(adapter.name, [
                "the method '{}' needs {}; safe_rule, fine_tune and retrain take every agent".format(
                    self.name, " and ".join(sorted(missing)))])

    def advice(self, adapter, steps):
        """What measurements say against ``steps`` of this method on this agent, as a list of sentences."""
        return []

    def prepare(self, ctx):
        """Called once before the first step of a fresh run."""

    @abstractmethod
    def step(self, ctx, i):
        """Step ``i`` of ``ctx.steps``: one native update, or one batch of gradients. Returns metrics."""

    def finished(self, ctx, i):
        """Called at every check; a reason to stop now, or None."""
        return None

    def rejected(self):
        """Called when the gate has rolled the agent back."""

    def state(self):
        """What the method itself changes, as tensors and primitives."""
        return {}

    def set_state(self, ctx, state):
        """Called instead of :meth:`prepare` when a run is resumed, with what :meth:`state` returned."""

    def notes(self):
        """What the report should say about how the method went about it; called after :meth:`run`. List of str."""
        return []

    def save(self, folder):
        """Called with the run directory of the result when it is written, to keep what a later deletion needs there."""

    def run(self, ctx, resume=None):
        """Spend ``ctx.steps`` steps; roll back what the gate rejects or what diverges.

        Returns :class:`Outcome`. Raises :class:`Interrupted` on Ctrl-C: the agent is then in its last accepted state,
        or as it was before if there is none.
        All randomness comes from ``ctx.seed``; the global torch generator is as before when this returns.
        """
        self.check(ctx.adapter)
        with private_torch(ctx.seed, ctx.adapter.device):
            return _Run(self, ctx, resume).go()


class _Run:
    """One run of one method; holds what has to survive an interruption."""

    def __init__(self, method, ctx, resume):
        self.method, self.ctx = method, ctx
        self.probes = {"forget": ctx.forget.everything(PROBE_ROWS), "retain": ctx.retain.everything(PROBE_ROWS)}
        self.gate = ctx.gate if method.gated else None
        self.i, self.trace, self.rollbacks, self.seconds = 0, [], 0, 0.0
        self.reason = "budget spent"
        self.own_rates = [group["lr"] for group in self._groups()]
        if resume is None:
            self.before = self.good = ctx.adapter.state()
            self.values_before = self._values()
            self.ever_accepted = not method.gated
            started = time.perf_counter()
            method.prepare(ctx)
            self.seconds += time.perf_counter() - started
            if method.gated:
                self.good = ctx.adapter.state()  # what was prepared stays when the first steps are rolled back
        else:
            self._set_state(resume)

    def go(self):
        ctx, method = self.ctx, self.method
        started, spent = time.perf_counter(), self.seconds
        every = max(1, ctx.steps // CHECKS)
        self._saved = self._state(ctx.adapter.state())
        bar = tqdm(total=ctx.steps, initial=self.i, desc=method.name, disable=not ctx.progress, dynamic_ncols=True)
        try:
            while self.i < ctx.steps:
                self._set_rates(1 - self.i / ctx.steps)
                metrics = self._step()
                self.i += 1
                bar.update()
                diverged = not all(math.isfinite(v) for v in metrics.values())
                if self.i % every and self.i != ctx.steps and not diverged:
                    continue
                going_on = self._check(metrics, diverged, bar)
                self.seconds = spent + time.perf_counter() - started
                stop = method.finished(ctx, self.i) if going_on else None
                if stop or not going_on:
                    self.reason = stop or self.reason
                    break
                self._saved = self._state(self.good)  # the agent is just that, accepted or rolled back
        except KeyboardInterrupt:
            # Ctrl-C may have come in the middle of an update: only what was saved at the last check is whole.
            ctx.adapter.restore(self.good if self.ever_accepted else self.before)
            self._set_rates(0)
            raise Interrupted(self._saved)
        finally:
            bar.close()
        if not self.ever_accepted:
            ctx.adapter.restore(self.before)
        self._set_rates(0)
        return Outcome(self.i, self.seconds, self.trace, self.ever_accepted, self.rollbacks, self.reason,
                       self.gate.summary() if self.gate else {"used": False},
                       self.values_before, self._values())

    def _step(self):
        try:
            return self.method.step(self.ctx, self.i)
        except ValueError:  # of torch's distributions, which refuse NaN before any loss shows it
            if self._finite():
                raise
            return {"loss": math.nan}

    def _finite(self):
        return all(weight.isfinite().all() for weight in self.ctx.adapter.model.parameters())

    def _set_rates(self, left):
        peak = getattr(self.method.options, "learning_rate", 0)
        if not peak:
            return  # the agent's own rates may follow a schedule
        for group, own in zip(self._groups(), self.own_rates):
            group["lr"] = own + max(0, peak - own) * left

    def _groups(self):
        # Looked up every time: restoring an optimiser's state replaces its parameter groups.
        optimizers, parts = self.ctx.adapter.optimizers(), self.ctx.adapter.parts
        return [group for role in NETWORKS if role in parts for group in optimizers[parts[role].optimizer].param_groups]

    def _check(self, metrics, diverged, bar):
        ctx = self.ctx
        diverged = diverged or not self._finite()
        verdict = {} if diverged else self._values()
        diverged = diverged or not all(math.isfinite(v) for v in verdict.values())
        accepted = not diverged
        if accepted and self.gate:
            accepted, estimate = self.gate.accepts(ctx.adapter)
            verdict["gate_cost"] = estimate
        verdict["accepted"] = float(accepted)
        entry = {"step": self.i}
        entry.update({k: v for k, v in dict(metrics, **verdict).items() if math.isfinite(v)})
        self.trace.append(entry)
        ctx.on_check(self.i, entry)
        bar.set_postfix({k: "{:.3g}".format(verdict[k]) for k in (
            "reward_value/forget", "reward_value/retain", "cost_value/forget", "cost_value/retain") if k in verdict})
        if accepted:
            self.good, self.ever_accepted = ctx.adapter.state(), True
            return True
        self.rollbacks += 1
        ctx.adapter.restore(self.good)
        self.method.rejected()
        if diverged:
            self.reason = "diverged at step {}: rolled back to the last good state".format(self.i)
            return False
        return True

    def _values(self):
        out = {}
        with torch.no_grad():
            for name, probe in self.probes.items() if "values" in self.ctx.adapter.capabilities else ():
                out["reward_value/" + name] = self.ctx.adapter.reward_value(probe).mean().item()
                out["cost_value/" + name] = self.ctx.adapter.cost_value(probe).mean().item()
            actions = self.ctx.adapter.actions(self.probes["forget"])
            distance = (actions - self.probes["forget"].actions).pow(2).sum(-1).sqrt()
            out["action_distance/forget"] = distance.mean().item()
        return out

    def _state(self, agent):
        ctx = self.ctx
        return {"i": self.i, "trace": list(self.trace), "rollbacks": self.rollbacks, "seconds": self.seconds,
                "before": self.before, "good": self.good, "values_before": self.values_before,
                "ever_accepted": self.ever_accepted, "gate": self.gate and self.gate.state(),
                "agent": agent, "method": self.method.state(),
                "views": [ctx.forget.state(), ctx.retain.state()], "torch": torch_states(ctx.adapter.device)}

    def _set_state(self, saved):
        for name in ("i", "trace", "rollbacks", "seconds", "before", "good", "values_before",
                     "ever_accepted"):
            setattr(self, name, saved[name])
        ctx = self.ctx
        if self.gate:
            self.gate.set_state(saved["gate"])
        ctx.adapter.restore(saved["agent"])
        self.method.set_state(ctx, saved["method"])
        ctx.forget.set_state(saved["views"][0])
        ctx.retain.set_state(saved["views"][1])
        set_torch_states(saved["torch"], ctx.adapter.device)
