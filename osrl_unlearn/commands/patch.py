"""``osrl-unlearn patch OSRL_DIR``: let a checkout of OSRL load plugins, and mend ``gym`` in its training scripts.

The diffs have no context, so that they quote no line of OSRL, and git would apply them at a wrong place of another
version without a word. So every file must be, byte for byte, what a diff was made from or what it makes. A training
script that is not is left as it is.
"""
import glob
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

from osrl_unlearn import resources
from osrl_unlearn.errors import ConfigError, EnvironmentProblem

VERSION = "osrl-03a4586"
NEEDED = "osrl/__init__.py"  # with it alone our flags work; the other files get what they need without them


class Change(NamedTuple):
    """What one diff does to one file; ``before`` and ``after`` are git's ids of its contents."""

    diff: str
    path: str
    before: str
    after: str


def add_arguments(parser):
    """Add the options of ``osrl-unlearn patch``."""
    parser.add_argument("checkout", metavar="OSRL_DIR", help="a checkout of OSRL's repository")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--check", action="store_true", help="only say which files are patched; exit status 1 if one "
                     "that could be is not")
    way.add_argument("--reverse", action="store_true", help="take the patches back")


def main(args):
    """Apply the patches to every file that is as published, all or none; a second call changes nothing."""
    if not os.path.isfile(os.path.join(args.checkout, "osrl", "__init__.py")):
        raise ConfigError("no checkout of OSRL at {}: expected the folder that holds osrl/ and examples/".format(
            args.checkout))
    states = {change: _state(args.checkout, change) for change in changes()}
    # Without its training scripts there is nothing to mend in them.
    states = {change: state for change, state in states.items() if state != "missing"}
    # What somebody edited is theirs; in OSRL's own package that leaves nothing that would work.
    edited = [change.path for change, state in states.items() if state == "changed"]
    if args.check:
        for change, state in states.items():
            print("{:9}{}".format(state, change.path))
        return 0 if NEEDED not in edited and set(states.values()) <= {"patched", "changed"} else 1
    if NEEDED in edited:
        raise EnvironmentProblem("nothing was changed in {}: {} is changed. The patches fit the published OSRL (git "
                                 "03a4586) only; {}".format(args.checkout, NEEDED, _advice(args)))
    todo = [change for change, state in states.items() if state == ("patched" if args.reverse else "original")]
    if todo:
        _git_apply(args.checkout, todo, args.reverse)
    wrong = [change.path for change in todo
             if _state(args.checkout, change) != ("original" if args.reverse else "patched")]
    if wrong:
        raise EnvironmentProblem("git apply did not do what it should to {}: see git diff in {}".format(
            ", ".join(wrong), args.checkout))
    done = ("as it was" if args.reverse else "patched")
    print("\n".join("{}: {}".format(change.path, done) for change in todo) or "every {}file is {} already".format(
        "other " if edited else "", done))
    if edited:
        print("left as they are, because they are not the published ones: {}".format(", ".join(edited)) + (
            "" if args.reverse else " (with our flags they work all the same; without, OSRL's bug with gym stays)"))
    if not args.reverse:
        _mind_other_osrl(args.checkout)
    return 0


def changes():
    """Every :class:`Change` of the shipped diffs."""
    found = []
    for diff in sorted(glob.glob(os.path.join(resources.folder("patches"), VERSION, "*.patch"))):
        with open(diff, encoding="utf-8") as file:
            found += [Change(diff, *groups) for groups in re.findall(
                r"^diff --git a/(\S+) .*\nindex (\w+)\.\.(\w+) ", file.read(), re.M)]
    return found


def _state(checkout, change):
    try:
        with open(os.path.join(checkout, *change.path.split("/")), "rb") as file:
            content = file.read()
    except OSError:
        return "missing"
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {change.before: "original", change.after: "patched"}.get(blob, "changed")


def _advice(args):
    if args.reverse:
        return "undo your own changes first, or put the files back with git checkout"
    return ("'osrl-unlearn enable' needs no patch and works with any version; or put the lines of {} in by hand".format(
        os.path.join(resources.folder("patches"), VERSION)))


def _git_apply(checkout, todo, reverse):
    if shutil.which("git") is None:
        raise EnvironmentProblem("git is not installed: the patches are applied with 'git apply'; install git, or use "
                                 "'osrl-unlearn enable', which needs no patch")
    checkout = os.path.abspath(checkout)
    # Below the top of some other repository, git apply would skip every file and call that a success.
    environment = dict(os.environ, GIT_CEILING_DIRECTORIES=os.path.dirname(checkout))
    command = ["git", "apply", "--unidiff-zero"] + ["--reverse"] * reverse
    command += ["--include=" + change.path for change in todo] + sorted({change.diff for change in todo})
    done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True)
    if done.returncode:
        raise EnvironmentProblem("git apply failed in {}, nothing was changed: {}".format(
            checkout, " ".join(done.stdout.split())))


def _mind_other_osrl(checkout):
    """The patch has no effect on a script that imports another copy of OSRL."""
    path = list(sys.path)
    if path[0] in ("", os.getcwd()):
        del sys.path[0]  # python -m puts it there, for this command only: scripts are in folders of their own
    try:
        spec = importlib.util.find_spec("osrl")
    finally:
        sys.path[:] = path
    used = os.path.realpath(os.path.dirname(os.path.dirname(spec.origin))) if spec and spec.origin else None
    if used != os.path.realpath(checkout):
        print("note: python imports osrl from {}; for the patched one: python -m pip install --no-deps -e {}".format(
            used or "nowhere", checkout))
