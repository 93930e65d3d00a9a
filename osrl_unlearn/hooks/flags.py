"""Take this package's flags out of a command line and leave everything else to the script."""
import difflib
import re
from typing import Dict, List, NamedTuple, Optional

from osrl_unlearn import resources
from osrl_unlearn.errors import ConfigError

# "poison.*" stands for every flag that starts with "--poison."
NAMES = ("poison", "poison.*", "unlearn", "unlearn.*", "dataset")


class CommandLine(NamedTuple):
    """A command line in parts. The keys of ``ours`` have no dashes: ``{"poison": "a", "poison.rate": "0.1"}``."""

    ours: Dict[str, str]
    target: Optional[str]  # a script, or a module if as_module; None if there is none
    as_module: bool
    rest: List[str]  # what the script gets, in order; -h and --help stay in if they come after the target
    help: bool
    quiet: bool = False


def split_argv(argv, names=NAMES):
    """Split ``argv`` (without the program's name) into a CommandLine.

    Our flags are ``--flag value`` or ``--flag=value`` and stand before or after the script. Each takes one value, which
    starts with "-" only after "=" or if it is a number. ``--quiet`` takes none. A bare ``--`` ends them: it is dropped,
    and all that follows it goes to the script. Raises ConfigError for a flag without a value, a flag given twice, an
    unknown flag before the script, and a flag that looks like one of ours but is not.
    """
    names = tuple(names)
    ours, rest = {}, []
    target, as_module, wants_help, quiet = None, False, False, False
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        if token == "--":
            if target is None and tokens:
                target = tokens.pop(0)
            rest += tokens
            break
        if token == "--quiet":
            quiet = True
            continue
        flag, equals, value = token.partition("=")
        name = flag[2:] if flag.startswith("--") else None
        if name is not None and _is_ours(name, names):
            if not equals:
                value = tokens.pop(0) if tokens and _is_value(tokens[0]) else ""
            if not value:
                raise ConfigError("{} needs a value: {} VALUE or {}=VALUE{}".format(
                    flag, flag, flag, " (write {}={} if that is the value)".format(flag, tokens[0])
                    if not equals and tokens and tokens[0].startswith("-") and tokens[0] != "--" else ""))
            if name in ours:
                raise ConfigError("{} is given twice ({} and {}): give it once".format(flag, ours[name], value))
            ours[name] = value
            continue
        if name is not None:
            _refuse_typo(flag, name, names)
        if token in ("-h", "--help"):
            wants_help = True
        if target is not None:
            rest.append(token)
        elif token == "-m":
            if not tokens or tokens[0].startswith("-"):
                raise ConfigError("-m needs the name of a module: -m examples.train.train_cpq")
            target, as_module = tokens.pop(0), True
        elif not token.startswith("-"):
            target = token
        elif token not in ("-h", "--help"):
            raise ConfigError("unknown flag {} before the script{}; flags of the script come after it".format(
                flag, _nearest(name or "", names)))
    return CommandLine(ours, target, as_module, _with_shipped_configs(rest), wants_help, quiet)


def _with_shipped_configs(rest):
    """``rest``, where pyrallis' --config_path may name a shipped file, ``configs/...``, as our flags may."""
    out = list(rest)
    for i, token in enumerate(rest):
        if token == "--config_path" and i + 1 < len(rest):
            out[i + 1] = resources.find(rest[i + 1])
        elif token.startswith("--config_path="):
            out[i] = "--config_path=" + resources.find(token.partition("=")[2])
    return out


def _is_ours(name, names):
    return any(name == one or (one.endswith(".*") and name.startswith(one[:-1])) for one in names)


def _is_value(token):
    if not token.startswith("-"):
        return True
    try:
        float(token)
        return True
    except ValueError:
        return False


def _refuse_typo(flag, name, names):
    """Raise ConfigError for a flag like ``--unlern`` or ``--poison_rate``, which the script could not understand.

    Only names with sub-options are looked after. A flag is a typo of one if its first word starts with that name or is
    one letter away from it; a looser rule would catch flags like ``--position`` or ``--learning_rate``.
    """
    first = re.split("[._-]", name.lower())[0]
    for word in (one[:-2] for one in names if one.endswith(".*")):
        close = abs(len(first) - len(word)) <= 1 and difflib.SequenceMatcher(None, first, word).ratio() > 0.83
        if not close and not first.startswith(word):
            continue
        # --poison_rate and --poisonrate mean --poison.rate, but the end of --unlearned is no option.
        joined = first[len(word):] if first.startswith(word) else ""
        option = name[len(first) + 1:].lower() or (joined if len(joined) > 3 else "")
        right = "--{}.{}".format(word, option) if option else "--" + word
        raise ConfigError("unknown flag {}: did you mean {}? (To give the script a flag of this name, put it after "
                          "a bare --)".format(flag, right))


def _nearest(name, names):
    close = difflib.get_close_matches(name, [one for one in names if not one.endswith(".*")], n=1, cutoff=0.6)
    return " (did you mean --{}?)".format(close[0]) if close else ""
