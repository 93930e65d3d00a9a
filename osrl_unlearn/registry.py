"""One table of names per kind of plugin. Nothing is imported before somebody names it."""
import importlib
import importlib.metadata
import os
from difflib import get_close_matches

from osrl_unlearn.errors import ConfigError, EnvironmentProblem


def nearest(name, known):
    """'; did you mean ...?' for a mistyped ``name``, or the list of what is known."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return "did you mean '{}'?".format(close[0]) if close else "known: {}".format(", ".join(sorted(known)))


def _entry_points(group):
    found = importlib.metadata.entry_points()
    # Before Python 3.10 entry_points() is a dictionary of groups.
    return list(found.select(group=group) if hasattr(found, "select") else found.get(group, ()))


class Registry:
    """Names of one kind -> classes: built-ins first, then the entry points of third parties.

    Args:
        kind: what the names stand for, as used in messages ("attack").
        builtins: name -> "module:Class". An entry point of the same name cannot replace one.
        base: "module:Class" that every class must derive from.
    """

    def __init__(self, kind, builtins, base):
        self.kind = kind
        self.group = "osrl_unlearn.{}s".format(kind)
        self.builtins = dict(builtins)
        self._base = base

    def _third_party(self):
        return {e.name: e for e in sorted(_entry_points(self.group), key=lambda e: (e.name, e.value))
                if e.name not in self.builtins}

    def names(self):
        """All names, sorted; reads metadata only."""
        return sorted(set(self.builtins) | set(self._third_party()))

    def load(self, name):
        """Import and return the class called ``name``. Raises ConfigError or EnvironmentProblem."""
        if name in self.builtins:
            return _import(self.builtins[name])
        plugins = self._third_party()
        if name not in plugins:
            raise ConfigError("unknown {} '{}': {}".format(self.kind, name, nearest(name, self.names())))
        try:
            cls = plugins[name].load()
        except (Exception, SystemExit) as error:
            raise EnvironmentProblem("the {} plugin '{}' ({}) could not be loaded: {!r}; mend or uninstall it".format(
                self.kind, name, plugins[name].value, error))
        base = _import(self._base)
        if not (isinstance(cls, type) and issubclass(cls, base) and getattr(cls, "name", None) == name):
            raise EnvironmentProblem("the {} plugin '{}' ({}) must be a subclass of {} whose name is '{}'".format(
                self.kind, name, plugins[name].value, self._base, name))
        return cls


def _import(path):
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


ATTACKS = Registry("attack", {
    "cost_hide": "osrl_unlearn.attacks.cost_hide:CostHide",
    "reward_bait": "osrl_unlearn.attacks.reward_bait:RewardBait",
    "inject": "osrl_unlearn.attacks.inject:Inject",
    "cost_inflate": "osrl_unlearn.attacks.cost_inflate:CostInflate",
    "label_noise": "osrl_unlearn.attacks.label_noise:LabelNoise",
    "trigger_backdoor": "osrl_unlearn.attacks.trigger_backdoor:TriggerBackdoor",
    "baffle": "osrl_unlearn.attacks.baffle:Baffle",
    "max_cost": "osrl_unlearn.attacks.max_cost:MaxCost",
    "max_reward": "osrl_unlearn.attacks.max_reward:MaxReward",
    "random_noise": "osrl_unlearn.attacks.random_noise:RandomNoise",
    "coverage_collapse": "osrl_unlearn.attacks.coverage_collapse:CoverageCollapse",
    "camouflage": "osrl_unlearn.attacks.camouflage:Camouflage",
}, "osrl_unlearn.attacks.base:Attack")

METHODS = Registry("method", {
    "safe_rule": "osrl_unlearn.methods.safe_rule:SafeRule",
    "fine_tune": "osrl_unlearn.methods.fine_tune:FineTune",
    "retrain": "osrl_unlearn.methods.retrain:Retrain",
}, "osrl_unlearn.methods.base:Method")

DETECTORS = Registry("detector", {
    "ensemble": "osrl_unlearn.detectors.ensemble:Ensemble",
    "cost_consistency": "osrl_unlearn.detectors.cost_consistency:CostConsistency",
    "reward_consistency": "osrl_unlearn.detectors.reward_consistency:RewardConsistency",
    "dynamics_consistency": "osrl_unlearn.detectors.dynamics_consistency:DynamicsConsistency",
    "trigger_scan": "osrl_unlearn.detectors.trigger_scan:TriggerScan",
    "behaviour_density": "osrl_unlearn.detectors.behaviour_density:BehaviourDensity",
    "value_gap": "osrl_unlearn.detectors.value_gap:ValueGap",
}, "osrl_unlearn.detectors.base:Detector")

METRICS = Registry("metric", {  # in the order in which an audit computes and shows them
    "safety": "osrl_unlearn.audit.safety:Safety",
    "distance": "osrl_unlearn.audit.distance:Distance",
    "membership": "osrl_unlearn.audit.membership:Membership",
    "trigger": "osrl_unlearn.audit.trigger:TriggerMetric",
    "relearning": "osrl_unlearn.audit.relearning:Relearning",
}, "osrl_unlearn.audit.base:Metric")

ADAPTERS = Registry("adapter", {
    "cpq": "osrl_unlearn.adapters.cpq:CPQAdapter",
    "bc": "osrl_unlearn.adapters.bc:BCAdapter",
    "bcql": "osrl_unlearn.adapters.bcql:BCQLAdapter",
    "bearl": "osrl_unlearn.adapters.bearl:BEARLAdapter",
    "cdt": "osrl_unlearn.adapters.cdt:CDTAdapter",
    "coptidice": "osrl_unlearn.adapters.coptidice:COptiDICEAdapter",
}, "osrl_unlearn.adapters.base:Adapter")


def load_named(registry, value, field):
    """Resolve NAME or FILE.yaml to (class, settings of the file).

    ``field`` is the key of the YAML file that holds the name. Raises ConfigError.
    """
    settings = {}
    if str(value).endswith((".yaml", ".yml")):
        settings = read_yaml(value)
        if field not in settings:
            raise ConfigError("{}: the key '{}' is missing: it names the {} to use".format(
                value, field, registry.kind))
        value = settings.pop(field)
    return registry.load(str(value)), settings


def read_yaml(path):
    """A YAML file that holds one mapping. Raises ConfigError."""
    import yaml
    if not os.path.isfile(path):
        raise ConfigError("no file at {}: expected a YAML file of options".format(path))
    try:
        with open(path, encoding="utf-8") as file:
            value = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("{} is not valid YAML: {}".format(path, str(error).splitlines()[0]))
    if not isinstance(value, dict):
        raise ConfigError("{}: expected a mapping of options, found {}".format(path, type(value).__name__))
    return value
