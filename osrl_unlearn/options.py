"""Options from the command line or a YAML file -> the dataclass that declares them."""
import dataclasses
import numbers
import typing

import yaml

from osrl_unlearn.errors import ConfigError
from osrl_unlearn.registry import nearest

MAX_SEED = 2 ** 31 - 1  # NumPy and environments are given numbers a little above it too, and take less than 2 ** 32


def parse(cls, values, where):
    """Build the dataclass ``cls`` from ``values`` (strings or YAML values).

    ``where`` prefixes messages ("--poison."). Raises ConfigError for an unknown name or a value of the wrong type.
    """
    shown = (lambda name: where + name.replace("_", "-")) if where == "--" else where.__add__
    types = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls) if f.init}
    out = {}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError("unknown option {}: {}".format(shown(name), nearest(name, fields)))
        out[name] = _coerce(value, types[name], shown(name))
    try:
        return cls(**out)
    except (TypeError, AttributeError, ValueError) as error:  # the first two: of values in a list or mapping
        raise ConfigError("{}: {}".format(where.rstrip(". -") or "not usable", error))


def _coerce(value, expected, label):
    optional = typing.get_origin(expected) is typing.Union
    if optional:
        expected = next(a for a in typing.get_args(expected) if a is not type(None))
    if isinstance(value, str) and expected is not str:
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError("{}: cannot read {!r}".format(label, value))
        if expected is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
            try:
                value = float(value)
            except ValueError:
                pass
    if value is None and optional:
        return None
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError("{} expects {} value, got {!r}".format(
            label, {"int": "an integer", "float": "a number", "bool": "a true/false", "str": "a text"}.get(
                expected.__name__, expected.__name__), value))
    return value


def check_seed(seed):
    """Raise ConfigError unless ``seed`` is one that every generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= seed <= MAX_SEED:
        raise ConfigError("the seed must be a whole number from 0 to {}, got {}".format(MAX_SEED, seed))


def assignments(items):
    """{option: value} of what --set was given. Raises ConfigError for an item that is not OPTION=VALUE."""
    for item in items:
        if "=" not in item:
            raise ConfigError("--set {}: expected OPTION=VALUE".format(item))
    return dict(item.split("=", 1) for item in items)


def describe(cls, prefix):
    """One help line per option of the dataclass ``cls``."""
    return ["  {}{} (default {})  {}".format(prefix, f.name, f.default, f.metadata.get("help", "")).rstrip()
            for f in dataclasses.fields(cls) if f.init]


def option(default, help):  # noqa: A002 - the name that argparse and pyrallis use
    """A dataclass field with a help text."""
    return dataclasses.field(default=default, metadata={"help": help})
