"""The command line. ``osrl-unlearn SCRIPT`` is short for ``osrl-unlearn run SCRIPT``."""
import argparse
import dataclasses
import errno
import importlib
import os
import sys

from osrl_unlearn import __version__, status
from osrl_unlearn.errors import ConfigError, EnvironmentProblem, OsrlUnlearnError
from osrl_unlearn.hooks import startup

COMMANDS = {  # name: (module with add_arguments(parser) and main(args), help)
    "run": (None, "run an OSRL training script with --poison and --unlearn (the default command)"),
    "unlearn": ("osrl_unlearn.commands.unlearn", "unlearn from a finished run directory"),
    "manifest": ("osrl_unlearn.commands.manifest", "make a forget manifest from a list of trajectories"),
    "detect": ("osrl_unlearn.commands.detect", "find a forget set when nobody names one"),
    "audit": ("osrl_unlearn.commands.audit", "look for what is left of the forget set in an agent; certify it"),
    "verify": ("osrl_unlearn.commands.verify", "check a forget manifest against a dataset, or a certificate"),
    "poison": ("osrl_unlearn.commands.poison", "write a poisoned copy of a dataset and its forget manifest"),
    "collect": ("osrl_unlearn.collect", "make a dataset with fast-safe-rl"),
    "demo": ("osrl_unlearn.commands.demo", "poison, train, unlearn and compare on the shipped dataset"),
    "bench": ("osrl_unlearn.commands.bench", "measure attacks, detection, unlearning, audits and speed"),
    "sweep": ("osrl_unlearn.commands.sweep", "run a grid of agents, tasks, attacks, methods, seeds, here or on SLURM"),
    "report": ("osrl_unlearn.commands.report", "write one HTML file about unlearned agents, and the same as Markdown"),
    "plugins": ("osrl_unlearn.commands.plugins", "list everything that has a name, with its origin"),
    "patch": ("osrl_unlearn.commands.patch", "patch a checkout of OSRL, so that plain python takes our flags"),
    "enable": ("osrl_unlearn.commands.enable", "let plain python take our flags in this environment, OSRL untouched"),
    "disable": ("osrl_unlearn.commands.disable", "undo enable"),
    "completion": ("osrl_unlearn.commands.completion", "print a script for bash, zsh or tcsh, which then completes"),
    "doctor": ("osrl_unlearn.doctor", "check the installation"),
}

QUIET = "--quiet"


def main(argv=None):
    """Run a command; returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    startup.take()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == [QUIET] and argv[1:] and argv[1] in COMMANDS:
        argv[:2] = argv[1], QUIET
    try:
        if argv[:1] == ["run"]:
            return run(argv[1:])
        if argv and argv[0] in COMMANDS:
            return _command(argv[0], argv[1:])
        if argv and argv[0] == "--version":
            print(__version__)
            return 0
        return run(argv)
    except (Exception, KeyboardInterrupt) as error:
        code = explain(error)
        if code is None:
            raise
        return code


def explain(error):
    """Say in one line what the user can mend; returns the exit status, or None if ``error`` is of another kind."""
    if isinstance(error, OsrlUnlearnError):
        print("osrl-unlearn: error: {}".format(error), file=sys.stderr)
        return 2
    if isinstance(error, ModuleNotFoundError):
        # Not from a script: its own errors are shown as python would show them.
        print("osrl-unlearn: error: {} is not installed: run 'osrl-unlearn doctor' to see what is missing".format(
            error.name), file=sys.stderr)
        return 2
    if isinstance(error, BrokenPipeError):  # "| head": whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        print("osrl-unlearn: error: {}".format(error), file=sys.stderr)
        return 2
    if isinstance(error, KeyboardInterrupt):
        print("osrl-unlearn: interrupted", file=sys.stderr)
        return 130
    return None


def _command(name, argv):
    if sys.stdout is None:  # it is closed, and the next file that is opened would take its place
        sys.stdout = sys.__stdout__ = open(os.devnull, "w")
    parser = argparse.ArgumentParser("osrl-unlearn " + name, description=COMMANDS[name][1] + ".", allow_abbrev=False)
    module = add_arguments(name, parser)
    status.quiet = QUIET in argv
    code = module.main(parser.parse_args([arg for arg in argv if arg != QUIET]))  # also after a sub-command
    sys.stdout.flush()  # what cannot be written is an error while it can still be said
    return code


def add_arguments(name, parser):
    """Add the arguments of a command other than ``run`` to ``parser``; returns its module."""
    module = importlib.import_module(COMMANDS[name][0])
    module.add_arguments(parser)
    parser.add_argument(QUIET, action="store_true", help="no status lines and no progress bars")
    return module


# run ------------------------------------------------------------------------------------------------------------------


def run(argv):
    """``osrl-unlearn run [FLAGS] SCRIPT [ARGS and FLAGS]``."""
    from osrl_unlearn.hooks import compat, flags, runner
    line = flags.split_argv(argv)
    status.quiet = line.quiet
    if line.help:
        print(help_text(line), flush=True)
    if line.target is None and not line.help and "unlearn.from" not in line.ours:
        raise ConfigError("no script: python -m osrl_unlearn [FLAGS] SCRIPT [ARGS], see --help")
    session, source = (None, None) if line.help else _session(line.ours)
    if source is not None:
        if line.target is not None:
            status.say("--unlearn.from is given, so {} is not run".format(line.target))
        from osrl_unlearn.commands.unlearn import unlearn_run
        print(unlearn_run(source, session))
        return 0
    if line.target is None:
        return 0
    if session is not None and session.unlearn is not None:
        _refuse_unsupported(line)
    undo, patches = [compat.install(), runner.quiet_wandb()], None
    try:
        patches = session.patches() if session is not None else None
        rest = line.rest + (["--help"] if line.help and not {"-h", "--help"} & set(line.rest) else [])
        code = _run_target(runner, line, rest, session is not None)
        if code:
            return code
        text = session.finish(not status.quiet) if session is not None else None
        if text:
            finish_wandb()
    except OsrlUnlearnError:
        finish_wandb(1)
        raise
    finally:
        for note in (patches.undo() if patches is not None else []):
            status.say(note)
        for call in reversed(undo):
            call()
    if text:
        print(text)
    return 0


def finish_wandb(code=0):
    """wandb prints a summary when the process ends; ours should be the last lines."""
    wandb = sys.modules.get("wandb")
    if getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=code)


def _run_target(runner, line, rest, ours):
    try:
        runner.run_target(line.target, rest, line.as_module)
    except (OsrlUnlearnError, KeyboardInterrupt):
        raise
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException as error:
        if ours:
            from osrl_unlearn import environments
            if environments.lacks_oapackage(error):
                raise EnvironmentProblem(environments.OAPACKAGE)
        runner.print_exception(error)
        return 1
    return 0


def _refuse_unsupported(line):
    from osrl_unlearn.hooks.refusals import refuse_unsupported
    if line.as_module:
        from importlib.util import find_spec
        sys.path.insert(0, "")
        try:
            spec = find_spec(line.target)
        except ImportError:
            return
        finally:
            sys.path.remove("")
        path = spec.origin if spec else None
    else:
        path = line.target
    try:
        with open(path, "rb") as file:
            refuse_unsupported(file.read(), line.target)
    except (OSError, TypeError):
        return  # the runner says what is wrong with the target


def make_session(ours):
    """The Session for our flags in a script that runs already. Raises ConfigError."""
    session, source = _session(ours)
    if source is not None:
        raise ConfigError("--unlearn.from runs no script: use osrl-unlearn unlearn {}".format(source))
    return session


def _session(ours):
    """(Session or UnlearnConfig, run directory of --unlearn.from) for our flags; (None, None) without any."""
    if not ours:
        return None, None
    from osrl_unlearn.options import parse
    from osrl_unlearn.registry import METHODS, load_named
    sub = {kind: {name.partition(".")[2]: value for name, value in ours.items() if name.startswith(kind + ".")}
           for kind in ("poison", "unlearn")}
    for kind, given in sub.items():
        if given and kind not in ours:
            raise ConfigError("--{}.{} needs --{} NAME".format(kind, sorted(given)[0], kind))
    attack, settings, unlearn, source = None, {}, None, None
    if "poison" in ours:
        attack, settings = make_poison(ours["poison"], sub["poison"], "--poison.")
    if "unlearn" in ours:
        from osrl_unlearn.unlearning import UnlearnConfig  # brings scipy.stats, which poisoning does not need
        cls, values = load_named(METHODS, ours["unlearn"], "method")
        values.update(sub["unlearn"])
        source = values.pop("from", None)
        _known(values, UnlearnConfig, cls, "--unlearn.", hidden=("method", "options"), more=("from",))
        common = {k: v for k, v in _fields(values, UnlearnConfig).items()}
        options = _fields(values, cls.Options)
        parse(cls.Options, options, "--unlearn.")
        unlearn = parse(UnlearnConfig, dict(common, method=cls.name), "--unlearn.")
        unlearn.options = options
    if source is not None:
        if attack is not None:
            raise ConfigError("--poison has no effect on a finished run: leave it out with --unlearn.from")
        return (unlearn, ours.get("dataset")), source
    if unlearn is not None and unlearn.forget is None and not settings.get("rate"):
        raise ConfigError("there is nothing to forget: give --poison with a rate above 0, or --unlearn.forget MANIFEST")
    if unlearn is not None and unlearn.forget is None and attack.removes_rows:
        raise ConfigError("--poison {} only removes rows: nothing of it is in the data, so there is nothing to forget; "
                          "leave --unlearn out, or name rows with --unlearn.forget MANIFEST".format(attack.name))
    from osrl_unlearn.hooks.session import Session
    return Session(attack, settings, unlearn, ours.get("dataset")), None


def make_poison(name, given, where):
    """(attack, {"rate", "unit", "seed"}) of NAME or FILE.yaml and the values that are ``given`` besides.

    ``where`` prefixes messages ("--poison."). Raises ConfigError.
    """
    from osrl_unlearn.options import parse
    from osrl_unlearn.registry import ATTACKS, load_named
    cls, values = load_named(ATTACKS, name, "attack")
    values.update(given)
    _known(values, PoisonSettings, cls, where)
    settings = dataclasses.asdict(parse(PoisonSettings, _fields(values, PoisonSettings), where))
    return cls(parse(cls.Options, _fields(values, cls.Options), where)), settings


@dataclasses.dataclass
class PoisonSettings:
    """The --poison flags that every attack has."""
    rate: float = dataclasses.field(default=0.1, metadata={"help": "share of the units that is poisoned, 0 to 1"})
    unit: str = dataclasses.field(default="trajectory", metadata={"help": "trajectory, segment or transition"})
    seed: int = dataclasses.field(default=0, metadata={"help": "seed of the attack's own generator"})

    def __post_init__(self):
        from osrl_unlearn.data.trajectories import UNITS
        from osrl_unlearn.options import check_seed
        check_seed(self.seed)
        if not 0 <= self.rate <= 1:
            raise ValueError("rate must be a share between 0 and 1, got {}".format(self.rate))
        if self.unit not in UNITS:
            raise ValueError("unit must be one of {}, got '{}'".format(", ".join(UNITS), self.unit))


def _names(cls, hidden=()):
    return [f.name for f in dataclasses.fields(cls) if f.init and f.name not in hidden]


def _fields(values, cls):
    return {name: value for name, value in values.items() if name in _names(cls)}


def _known(values, common, cls, where, hidden=(), more=()):
    from osrl_unlearn.registry import nearest
    known = set(_names(common, hidden)) | set(_names(cls.Options)) | set(more)
    for name in values:
        if name not in known:
            raise ConfigError("unknown option {}{} of '{}': {}".format(where, name, cls.name, nearest(name, known)))


def help_text(line):
    """Our part of ``--help``; the script's own follows it."""
    from osrl_unlearn.options import describe
    from osrl_unlearn.registry import ATTACKS, METHODS
    from osrl_unlearn.unlearning import UnlearnConfig
    out = ["usage: python -m osrl_unlearn [FLAGS] SCRIPT [ARGS and FLAGS]   (or -m MODULE in place of SCRIPT)",
           "       osrl-unlearn {{{}}} ...".format(",".join(COMMANDS)), "",
           "Commands:"] + ["  {:12}{}".format(name, text) for name, (_, text) in COMMANDS.items()]
    out += ["", "Flags of osrl-unlearn (anywhere before a bare --):",
            "  --dataset FILE            train on this DSRL file",
           "  --quiet                   none of our status lines and progress bars; errors and results remain",
            "  --poison NAME|FILE.yaml   poison the dataset; NAME is one of {}".format(", ".join(ATTACKS.names()))]
    out += describe(PoisonSettings, "--poison.")
    out += ["  --unlearn NAME|FILE.yaml  unlearn when the script is done; NAME is one of {}".format(
        ", ".join(METHODS.names()))]
    out += [text for text in describe(UnlearnConfig, "--unlearn.")
            if not text.startswith(("  --unlearn.method", "  --unlearn.options"))]
    out += ["  --unlearn.from  run directory to unlearn from; no script is run then"]
    for kind, registry in (("poison", ATTACKS), ("unlearn", METHODS)):
        for name in registry.names():
            if line.ours.get(kind) not in (name, None):
                continue
            try:
                options = describe(registry.load(name).Options, "--{}.".format(kind)) or ["  none"]
            except EnvironmentProblem as error:  # somebody else's plugin: the others can still be explained
                options = ["  {}".format(error)]
            out += ["", "Options of --{} {}:".format(kind, name)] + options
    if line.target is not None:
        out += ["", "Help of {}:".format(line.target), ""]
    return "\n".join(out)
