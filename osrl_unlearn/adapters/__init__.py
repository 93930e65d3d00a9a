"""Adapters: the only files, besides the hook seams, that know OSRL's internals."""
from osrl_unlearn.errors import EnvironmentProblem, IncompatibleAgent
from osrl_unlearn.registry import ADAPTERS


def _builtin():
    return [ADAPTERS.load(name) for name in sorted(ADAPTERS.builtins)]


def third_party():
    """(adapter classes of third parties, what is wrong with those that cannot be loaded). Imports all of them."""
    classes, problems = [], []
    for name in ADAPTERS.third_party():
        try:
            classes.append(ADAPTERS.load(name))
        except EnvironmentProblem as error:
            problems.append(str(error))
    return classes, problems


def adapt(trainer, config=None):
    """The adapter for an OSRL trainer; ``config`` as for :class:`~osrl_unlearn.adapters.base.Adapter`.

    Third parties are asked only about a trainer that no built-in adapter knows. Raises IncompatibleAgent with
    everything that is wrong.
    """
    for cls in _builtin():
        if cls.matches(trainer):
            return cls(trainer, config)
    classes, problems = third_party()
    for cls in classes:
        if cls.matches(trainer):
            return cls(trainer, config)
    raise IncompatibleAgent(type(trainer).__name__, ["no adapter knows this trainer (there are adapters for {})".format(
        ", ".join(ADAPTERS.names()))] + problems)


def candidates(config, weights, name=None):
    """The adapter classes for an agent that has the settings ``config`` and networks called as in ``weights``.

    ``name`` is the adapter's, if it is known.
    """
    networks = {key.split(".")[0] for key in weights}
    for classes in ([ADAPTERS.load(name)],) if name is not None else (_builtin(), third_party()[0]):
        found = [cls for cls in classes if cls.has_networks(networks) and not cls.missing_settings(config)]
        if found:
            return found
    return []


def build_for(config, weights, env, device="cpu", name=None):
    """Build the agent that has the settings ``config`` and the networks ``weights``, and load them.

    ``name`` is the adapter's, if it is known. Returns the adapter, or None if no adapter knows such an agent. Raises
    RunError for another architecture.
    """
    built = [cls.build(config, env, device) for cls in candidates(config, weights, name)]
    # Two agents can have networks of the same names; their layers differ.
    for adapter in [a for a in built if set(a.model.state_dict()) == set(weights)] or built:
        adapter.load_weights(weights)
        return adapter
    return None
