"""One table of names per kind of plugin. Nothing is imported before somebody names it."""
import importlib
import importlib.metadata
import os
from difflib import get_close_matches
from typing import Any, NamedTuple

from osrl_unlearn import __version__, resources
from osrl_unlearn.errors import ConfigError, EnvironmentProblem


def nearest(name, known):
    """'; did you mean ...?' for a mistyped ``name``, or the list of what is known."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return "did you mean '{}'?".format(close[0]) if close else "known: {}".format(", ".join(sorted(known)))


class Plugin(NamedTuple):
    """Who offers a name: "built-in" or a distribution; ``state`` is "ok", "broken: why" or "shadowed: why"."""

    kind: str
    name: str
    origin: str
    version: str
    state: str


class _Offer(NamedTuple):
    entry: Any
    origin: str
    version: str


def _offers(group):
    """The entry points of ``group`` in every distribution, sorted by name and distribution; reads metadata only."""
    found, seen = [], set()
    for distribution in importlib.metadata.distributions():
        try:
            entries = [entry for entry in distribution.entry_points if entry.group == group]
            origin, version = (distribution.metadata["Name"], distribution.version) if entries else (None, None)
        except Exception:
            continue  # half-uninstalled, or not ours to judge
        # A distribution can be on the path twice; the first hides the second, as with modules.
        if entries and origin not in seen:
            found += [_Offer(entry, origin, version) for entry in entries]
            seen.add(origin)
    return sorted(found, key=lambda offer: (offer.entry.name, offer.origin))


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

    def third_party(self):
        """Sorted names that only third parties offer; reads metadata only."""
        return sorted({offer.entry.name for offer in _offers(self.group)} - set(self.builtins))

    def modules(self):
        """Names of the modules that third parties' entry points name; reads metadata only."""
        return {offer.entry.value.partition(":")[0].strip() for offer in _offers(self.group)}

    def names(self):
        """All names, sorted; reads metadata only."""
        return sorted(set(self.builtins) | set(self.third_party()))

    def load(self, name):
        """Import and return the class called ``name``. Raises ConfigError or EnvironmentProblem."""
        if name in self.builtins:
            return _import(self.builtins[name])
        offers = [offer for offer in _offers(self.group) if offer.entry.name == name]
        if not offers:
            raise ConfigError("unknown {} '{}': {}".format(self.kind, name, nearest(name, self.names())))
        if len(offers) > 1:
            raise EnvironmentProblem("the {} '{}' is offered by {}: uninstall all but one".format(
                self.kind, name, " and ".join(offer.origin for offer in offers)))
        return self._load(offers[0])

    def plugins(self):
        """A :class:`Plugin` for every name; imports all of them."""
        out = [Plugin(self.kind, name, "built-in", __version__, _state(_import, path))
               for name, path in sorted(self.builtins.items())]
        offers = _offers(self.group)
        for offer in offers:
            name, origin = offer.entry.name, offer.origin
            rivals = [other.origin for other in offers if other.entry.name == name and other.origin != origin]
            if name in self.builtins:
                state = "shadowed: the built-in {} has this name".format(self.kind)
            elif rivals:
                state = "broken: also offered by {}; uninstall all but one".format(", ".join(rivals))
            else:
                state = _state(self._load, offer)
            out.append(Plugin(self.kind, name, origin, offer.version, state))
        return out

    def _load(self, offer):
        name = offer.entry.name
        where = "the {} plugin '{}' ({} of {} {})".format(
            self.kind, name, offer.entry.value, offer.origin, offer.version)
        try:
            cls = offer.entry.load()
        except (Exception, SystemExit) as error:
            raise EnvironmentProblem("{} could not be loaded: {!r}; mend or uninstall it".format(where, error))
        base = _import(self._base)
        if not (isinstance(cls, type) and issubclass(cls, base) and getattr(cls, "name", None) == name):
            raise EnvironmentProblem("{} must be a subclass of {} whose name is '{}'".format(where, self._base, name))
        return cls


def _state(load, what):
    try:
        load(what)
    except Exception as error:
        return "broken: {}".format(error)
    return "ok"


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
    "shards": "osrl_unlearn.methods.shards:Shards",
    "gradient_ascent": "osrl_unlearn.methods.gradient_ascent:GradientAscent",
    "grad_diff": "osrl_unlearn.methods.grad_diff:GradDiff",
    "traj_deleter": "osrl_unlearn.methods.traj_deleter:TrajDeleter",
    "random_labels": "osrl_unlearn.methods.random_labels:RandomLabels",
    "value_suppression": "osrl_unlearn.methods.value_suppression:ValueSuppression",
    "fisher_dampening": "osrl_unlearn.methods.fisher_dampening:FisherDampening",
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
    "trajauditor": "osrl_unlearn.audit.trajauditor:TrajAuditor",
    "auditor": "osrl_unlearn.audit.auditor:Auditor",
    "gaussian_score": "osrl_unlearn.audit.gaussian_score:GaussianScore",
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


REGISTRIES = (ATTACKS, DETECTORS, METHODS, ADAPTERS, METRICS)


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
    """A YAML file that holds one mapping; ``configs/...`` may be a shipped one. Raises ConfigError."""
    import yaml
    path = resources.find(path)
    if not os.path.isfile(path):
        raise ConfigError("no file at {}: expected a YAML file of options".format(path))
    try:
        with open(path, encoding="utf-8") as file:
            value = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("{} is not valid YAML: {}".format(path, " ".join(str(error).split())))
    if not isinstance(value, dict):
        raise ConfigError("{}: expected a mapping of options, found {}".format(path, type(value).__name__))
    return value
