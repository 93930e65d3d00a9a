"""``osrl-unlearn completion SHELL``: a script with which the shell completes commands, options and names."""
import argparse
import dataclasses

from osrl_unlearn import cli
from osrl_unlearn.errors import EnvironmentProblem
from osrl_unlearn.registry import ATTACKS, DETECTORS, METHODS
from osrl_unlearn.unlearning import UnlearnConfig

SHELLS = ("bash", "zsh", "tcsh")
NAMES = {"poison": ATTACKS, "attack": ATTACKS, "unlearn": METHODS, "method": METHODS, "detector": DETECTORS,
         "unlearn.detector": DETECTORS}
FOLDERS = ("reference", "from", "surrogate", "previous")
FILES = ("dataset", "forget")


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("shell", choices=SHELLS)


def main(args):
    """Print the script."""
    try:
        import shtab
    except ImportError:
        raise EnvironmentProblem("shtab is not installed, and writes the completions: run python -m pip install shtab, "
                                 "or install osrl-unlearn[completion]")
    print(shtab.complete(make_parser(shtab.FILE, shtab.DIRECTORY), args.shell))
    return 0


def make_parser(file=None, folder=None):
    """The whole command line as one argparse parser; ``file`` and ``folder`` are what shtab completes them with."""
    parser = argparse.ArgumentParser("osrl-unlearn")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers(dest="command")
    for name, (_, text) in cli.COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == "run":
            _run(command)
        else:
            cli.add_arguments(name, command)
    _complete(parser, file, folder)
    return parser


def _run(parser):
    parser.add_argument("script", metavar="FILE")
    for flag in ["--dataset", "--poison", "--unlearn", "--unlearn.from"]:
        parser.add_argument(flag)
    for flag, kinds in (("--poison.", [cli.PoisonSettings]), ("--unlearn.", [UnlearnConfig])):
        kinds += [registry.load(name).Options for registry in ((ATTACKS,) if flag == "--poison." else (METHODS,))
                  for name in registry.builtins]
        found = {f.name: f.metadata.get("help", "") for kind in kinds for f in dataclasses.fields(kind) if f.init}
        for name in sorted(set(found) - {"method", "options"}):
            parser.add_argument(flag + name, help=found[name].replace("%", "%%"))
    parser.add_argument(cli.QUIET, action="store_true")


def _complete(parser, file, folder):
    for action in parser._actions:  # argparse has no other way to list them
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete(command, file, folder)
        elif action.choices is None and action.dest in NAMES:
            action.choices = NAMES[action.dest].names()
        elif "DIR" in str(action.metavar) or action.dest.endswith(FOLDERS):
            action.complete = folder
        elif action.metavar is not None or action.dest.endswith(FILES):
            action.complete = file
