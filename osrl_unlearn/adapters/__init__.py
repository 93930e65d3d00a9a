"""Adapters: the only files, besides the hook seams, that know OSRL's internals."""
from osrl_unlearn.errors import IncompatibleAgent
from osrl_unlearn.registry import ADAPTERS


def _all():
    return [ADAPTERS.load(name) for name in sorted(ADAPTERS.names(), key=lambda n: (n not in ADAPTERS.builtins, n))]


def adapt(trainer):
    """The adapter for an OSRL trainer. Raises IncompatibleAgent with everything that is wrong."""
    for cls in _all():
        if cls.matches(trainer):
            return cls(trainer)
    raise IncompatibleAgent(type(trainer).__name__, ["no adapter knows this trainer (there are adapters for {})".format(
        ", ".join(ADAPTERS.names()))])


def adapter_for_config(config, weights):
    """The adapter class whose agent has the settings ``config`` and the networks ``weights``, or None."""
    networks = {name.split(".")[0] for name in weights}
    for cls in _all():
        own = {part.module for part in cls.parts.values()} - set(cls.tensors) | set(cls.targets)
        if networks == own and not cls.missing_settings(config):
            return cls
    return None
