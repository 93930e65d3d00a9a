"""The one interface through which unlearning methods see an OSRL agent."""
import copy
import importlib
import inspect
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import ClassVar, Dict, FrozenSet, NamedTuple, Tuple

import torch

from osrl_unlearn.errors import IncompatibleAgent, RunError


class Part(NamedTuple):
    """Where a trainable network and its optimiser are on the model."""
    module: str
    optimizer: str


class _Recorder:
    """Takes the place of OSRL's logger during an update, so that the losses are returned and not logged twice."""

    def __init__(self):
        self.losses = {}

    def store(self, tab=None, **losses):
        self.losses.update(losses)


class Adapter(ABC):
    """One OSRL agent: where its parts are and what its critics and policy say. Holds no unlearning mathematics.

    Class attributes:
        trainer_class: "module:Class" of OSRL's trainer; subclasses of it are recognised too.
        capabilities: what the agent offers: "values" (a reward and a cost critic), "action_values" (they are critics of
            state and action), "log_prob", "generator" (a generative model of the behaviour), "data_constants" (numbers
            computed from the dataset).
        parts: role -> :class:`Part`; the roles are "actor", "reward_critic", "cost_critic", "generator" and others.
        targets: {target network: network it follows}.
        tensors: tensors of the model that training changes and ``state_dict`` leaves out.
        scalars: attributes (dotted) that training changes and ``state_dict`` leaves out.
        constants: attributes of the model that were computed from the dataset.
        columns: how many columns of a Batch one native update takes.

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
    columns: ClassVar[int] = 6

    def __init__(self, trainer):
        problems = self.check(trainer)
        if problems:
            raise IncompatibleAgent(type(trainer).__name__, problems)
        self.trainer = trainer
        self.model = trainer.model

    # Recognising an agent ---------------------------------------------------------------------------------------------

    @classmethod
    def matches(cls, trainer):
        """Whether ``trainer`` is OSRL's trainer for this agent or derives from it."""
        return any("{}:{}".format(base.__module__, base.__qualname__) == cls.trainer_class
                   for base in type(trainer).__mro__)

    @classmethod
    def check(cls, trainer):
        """Everything that stands in the way of using this adapter on ``trainer``, as a list of sentences."""
        model = getattr(trainer, "model", None)
        if model is None:
            return ["the trainer has no attribute 'model'"]
        problems = []
        for role, part in cls.parts.items():
            for attribute, expected in zip(part, ((torch.nn.Module, torch.Tensor), torch.optim.Optimizer)):
                if not isinstance(getattr(model, attribute, None), expected):
                    problems.append("its model has no {} '{}' (the {})".format(
                        "optimiser" if expected is torch.optim.Optimizer else "network", attribute, role))
        for attribute in tuple(cls.targets) + cls.tensors + cls.constants:
            if not hasattr(model, attribute):
                problems.append("its model has no attribute '{}'".format(attribute))
        for path in cls.scalars:
            try:
                _get(model, path)
            except AttributeError:
                problems.append("its model has no attribute '{}'".format(path))
        if not callable(getattr(trainer, "train_one_step", None)):
            problems.append("the trainer has no method 'train_one_step'")
        return problems

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
        return [name for name, parameter in inspect.signature(cls.classes()[0].__init__).parameters.items()
                if name not in config and name not in cls.constants
                and name not in ("self", "state_dim", "action_dim", "max_action", "device")]

    @classmethod
    def build(cls, config, env, device="cpu"):
        """A new agent and trainer for ``env`` from a run's configuration, as OSRL's scripts make them."""
        from fsrl.utils import DummyLogger
        model_class, trainer_class = cls.classes()
        given = dict(config, env=env, device=device, logger=DummyLogger(), state_dim=env.observation_space.shape[0],
                     action_dim=env.action_space.shape[0], max_action=env.action_space.high[0],
                     **cls.blank_constants(env))
        pick = lambda f: {n: given[n] for n in inspect.signature(f.__init__).parameters if n in given}  # noqa: E731
        model = model_class(**pick(model_class))
        return cls(trainer_class(model, **pick(trainer_class)))

    @classmethod
    def blank_constants(cls, env):
        """Stand-ins for ``constants`` until :meth:`set_data_constants`."""
        return {}

    # State ------------------------------------------------------------------------------------------------------------

    def optimizers(self):
        """{attribute: optimiser} of every part."""
        return {part.optimizer: getattr(self.model, part.optimizer) for part in self.parts.values()}

    def hidden_state(self):
        """The training state that OSRL's checkpoints leave out, as tensors and Python primitives."""
        return self._hidden(self.optimizers())

    def _hidden(self, optimizers):
        return {
            "optimizers": {name: copy.deepcopy(o.state_dict()) for name, o in optimizers.items()},
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
        wanted = {"optimizers": set(self.optimizers()), "tensors": set(self.tensors), "scalars": set(self.scalars),
                  "constants": set(self.constants)}
        for kind, names in wanted.items():
            if set(state.get(kind, {})) != names:
                raise RunError("the saved training state is not one of {}: it holds the {} {}".format(
                    self.name, kind, ", ".join(sorted(state.get(kind, {}))) or "(none)"))
        if "weights" in state:
            self.model.load_state_dict(state["weights"])
        self._put(state)

    def _put(self, state):
        for name, saved in state["optimizers"].items():
            getattr(self.model, name).load_state_dict(copy.deepcopy(saved))
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
        for part in self.parts.values():
            module = getattr(self.model, part.module)
            if isinstance(module, torch.nn.Module):
                for child in module.modules():
                    if hasattr(child, "reset_parameters"):
                        child.reset_parameters()
                        covered.update(id(p) for p in child.parameters(recurse=False))
        followers = {id(p) for name in self.targets for p in getattr(self.model, name).parameters()}
        left = [n for n, p in self.model.named_parameters() if id(p) not in covered | followers]
        if left:
            raise IncompatibleAgent(type(self.trainer).__name__, [
                "the parameter '{}' has no reset_parameters(), so the agent cannot be retrained from scratch".format(n)
                for n in left])
        self.sync_targets()
        for optimizer in self.optimizers().values():
            optimizer.state.clear()
        self.reset_hidden()

    def sync_targets(self):
        """Make every target network equal to the network that it follows."""
        for target, source in self.targets.items():
            getattr(self.model, target).load_state_dict(getattr(self.model, source).state_dict())

    @abstractmethod
    def reset_hidden(self):
        """Set ``tensors`` and ``scalars`` to what the model's constructor sets them to."""

    def set_data_constants(self, batch):
        """Recompute ``constants`` from ``batch`` (all rows of the data to be used). Nothing to do by default."""

    def frozen(self):
        """A copy whose networks never change: the reference that an unlearned agent is compared with.

        OSRL's models cannot always be deep-copied (COptiDICE keeps non-leaf tensors), so only networks are.
        """
        model = copy.copy(self.model)
        model._modules = {name: copy.deepcopy(module) for name, module in self.model._modules.items()}
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for name in self.tensors:
            # A leaf of its own under the same name; it was never registered as a parameter.
            model.__dict__[name] = getattr(self.model, name).detach().clone()
        twin = copy.copy(self)
        twin.model = model
        return twin

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
                self._native_update(batch[:self.columns])
        finally:
            self.trainer.logger = logger
        return recorder.losses

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
        saved = self._hidden({part.optimizer: getattr(self.model, part.optimizer) for part in self.parts.values()
                              if part.module in self.tensors})
        try:
            yield
        finally:
            self._put(saved)

    def _native_update(self, columns):
        self.trainer.train_one_step(*columns)

    @contextmanager
    def _changing(self, extra, edit):
        touched = []
        for role in sorted(set(extra) | set(edit)):
            optimizer = getattr(self.model, self.parts[role].optimizer)
            # A learning-rate scheduler may have shadowed step() on the instance already: put back what was there.
            touched.append((optimizer, vars(optimizer).get("step")))
            optimizer.step = _changed_step(optimizer, optimizer.step, extra.get(role), edit.get(role))
        try:
            yield
        finally:
            for optimizer, before in touched:
                if before is None:
                    del optimizer.step
                else:
                    optimizer.step = before

    # What the agent says ----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def cost_threshold(self):
        """The cost limit as the agent's critics see it: limit x (1 - gamma^H) / ((1 - gamma) H), as OSRL has it."""

    @abstractmethod
    def actions(self, observations):
        """The policy's actions [n, act_dim], differentiable; as the agent acts when it is evaluated."""

    @abstractmethod
    def reward_value(self, batch):
        """The reward critic on the logged transitions. Shape [heads, n]."""

    @abstractmethod
    def cost_value(self, batch):
        """The cost critic on the logged transitions. Shape [heads, n]."""

    @abstractmethod
    def preference(self, batch):
        """How much the reward critic favours each logged transition, up to a constant. Shape [n]."""

    @abstractmethod
    def cost_price(self, batch, violating=True):
        """What a violating transition costs at least, or a harmless one at most, in units of the cost critic.

        Without gradient. Shape [n].
        """

    @abstractmethod
    def violation(self, batch):
        """Estimated relative violation of the constraint by the policy: (cost - limit) / limit. A float tensor."""

    def constrain(self, batch, multiplier):
        """The batch for a native update under an extra Lagrange multiplier; agents with action values ignore it."""
        return batch


def _parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def _changed_step(optimizer, step, loss, edit):
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
        return step(*args, **kwargs)
    return changed_step


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
