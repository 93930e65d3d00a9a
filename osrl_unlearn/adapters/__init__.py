"""Adapters: the only files, besides the hook seams, that know OSRL's internals."""
from osrl_unlearn.errors import IncompatibleAgent
from osrl_unlearn.registry import ADAPTERS


def adapt(trainer):
    """The adapter for an OSRL trainer. Raises IncompatibleAgent with everything that is wrong."""
    for name in sorted(ADAPTERS.names(), key=lambda n: (n not in ADAPTERS.builtins, n)):
        cls = ADAPTERS.load(name)
        if cls.matches(trainer):
            return cls(trainer)
    raise IncompatibleAgent(type(trainer).__name__, ["no adapter knows this trainer (there are adapters for {})".format(
        ", ".join(ADAPTERS.names()))])
