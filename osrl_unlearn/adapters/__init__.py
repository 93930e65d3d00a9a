"""Adapters: the only files, besides the hook seams, that know OSRL's internals."""
from osrl_unlearn.errors import IncompatibleAgent
from osrl_unlearn.registry import ADAPTERS


def _all():
    return [ADAPTERS.load(name) for name in sorted(ADAPTERS.names(), key=lambda n: (n not in ADAPTERS.builtins, n))]


def adapt(trainer, config=None):
    """The adapter for an OSRL trainer; ``config`` as for :class:`~osrl_unlearn.adapters.base.Adapter`.

    Raises IncompatibleAgent with everything that is wrong.
    """
    for cls in _all():
        if cls.matches(trainer):
            return cls(trainer, config)
    raise IncompatibleAgent(type(trainer).__name__, ["no adapter knows this trainer (there are adapters for {})".format(
        ", ".join(ADAPTERS.names()))])


def build_for(config, weights, env, device="cpu"):
    """Build the agent that has the settings ``config`` and the networks ``weights``, and load them.

    Returns the adapter, or None if no adapter knows such an agent. Raises RunError for another architecture.
    """
    networks = {name.split(".")[0] for name in weights}
    built = [cls.build(config, env, device) for cls in _all()
             if cls.has_networks(networks) and not cls.missing_settings(config)]
    # Two agents can have networks of the same names; their layers differ.
    for adapter in [a for a in built if set(a.model.state_dict()) == set(weights)] or built:
        adapter.load_weights(weights)
        return adapter
    return None
