"""What a bench is to compute: a YAML file (see configs/bench) of agents on tasks, and of attacks at some rates."""
import dataclasses
import inspect
import itertools
import os
import re
from typing import ClassVar

from osrl_unlearn import environments, resources
from osrl_unlearn.attacks.base import Attack
from osrl_unlearn.data.trajectories import UNITS
from osrl_unlearn.errors import ConfigError, DataError
from osrl_unlearn.options import check_seed, parse
from osrl_unlearn.registry import ADAPTERS, ATTACKS, METHODS, nearest, read_yaml

REQUIRED = ("cost_limit", "episode_len", "reward_scale", "cost_scale")  # of every agent
OF_SCRIPTS = {"batch_size", "update_steps", "num_workers", "eval_episodes", "eval_every"}  # settings have their own


@dataclasses.dataclass
class Evaluation:
    """An agent is evaluated at its ``last`` checkpoints, ``every`` updates apart, ``episodes`` episodes at each."""
    last: int
    every: int
    episodes: int

    def __post_init__(self):
        if min(self.last, self.every, self.episodes) < 1:
            raise ValueError("last, every and episodes must be at least 1")


@dataclasses.dataclass
class Setting:
    """An agent on a task. ``agent`` is OSRL's configuration and the "name" of the adapter."""
    task: str
    updates: int
    agent: dict
    min_return: float  # a clean agent that earns less has learned nothing
    evaluation: dict
    batch_size: int = 256

    def __post_init__(self):
        missing = [key for key in ("name",) + REQUIRED if key not in self.agent]
        if missing:
            raise ValueError("the agent lacks {}".format(", ".join(missing)))
        evaluation = _parse(Evaluation, self.evaluation, "evaluation.")
        if self.updates <= evaluation.every * (evaluation.last - 1):
            raise ValueError("{} checkpoints, {} updates apart, do not fit into {} updates".format(
                evaluation.last, evaluation.every, self.updates))


@dataclasses.dataclass
class AttackSetting:
    """An attack with its options at some ``rates``: a list, or {setting: list} if it is not for all of them."""
    name: str
    rates: object
    unit: str = "trajectory"
    options: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        cls = ATTACKS.load(self.name)
        # All options, because defaults may change.
        self.options = dataclasses.asdict(parse(cls.Options, self.options, "options of '{}': ".format(self.name)))
        if self.unit not in cls.units:
            raise ValueError("unit must be one of {}, got '{}'".format(
                ", ".join(unit for unit in UNITS if unit in cls.units), self.unit))
        for rates in self.rates.values() if isinstance(self.rates, dict) else [self.rates]:
            if not isinstance(rates, list) or not rates or not all(
                    isinstance(rate, (int, float)) and 0 < rate <= 1 for rate in rates):
                raise ValueError("rates must be shares above 0 and at most 1, got {}".format(rates))

    def on(self, name):
        """The rates in the setting ``name``."""
        return self.rates.get(name, []) if isinstance(self.rates, dict) else self.rates

    @property
    def triggered(self):
        """Whether the attack has a trigger; which one is known only after it has seen data."""
        return ATTACKS.load(self.name).trigger is not Attack.trigger

    def spec(self, rate):
        """A cell's "poison"."""
        return {"name": self.name, "options": self.options, "rate": rate, "unit": self.unit}


@dataclasses.dataclass
class DataSetting:
    """The dataset of a task, for benches without agents."""
    task: str


@dataclasses.dataclass
class DataSuite:
    """A suite file without agents: {setting: :class:`DataSetting`} and attacks, computed for all ``seeds``."""
    settings: dict
    attacks: dict
    seeds: list
    kind: ClassVar[type] = DataSetting

    def __post_init__(self):
        if not self.seeds:
            raise ValueError("seeds must be at least one")
        for seed in self.seeds:
            check_seed(seed)
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must differ, got {}".format(self.seeds))
        self.settings = each(self.kind, "settings", self.settings, self.defaults)
        self.attacks = each(AttackSetting, "attacks", self.attacks, lambda label: {"name": label})
        for attack in self.attacks.values():
            for name in attack.rates if isinstance(attack.rates, dict) else ():
                known(name, self.settings)

    def defaults(self, name):
        """What a setting has that says nothing else."""
        return {}

    def select(self, names):
        """Keep only the settings called ``names``. Raises ConfigError."""
        self.settings = {name: known(name, self.settings) for name in names}

    def everything(self):
        """All settings, for whatever is computed in them."""
        return self.settings

    def attacked(self, name):
        """(label, :class:`AttackSetting`, rate) of all that is to be done to the setting ``name``.

        Rates of one attack share a surrogate: next to each other, they would wait for it in two processes.
        """
        for rates in itertools.zip_longest(*(attack.on(name) for attack in self.attacks.values())):
            for (label, attack), rate in zip(self.attacks.items(), rates):
                if rate is not None:
                    yield label, attack, rate


@dataclasses.dataclass
class Suite(DataSuite):
    """A suite file with agents: {setting: :class:`Setting`} and attacks, computed for all ``seeds``."""
    evaluation: dict = dataclasses.field(default_factory=dict)  # of settings that have none of their own
    kind: ClassVar[type] = Setting

    def defaults(self, name):
        """The evaluation of the suite."""
        return {"evaluation": self.evaluation}


def _parse(cls, values, where):
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in values
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    if missing:
        raise ConfigError("{}{} is missing".format(where, missing[0]))
    return parse(cls, values, where)


def each(cls, kind, values, defaults=lambda name: {}):
    """{name: ``cls``} of a suite's part called ``kind``. Raises ConfigError."""
    out = {}
    for name, value in values.items():
        if not isinstance(value, dict):
            raise ConfigError("{}.{}: expected a mapping, got {!r}".format(kind, name, value))
        out[name] = _parse(cls, dict(defaults(name), **value), "{}.{}.".format(kind, name))
    return out


def read(source, only=None, seeds=None, cls=Suite):
    """The suite of a YAML file, or of what it holds; with ``only`` these of its settings, and with other ``seeds``.

    Agents that are a list are those that configs/bench/agents.yaml calls so. Raises ConfigError.
    """
    values = dict(source) if isinstance(source, dict) else read_yaml(source)
    for part in ("settings", "agents"):
        if isinstance(values.get(part), list):
            shared = shared_agents()
            values[part] = {str(name): known(name, shared) for name in values[part]}
    if seeds:
        values.update(seeds=seeds)
        values.pop("more_seeds", None)
    suite = _parse(cls, values, "" if isinstance(source, dict) else os.path.basename(source) + ": ")
    if only:
        suite.select(only)
    for label, attack in suite.attacks.items() if getattr(suite, "methods", None) else ():
        if ATTACKS.load(attack.name).removes_rows:
            raise ConfigError("attacks.{}: '{}' only removes rows, so there is nothing to forget".format(
                label, attack.name))
    return suite


def shared_agents():
    """{setting: mapping} of configs/bench/agents.yaml."""
    return read_yaml(os.path.join(resources.folder("configs"), "bench", "agents.yaml"))


def known(name, settings):
    """The setting called ``name``. Raises ConfigError if there is none."""
    if not isinstance(name, str) or name not in settings:
        raise ConfigError("unknown setting '{}': {}".format(name, nearest(str(name), settings)))
    return settings[name]


def fits(method, setting):
    """Whether a method (of a suite) can work with the agent of a :class:`Setting`."""
    return not _lacks(method, setting)


def _lacks(method, setting):
    return sorted(METHODS.load(method.name).requires - ADAPTERS.load(setting.agent["name"]).capabilities)


def left_out(suite):
    """A sentence for every method of ``suite`` that cannot work with the agent of a setting; nothing is planned there.

    What a script trains is known only later.
    """
    return ["`{}` is left out on {}: it needs {}, which that agent lacks.".format(
        label, name, " and ".join(_lacks(method, setting))) for label, method in getattr(suite, "methods", {}).items()
        for name, setting in suite.settings.items() if isinstance(setting, Setting) and not fits(method, setting)]


def check_agents(suite):
    """Build every agent once, so that a mistake in a suite is found before anything is computed. Raises ConfigError."""
    import torch
    for name, setting in suite.everything().items():
        if not isinstance(setting, Setting):
            continue
        cls, config = ADAPTERS.load(setting.agent["name"]), dict(setting.agent)
        env = environments.make(setting.task, config["cost_limit"], config["reward_scale"])
        accepted = {"name", "task", "target_returns", *REQUIRED}.union(
            *(inspect.signature(c.__init__).parameters for c in cls.classes()))
        accepted |= {"outliers_percent", "noise_scale", "inpaint_ranges", "epsilon", "density"}
        shipped = os.path.join(resources.folder("configs"), "agents", cls.name + ".yaml")
        if os.path.isfile(shipped):  # it has what the agent's data are prepared with, too
            accepted |= set(read_yaml(shipped)) - OF_SCRIPTS
        wrong = [key for key in config if key not in accepted]
        if wrong:
            raise ConfigError("settings.{}.agent: {} has no option '{}': {}".format(
                name, cls.name, wrong[0], nearest(wrong[0], accepted - {"self"})))
        missing = cls.missing_settings(config)
        if missing:
            raise ConfigError("settings.{}.agent: {} needs {}".format(name, cls.name, ", ".join(missing)))
        if config.get("device", "cpu") != "cpu" and not torch.cuda.is_available():
            raise ConfigError("settings.{}.agent.device is '{}', but torch finds no GPU here: run where there is one, "
                              "or leave the device out".format(name, config["device"]))
        try:
            cls.build(config, env)
        except (TypeError, ValueError) as error:  # of OSRL's classes, which check nothing
            raise ConfigError("settings.{}.agent: {} cannot be built: {}".format(name, cls.name, error))


def dataset_file(task, folder):
    """The HDF5 file of ``task`` in ``folder``: OfflineBallCircle-v0 is BallCircle*.hdf5, or SafetyBallCircle*.hdf5.

    What an interrupted collection has left (*.partial.hdf5) does not count. Raises DataError unless there is exactly
    one.
    """
    short = re.sub(r"^Offline|-v\d+$", "", task)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [name for name in names if re.fullmatch("(Safety)?" + re.escape(short) + r"([^0-9A-Za-z].*)?\.hdf5", name)
             and not name.endswith(".partial.hdf5")]
    if len(found) != 1:
        raise DataError("{} holds {} for {}: expected exactly one {}*.hdf5".format(
            folder, " and ".join(found) or "no file", task, short))
    return os.path.join(os.path.abspath(folder), found[0])
