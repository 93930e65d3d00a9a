"""The one interface through which unlearning methods see an OSRL agent."""
import copy
import functools
import importlib
import inspect
from abc import ABC, abstractmethod
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Callable, ClassVar, Dict, FrozenSet, NamedTuple, Tuple

import numpy as np
import torch

from osrl_unlearn.data.views import Batch, TransitionStore
from osrl_unlearn.errors import IncompatibleAgent, RunError

# torch 1.13 has it under the second name only.
_Scheduler = getattr(torch.optim.lr_scheduler, "LRScheduler", torch.optim.lr_scheduler._LRScheduler)


class Part(NamedTuple):
    """A trainable network of the model ("" is the whole model) and its optimiser, on the model or on the trainer."""
    module: str
    optimizer: str


class _Recorder:
    """Takes the place of OSRL's logger during an update, so that the losses are returned and not logged twice."""

    def __init__(self):
        self.losses = {}

    def store(self, tab=None, **losses):
        self.losses.update(losses)


class Adapter(ABC):
    """One OSRL agent: where its parts are and what its policy says. Holds no unlearning mathematics.

    A subclass of OSRL's model or trainer works through the same adapter as long as it keeps what the adapter reads;
    what it adds (networks, target networks called ``NAME_old``, optimisers, schedulers) is saved and restored too.

    Class attributes:
        trainer_class: "module:Class" of OSRL's trainer; subclasses of it are recognised too.
        capabilities: what the agent offers: "values" (reward and cost critics, see
            :class:`~osrl_unlearn.adapters.values.ValueAdapter`), "action_values" (these are critics of state and
            action), "log_prob", "generator" (a generative model of the behaviour), "data_constants" (numbers computed
            from the dataset). Every agent has a policy.
        parts: role -> :class:`Part`; the roles are "actor", "reward_critic", "cost_critic", "generator" and others.
        targets: {target network: network it follows}.
        tensors: tensors of the model that training changes and ``state_dict`` leaves out.
        scalars: attributes (dotted) that training changes and ``state_dict`` leaves out.
        constants: attributes of the model that were computed from the dataset.
        attributes, trainer_attributes: further attributes of the model and the trainer that the adapter reads.
        derived: arguments of the model's constructor that :meth:`given` finds, not the configuration.
        inputs: what ``train_one_step`` may ask for: {name of its parameter: function of a batch}.
        narrow: whether training leaves the policy's Gaussian so narrow that terms of its density would drown all other
            losses; then distances of actions take their place.

    Args:
        trainer: OSRL's trainer.
        config: the run's configuration, for what OSRL keeps nowhere else; what is missing has OSRL's default.

    Shapes: observations [n, obs_dim], actions [n, act_dim], values [n]; critics with several heads give [heads, n].
    """

    name: ClassVar[str]
    trainer_class: ClassVar[str]
    capabilities: ClassVar[FrozenSet[str]]
    parts: ClassVar[Dict[str, Part]]
    targets: ClassVar[Dict[str, str]] = {}
    tensors: ClassVar[Tuple[str, ...]] = ()
    scalars: ClassVar[Tuple[str, ...]] = ()
    constants: ClassVar[Tuple[str, ...]] = ()
    attributes: ClassVar[Tuple[str, ...]] = ("episode_len",)
    trainer_attributes: ClassVar[Tuple[str, ...]] = ()
    derived: ClassVar[Tuple[str, ...]] = ("state_dim", "action_dim", "max_action")
    narrow: ClassVar[bool] = False
    inputs: ClassVar[Dict[str, Callable[[Any], Any]]] = {name: attrgetter(name) for name in Batch._fields}

    def __init__(self, trainer, config=None):
        problems = self.check(trainer)
        if problems:
            raise IncompatibleAgent(type(trainer).__name__, problems)
        self.trainer = trainer
        self.model = trainer.model
        self.config = config or {}
        self.parts = self.parts_of(trainer)
        self.targets = dict(self.targets, **{name: name[:-4] for name, _ in self.model.named_children()
                                             if name.endswith("_old") and hasattr(self.model, name[:-4])})

    # Recognising an agent ---------------------------------------------------------------------------------------------

    @classmethod
    def matches(cls, trainer):
        """Whether ``trainer`` is OSRL's trainer for this agent or derives from it."""
        return any("{}:{}".format(base.__module__, base.__qualname__) == cls.trainer_class
                   for base in type(trainer).__mro__)

    @classmethod
    def parts_of(cls, trainer):
        """The parts that the agent of ``trainer`` must have."""
        return cls.parts

    @classmethod
    def check(cls, trainer):
        """Everything that stands in the way of using this adapter on ``trainer``, as a list of sentences."""
        model = getattr(trainer, "model", None)
        if model is None:
            return ["the trainer has no attribute 'model'"]
        problems = []
        for role, part in cls.parts_of(trainer).items():
            if part.module and not isinstance(getattr(model, part.module, None), (torch.nn.Module, torch.Tensor)):
                problems.append("its model has no network '{}' (the {})".format(part.module, role))
            if not isinstance(_on_either(trainer, part.optimizer), torch.optim.Optimizer):
                problems.append("neither its model nor its trainer has an optimiser '{}' (of the {})".format(
                    part.optimizer, role))
        for attribute in tuple(cls.targets) + cls.tensors + cls.constants + cls.attributes:
            if not hasattr(model, attribute):
                problems.append("its model has no attribute '{}'".format(attribute))
        for attribute in cls.trainer_attributes:
            if not hasattr(trainer, attribute):
                problems.append("the trainer has no attribute '{}'".format(attribute))
        for path in cls.scalars:
            try:
                _get(model, path)
            except AttributeError:
                problems.append("its model has no attribute '{}'".format(path))
        for method in ("train_one_step", "rollout"):
            if not callable(getattr(trainer, method, None)):
                problems.append("the trainer has no method '{}'".format(method))
        unknown = [name for name in cls._asked(trainer) if name not in cls.inputs]
        if unknown:
            problems.append("its train_one_step asks for {}, but a batch has only {}".format(
                ", ".join("'{}'".format(name) for name in unknown), ", ".join(cls.inputs)))
        return problems

    @classmethod
    def _asked(cls, trainer):
        """Names of the parameters of ``train_one_step``."""
        step = getattr(trainer, "train_one_step", None)
        parameters = list(inspect.signature(step).parameters.values()) if callable(step) else []
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):  # a subclass that passes on what it is given
            parameters = list(inspect.signature(cls.classes()[1].train_one_step).parameters.values())[1:]
        return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]

    # Building an agent ------------------------------------------------------------------------------------------------

    @classmethod
    def classes(cls):
        """OSRL's (model class, trainer class)."""
        module, _, name = cls.trainer_class.partition(":")
        module = importlib.import_module(module)
        return getattr(module, name[:-len("Trainer")]), getattr(module, name)

    @classmethod
    def missing_settings(cls, config):
        """Arguments of the model's constructor that ``config`` (a run's config.yaml) does not give."""
        return [name for name in inspect.signature(cls.classes()[0].__init__).parameters
                if name not in config and name not in cls.constants + cls.derived + ("self", "device")]

    @classmethod
    def has_networks(cls, names):
        """Whether an agent whose checkpoint holds the networks ``names`` may be this one."""
        return names == {part.module for part in cls.parts.values()} - set(cls.tensors) | set(cls.targets)

    @classmethod
    def build(cls, config, env, device="cpu"):
        """A new agent and trainer for ``env`` from a run's configuration, as OSRL's scripts make them."""
        from fsrl.utils import DummyLogger
        model_class, trainer_class = cls.classes()
        given = dict(config, env=env, device=device, logger=DummyLogger(), **cls.given(config, env))
        pick = lambda f: {n: given[n] for n in inspect.signature(f.__init__).parameters if n in given}  # noqa: E731
        model = model_class(**pick(model_class)).to(device)
        return cls(trainer_class(model, **pick(trainer_class)), config)

    @classmethod
    def given(cls, config, env):
        """The ``derived`` arguments, and stand-ins for ``constants`` until :meth:`set_data_constants`."""
        return {"state_dim": env.observation_space.shape[0], "action_dim": env.action_space.shape[0],
                "max_action": env.action_space.high[0]}

    # State ------------------------------------------------------------------------------------------------------------

    def _attributes(self, kind):
        return {name: value for owner in (self.trainer, self.model) for name, value in vars(owner).items()
                if isinstance(value, kind)}

    def optimizers(self):
        """{attribute: optimiser} of the model and the trainer, whether a part has it or not."""
        return self._attributes(torch.optim.Optimizer)

    def schedulers(self):
        """{attribute: learning-rate scheduler} of the model and the trainer."""
        return self._attributes(_Scheduler)

    def advance(self, updates):
        """Set counters of updates, which OSRL's checkpoints leave out, to what they are after ``updates`` updates.

        Returns the names of the ``scalars`` that have been set.
        """
        return ()

    def hidden_state(self):
        """The training state that OSRL's checkpoints leave out, as tensors and Python primitives."""
        return self._hidden(self.optimizers(), self.schedulers())

    def _hidden(self, optimizers, schedulers):
        return {
            "optimizers": {name: copy.deepcopy(o.state_dict()) for name, o in optimizers.items()},
            "schedulers": {name: copy.deepcopy(s.state_dict()) for name, s in schedulers.items()},
            "tensors": {name: getattr(self.model, name).detach().clone() for name in self.tensors},
            "scalars": {path: _plain(_get(self.model, path)) for path in self.scalars},
            "constants": {name: _plain(getattr(self.model, name)) for name in self.constants},
        }

    def state(self):
        """Everything that training changes; :meth:`restore` of it is exact."""
        weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return dict(self.hidden_state(), weights=weights)

    def restore(self, state):
        """Go back to a state that :meth:`state` or :meth:`hidden_state` returned.

        Raises RunError when the state is of another agent or architecture; the agent is then unchanged.
        """
        if "weights" in state:
            self._check_weights(state["weights"])
        wanted = {"optimizers": set(self.optimizers()), "schedulers": set(self.schedulers()),
                  "tensors": set(self.tensors), "scalars": set(self.scalars), "constants": set(self.constants)}
        for kind, names in wanted.items():
            if set(state.get(kind, {})) != names:
                raise RunError("the saved training state is not one of {}: it holds the {} {}".format(
                    self.name, kind, ", ".join(sorted(state.get(kind, {}))) or "(none)"))
        if "weights" in state:
            self.model.load_state_dict(state["weights"])
        self._put(state)

    def _put(self, state):
        for name, saved in state["optimizers"].items():
            self.optimizers()[name].load_state_dict(copy.deepcopy(saved))
        for name, saved in state.get("schedulers", {}).items():
            self.schedulers()[name].load_state_dict(copy.deepcopy(saved))
        with torch.no_grad():
            for name, saved in state["tensors"].items():
                getattr(self.model, name).copy_(saved)
        for kind in ("scalars", "constants"):
            for path, saved in state[kind].items():
                # The model must not share memory with the saved state: updates may work in place.
                value = _plain(saved)
                _set(self.model, path, value.to(self.device) if torch.is_tensor(value) else value)

    def load_weights(self, weights):
        """Load a ``model_state``. Raises RunError for another architecture; the agent is then unchanged."""
        self._check_weights(weights)
        self.model.load_state_dict(weights)

    def _check_weights(self, weights):
        own = self.model.state_dict()
        wrong = [n for n in sorted(set(own) | set(weights))
                 if n not in own or n not in weights or own[n].shape != weights[n].shape]
        if wrong:
            raise RunError("the checkpoint has another architecture than its configuration: {} of {} tensors differ, "
                           "the first is '{}'".format(len(wrong), len(own), wrong[0]))

    def reset(self):
        """Make the agent as if freshly built: new weights from torch's global generator, fresh optimisers and duals.

        Raises IncompatibleAgent if some parameter belongs to a module that cannot re-initialise itself.
        """
        covered = set()
        for name, module in self.model.named_children():
            if name not in self.targets:
                self.initialise(module, covered)
        followers = {id(p) for name in self.targets for p in getattr(self.model, name).parameters()}
        left = [n for n, p in self.model.named_parameters() if id(p) not in covered | followers]
        if left:
            raise IncompatibleAgent(type(self.trainer).__name__, [
                "the parameter '{}' has no reset_parameters(), so the agent cannot be retrained from scratch".format(n)
                for n in left])
        for optimizer in self.optimizers().values():
            optimizer.state.clear()
        self.reset_hidden()
        self.sync_targets()

    def initialise(self, module, covered):
        """Give ``module`` new weights, from the leaves upwards as constructors do; ``covered`` gets their ids."""
        for child in module.children():
            self.initialise(child, covered)
        # torch.nn.MultiheadAttention has the second name.
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if reset is not None:
            reset()
            covered.update(id(p) for p in module.parameters(recurse=False))

    def sync_targets(self, role=None):
        """Make every target network equal to the network that it follows, or only those that follow ``role``."""
        for target, source in self.targets.items():
            if role is not None and source != self.parts[role].module:
                continue
            getattr(self.model, target).load_state_dict(getattr(self.model, source).state_dict())

    @abstractmethod
    def reset_hidden(self):
        """Set ``tensors`` and ``scalars`` to what the model's constructor sets them to."""

    def set_data_constants(self, view):
        """Recompute ``constants`` from the data to be used, a view. Nothing to do by default."""

    def frozen(self):
        """A copy whose networks never change: the reference that an unlearned agent is compared with.

        OSRL's models cannot always be deep-copied (COptiDICE keeps non-leaf tensors), so only networks are.
        """
        model = copy.copy(self.model)
        model._modules = {name: copy.deepcopy(module) for name, module in self.model._modules.items()}
        model._parameters = copy.deepcopy(self.model._parameters)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for name in self.tensors:
            # A leaf of its own under the same name; it was never registered as a parameter.
            model.__dict__[name] = getattr(self.model, name).detach().clone()
        twin = copy.copy(self)
        twin.model = model
        return twin

    def twin(self):
        """An independent copy with networks, optimisers and duals of its own; environment and logger are shared.

        Unlike a :meth:`frozen` one it can act in the environment and be trained: the agent before unlearning, for an
        audit.
        """
        # What an update leaves on COptiDICE is part of a graph, which cannot be copied; the next one makes it anew.
        memo = {id(value): value.detach().clone() for value in vars(self.model).values()
                if torch.is_tensor(value) and not value.is_leaf}
        trainer = copy.copy(self.trainer)
        trainer.model = copy.deepcopy(self.model, memo)
        for name, own in {**self.optimizers(), **self.schedulers()}.items():
            if name in vars(trainer):
                setattr(trainer, name, copy.deepcopy(own, memo))
        return type(self)(trainer, self.config)

    @property
    def device(self):
        """Device of the agent's networks."""
        return next(self.model.parameters()).device

    # Updates ----------------------------------------------------------------------------------------------------------

    def update(self, batch, extra=None, edit=None):
        """One of OSRL's own updates on ``batch``, in which the gradients of some parts are changed.

        Args:
            batch: a :class:`~osrl_unlearn.data.views.Batch`.
            extra: {role: function that returns a scalar loss}. It is evaluated right before the optimiser of that part
                steps, and only that part's parameters receive its gradient.
            edit: {role: function of OSRL's own gradients, which returns those to use}: a list in the order of
                :meth:`parameters`, before those of ``extra`` are added. A parameter whose gradient is None stays.

        Returns:
            {name: value} of OSRL's own losses.
        """
        logger, recorder = self.trainer.logger, _Recorder()
        self.trainer.logger = recorder
        try:
            with self._changing(extra or {}, edit or {}):
                self.trainer.train_one_step(*self.arguments(batch))
        finally:
            self.trainer.logger = logger
        return recorder.losses

    def arguments(self, batch):
        """What ``train_one_step`` is called with, by the names of its parameters."""
        return [self.inputs[name](batch) for name in self._asked(self.trainer)]

    def gradients(self, batch):
        """{role: [gradient or None]} of OSRL's own losses on ``batch``, see :meth:`parameters`; the agent stays as is.

        Takes as long as an update. Unlike in an update, no part has stepped when the losses of the others are computed.
        """
        found, saved = {}, self.state()

        def record(role):
            def edit(gradients):
                found[role] = [None if g is None else g.detach().clone() for g in gradients]
                return [None] * len(gradients)
            return edit

        try:
            self.update(batch, edit={role: record(role) for role in self.parts})
        finally:
            self.restore(saved)
        return found

    def parameters(self, role):
        """The parameters of a part, as its optimiser has them."""
        return _parameters(self.optimizers()[self.parts[role].optimizer])

    @contextmanager
    def duals_kept(self):
        """Updates inside leave multipliers and controllers (``tensors``, ``scalars``) as they were before."""
        saved = self._hidden({part.optimizer: _on_either(self.trainer, part.optimizer) for part in self.parts.values()
                              if part.module in self.tensors}, {})
        try:
            yield
        finally:
            self._put(saved)

    @contextmanager
    def _changing(self, extra, edit):
        touched = []
        # CDT clips its gradient before the step. What has to be clipped is the sum, or the weights mean nothing.
        clip_grad = getattr(self.trainer, "clip_grad", None) if "actor" in set(extra) | set(edit) else None
        if clip_grad is not None:
            self.trainer.clip_grad = None
        for role in sorted(set(extra) | set(edit)):
            optimizer = _on_either(self.trainer, self.parts[role].optimizer)
            # A learning-rate scheduler may have shadowed step() on the instance already: put back what was there.
            touched.append((optimizer, vars(optimizer).get("step")))
            optimizer.step = _changed_step(optimizer, optimizer.step, extra.get(role), edit.get(role),
                                           clip_grad if role == "actor" else None)
        try:
            yield
        finally:
            if clip_grad is not None:
                self.trainer.clip_grad = clip_grad
            for optimizer, before in touched:
                if before is None:
                    del optimizer.step
                else:
                    optimizer.step = before

    # Data -------------------------------------------------------------------------------------------------------------

    def notes(self):
        """What a reader of a report has to know of this agent, as a list of sentences."""
        return []

    def training_rows(self, data):
        """Row numbers of ``data`` that OSRL trains this agent on, shape [n]."""
        return np.arange(len(data["rewards"]))

    def store(self, data, reward_scale=1.0, cost_scale=1.0):
        """What the agent's batches are drawn from: ``data`` as the agent sees them."""
        return TransitionStore(data, reward_scale, cost_scale, self.device)

    @property
    def reward_scale(self):
        """What OSRL multiplies rewards by in training and in the environment."""
        return getattr(self.trainer, "reward_scale", 1.0)

    @property
    def cost_scale(self):
        """What OSRL multiplies costs by in training."""
        return getattr(self.trainer, "cost_scale", 1.0)

    # What the agent says ----------------------------------------------------------------------------------------------

    @property
    def gamma(self):
        """The agent's discount; 0.99, OSRL's usual one, for agents that have none."""
        return getattr(self.model, "gamma", 0.99)

    @property
    def cost_limit(self):
        """The cost limit per episode, or None if it is not known."""
        return self.config.get("cost_limit")

    @property
    def cost_threshold(self):
        """The cost limit, scaled as costs are in training, in discounted units: x (1 - gamma^H) / ((1 - gamma) H).

        None if the limit is not known.
        """
        if self.cost_limit is None:
            return None
        length, gamma = self.model.episode_len, self.gamma
        return self.cost_limit * self.cost_scale * (1 - gamma ** length) / ((1 - gamma) * length)

    @abstractmethod
    def actions(self, batch):
        """The policy's actions in the batch's states [n, act_dim], differentiable; as it acts when it is evaluated."""

    def imitation_loss(self, batch, actions):
        """Falls as the policy comes to take ``actions`` [n, act_dim] in the batch's states; without a unit. Scalar.

        Negative log-density per dimension; without one, or if it is ``narrow``, the distance in units of the spread
        of ``actions``.
        """
        if "log_prob" in self.capabilities and not self.narrow:
            return -self.log_prob(batch._replace(actions=actions)).mean() / actions.shape[1]
        return self.action_distance(batch, actions)

    def action_distance(self, batch, actions):
        """Mean distance of the policy's actions to ``actions`` [n, act_dim], in units of their spread. Scalar."""
        return (self.actions(batch) - actions).norm(dim=-1).mean() / actions.std(0).norm().clamp(min=1e-6)

    def policy_distance(self, batch, before):
        """How far the policy is from that of ``before``, an adapter without gradient, in the batch's states. Scalar.

        The Kullback-Leibler divergence of the Gaussians per dimension; without one, or if ``narrow``, the distance
        in units of the spread of the actions.
        """
        with torch.no_grad():
            old = None if self.narrow else before.normal(batch)
        if old is None:
            with torch.no_grad():
                actions = before.actions(batch)
            return self.action_distance(batch, actions)
        return torch.distributions.kl_divergence(old, self.normal(batch)).mean()

    def normal(self, batch):
        """The Gaussian that an action is drawn from before it is squashed, shapes [n, dim]; None if there is none."""
        return None

    def log_prob(self, batch):
        """Log-density of the logged actions, with the capability "log_prob". Shape [n]."""
        raise NotImplementedError("{} has no density of actions".format(self.name))

    def rollout(self):
        """One episode of OSRL's own evaluation: (reward, cost, length), in the environment's own units."""
        reward, length, cost = self.trainer.rollout()
        return float(reward) / self.reward_scale, float(cost) / self.cost_scale, float(length)


def _parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def _changed_step(optimizer, step, loss, edit, clip_grad):
    @functools.wraps(step)  # schedulers look for a mark on the function
    def changed_step(*args, **kwargs):
        parameters = _parameters(optimizer)
        if edit is not None:
            for parameter, gradient in zip(parameters, edit([p.grad for p in parameters])):
                parameter.grad = gradient
        if loss is not None:
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, gradients):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip_grad)
        return step(*args, **kwargs)
    return changed_step


def _on_either(trainer, name):
    return getattr(trainer.model, name, getattr(trainer, name, None))


def _get(root, path):
    for name in path.split("."):
        root = getattr(root, name)
    return root


def _set(root, path, value):
    *parents, last = path.split(".")
    for name in parents:
        root = getattr(root, name)
    setattr(root, last, value)


def _plain(value):
    if torch.is_tensor(value):
        return value.detach().clone()
    return value.item() if hasattr(value, "item") else value
