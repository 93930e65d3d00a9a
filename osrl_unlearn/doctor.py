"""``osrl-unlearn doctor``: is everything there that OSRL and this package need, and if not, what mends it?"""
import contextlib
import importlib
import importlib.util
import inspect
import json
import netrc
import os
import sys
import warnings
from importlib import metadata
from typing import List, NamedTuple

from osrl_unlearn import resources
from osrl_unlearn.hooks import startup
from osrl_unlearn.hooks.seams import SEAMS

OK, WARNING, MISSING, BROKEN = "ok", "warning", "missing", "broken"

_MODERN = sys.version_info >= (3, 11)
# On 3.11 and later with --no-deps: some of what they pin has no wheels there.
_FOUR = "osrl-lib==0.1.0 dsrl==0.1.0 fast-safe-rl==0.1.0 safety-gymnasium==0.4.0"
# pip finds the installed package and adds what its extra lists; a checkout that is not installed is a path.
_EXTRA = "osrl-unlearn[osrl]" if any(metadata.Distribution.discover(name="osrl-unlearn")) else ".[osrl]"
_OSRL = '"{}"{}'.format(_EXTRA, " && python -m pip install --no-deps " + _FOUR if _MODERN else "")
_MUJOCO = "mujoco==2.3.0" if not _MODERN else "mujoco==2.3.3" if sys.version_info < (3, 12) else "mujoco==3.0.0"
# What to give to pip when a module cannot be imported. Other modules are installed under their own names.
_REQUIREMENTS = {
    "bullet_safety_gym": "bullet-safety-gym==1.4.0",
    "dsrl": _OSRL, "fsrl": _OSRL, "osrl": _OSRL, "safety_gymnasium": _OSRL,
    "dateutil": "python-dateutil",
    "gym": '"gym>=0.26"',
    "gymnasium": "gymnasium==0.28.1",
    "mujoco": _MUJOCO,
    "numpy": '"numpy>=1.23,<2"',
    "pkg_resources": '"setuptools<82"',
    "prettytable": '"prettytable~=3.7.0"',
    "pygame": '"pygame>=2.1.3"' if _MODERN else "pygame==2.1.0",
    "pyrallis": "pyrallis==0.3.1",
    "tianshou": '"tianshou~=0.5.0"',
    "torch": '"torch>=2.0,<2.14"' if _MODERN else '"torch~=1.13.0"',
    "wandb": "wandb" if _MODERN else '"wandb~=0.14.0"',
    "yaml": "pyyaml",
}


class Check(NamedTuple):
    """One line of the doctor's answer. ``fix`` is a command or advice, or empty."""

    name: str
    status: str
    detail: str
    fix: str = ""


def add_arguments(parser):
    """Add the options of ``osrl-unlearn doctor``."""
    parser.add_argument("--json", action="store_true", help="print the checks as a JSON list")


def main(args):
    """Print every check; return 1 if something needed is missing or broken."""
    found = []
    for check in _each():
        found.append(check)
        if not args.json:
            print("{:8}{}: {}".format(check.status, check.name, check.detail), flush=True)
            if check.fix:
                print("        fix: {}".format(check.fix), flush=True)
    bad = [check.name for check in found if check.status in (MISSING, BROKEN)]
    if args.json:
        print(json.dumps([check._asdict() for check in found], indent=2))
    else:
        print("{} of {} checks failed: run the fixes from the top, then this again.".format(len(bad), len(found))
              if bad else "Everything needed is there.")
    return 1 if bad else 0


def checks() -> List[Check]:
    """Run every check."""
    return list(_each())


def _each():
    with _quiet():
        _repair_safety_gymnasium()
    for name, function, arguments in _plan():
        with _quiet():
            try:
                status, detail, fix = function(*arguments)
            except (Exception, SystemExit) as error:
                status, detail, fix = _failed(error)
        yield Check(name, status, detail, fix)


def _plan():
    yield "Python", _python, ()
    yield "torch", _torch, ()
    yield "numpy", _numpy, ()
    yield "gymnasium", _gymnasium, ()
    yield "OSRL", _package, ("osrl-lib", "osrl.algorithms")
    yield "DSRL", _package, ("dsrl", "dsrl")
    yield "FSRL", _package, ("fast-safe-rl", "fsrl.utils")
    yield "pyrallis", _package, ("pyrallis", "pyrallis")
    yield "matplotlib", _package, ("matplotlib", "matplotlib.pyplot")
    yield "wandb", _wandb, ()
    yield "OApackage", _oapackage, ()
    yield "Bullet tasks", _bullet, ()
    yield "Safety-Gymnasium tasks", _safety_gymnasium, ()
    yield "MetaDrive tasks", _metadrive, ()
    yield "datasets", _datasets, ()
    yield "shipped dataset", _shipped, ()
    yield "plain python", _plain_python, ()
    for seam in SEAMS:
        yield "seam " + seam.target, _seam, (seam,)


# Each check returns (status, detail, fix).

def _python():
    version = "{}.{}.{}".format(*sys.version_info)
    if sys.version_info >= (3, 13):
        return WARNING, version + ": nothing newer than 3.12 was tried", "use Python 3.10 or 3.11"
    return OK, version, ""


def _torch():
    import torch
    if torch.cuda.is_available():
        return OK, "{}, GPU: {}".format(torch.__version__, torch.cuda.get_device_name(0)), ""
    return OK, "{}, no GPU found: runs on the CPU".format(torch.__version__), ""


def _numpy():
    import numpy
    import torch
    # A torch built for NumPy 1 can be imported beside NumPy 2, but cannot exchange arrays with it.
    try:
        torch.from_numpy(numpy.zeros(1)).numpy()
    except Exception as error:
        return BROKEN, "{} does not work with torch {}: {}".format(numpy.__version__, torch.__version__,
                                                                   _first_line(error)), _pip(_REQUIREMENTS["numpy"])
    return OK, numpy.__version__, ""


def _gymnasium():
    import gymnasium
    if gymnasium.__version__.split(".")[:2] not in (["0", "28"], ["0", "29"]):
        return BROKEN, "{}, but DSRL works with 0.28 and 0.29 only".format(gymnasium.__version__), _pip(
            _REQUIREMENTS["gymnasium"])
    return OK, gymnasium.__version__, ""


def _package(distribution, module):
    importlib.import_module(module)
    return OK, _version(distribution), ""


def _wandb():
    import wandb
    version, mode = wandb.__version__, os.environ.get("WANDB_MODE")
    if mode:
        return OK, "{}, WANDB_MODE={}".format(version, mode), ""
    if os.environ.get("WANDB_API_KEY") or _in_netrc("api.wandb.ai"):
        return OK, version + ", logged in", ""
    return WARNING, version + ", not logged in: OSRL's training scripts will ask for an account", \
        "export WANDB_MODE=offline"


def _oapackage():
    if importlib.util.find_spec("oapackage") is None:
        return WARNING, "not installed: BC in mode 'frontier' needs it, and CDT unless --augment_percent 0 is given", \
            _pip("oapackage")
    return OK, _version("oapackage"), ""


def _bullet():
    task = "OfflineBallRun-v0"
    importlib.import_module("bullet_safety_gym")
    _try_task(task)
    return OK, "{} runs (bullet-safety-gym {}, pybullet {})".format(task, _version("bullet-safety-gym"),
                                                                   _version("pybullet")), ""


def _safety_gymnasium():
    if importlib.util.find_spec("safety_gymnasium") is None:
        return WARNING, "not installed: the Bullet tasks do not need it", _pip(_OSRL)
    # PointGoal1 first: where it works and Hopper does not, only some of the tasks are lost.
    _try_task("OfflinePointGoal1Gymnasium-v0")
    versions = "safety-gymnasium {}, mujoco {}".format(_version("safety-gymnasium"), _version("mujoco"))
    try:
        _try_task("OfflineHopperVelocityGymnasium-v1")
    except Exception as error:
        detail = "no Hopper, Swimmer or Walker2d ({}): {}".format(versions, _first_line(error))
        return BROKEN, detail, _pip(_MUJOCO)
    return OK, "OfflinePointGoal1 and OfflineHopperVelocity run ({})".format(versions), ""


def _metadrive():
    # Never imported: it changes the versions of others and may crash when it shuts down.
    if importlib.util.find_spec("metadrive") is None:
        return OK, "not installed (optional)", ""
    return OK, "installed, not tried", ""


def _datasets():
    folder = os.environ.get("DSRL_DATASET_DIR") or os.path.expanduser("~/.dsrl/datasets")
    names = sorted(name for name in os.listdir(folder) if name.endswith(".hdf5")) if os.path.isdir(folder) else []
    if not names:
        return OK, "none in {}; DSRL downloads there what a task needs, unless the file is there already".format(
            folder), ""
    # DSRL takes an interrupted download for a complete file.
    bad = [name for name in names if not _readable(os.path.join(folder, name))]
    if bad:
        return WARNING, "in {}, incomplete: {}".format(folder, ", ".join(bad)), "rm " + " ".join(
            '"{}"'.format(os.path.join(folder, name)) for name in bad)
    return OK, "{} in {}: {}".format(len(names), folder, ", ".join(names)), ""


def _shipped():
    folder = resources.folder("datasets")
    names = sorted(name for name in os.listdir(folder) if name.endswith(".hdf5")) if os.path.isdir(folder) else []
    bad = [name for name in names if not _readable(os.path.join(folder, name))]
    if bad or not names:
        return WARNING, "the demo has no data: {}".format("cannot read " + ", ".join(bad) if bad else "none shipped"), \
            "install osrl-unlearn again"
    return OK, ", ".join(names), ""


def _plain_python():
    """Whether plain ``python SCRIPT`` takes our flags; nobody needs that."""
    found = ["enabled by {}".format(path) for path in startup.line_paths()]
    with open(importlib.util.find_spec("osrl").origin, encoding="utf-8") as file:
        patched = "osrl.plugins" in file.read()
    if patched:
        found.append("OSRL is patched")
    if patched and not _entry_point():
        return WARNING, "OSRL is patched, but cannot find osrl-unlearn, which is on the path without being installed", \
            "python -m pip install ."
    return OK, "; ".join(found) or "does not take our flags ('osrl-unlearn enable' or 'osrl-unlearn patch' changes " \
        "that)", ""


def _entry_point():
    return any(entry.group == "osrl.plugins" for distribution in metadata.Distribution.discover(name="osrl-unlearn")
               for entry in distribution.entry_points)


def _seam(seam):
    module, _, path = seam.target.partition(":")
    fix = _pip("--force-reinstall --no-deps " + _FOUR)
    found = importlib.import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            return BROKEN, "{} is not there: this is another version of {}".format(path, module.split(".")[0]), fix
        found = getattr(found, name)
    parameters = tuple(inspect.signature(found).parameters)
    if parameters[:len(seam.parameters)] != seam.parameters:
        return BROKEN, "takes ({}), expected ({}, ...)".format(", ".join(parameters), ", ".join(seam.parameters)), fix
    return OK, "({})".format(", ".join(seam.parameters)), ""


def _repair_safety_gymnasium():
    # Without it no Safety-Gymnasium task can be made on Python 3.11 and later. Not undone: the process ends soon.
    from osrl_unlearn.hooks import compat
    compat.install()


def _try_task(task):
    import gymnasium
    importlib.import_module("dsrl")
    if task not in gymnasium.registry:
        # DSRL swallows the error, and reports nothing but a name that is not registered.
        family = "dsrl.offline_bullet_safety_gym" if "Gymnasium" not in task else "dsrl.offline_safety_gymnasium"
        importlib.import_module(family)
    environment = gymnasium.make(task)
    try:
        environment.reset()
        environment.step(environment.action_space.sample())
    finally:
        environment.close()


def _failed(error):
    """What an exception says about the installation."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.split(".")[0]
        # A missing part of an installed package is a wrong version, not a missing package.
        status = MISSING if error.name == module else BROKEN
        return status, "no module named {}".format(error.name), _pip(_REQUIREMENTS.get(module, module))
    text = "{}: {}".format(type(error).__name__, _first_line(error))
    return BROKEN, text, ""


def _first_line(error):
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _pip(requirement):
    return "python -m pip install " + requirement


def _version(distribution):
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown version"


def _in_netrc(host):
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _readable(path):
    import h5py
    try:
        with h5py.File(path, "r") as file:
            return len(file) > 0
    except OSError:
        return False


@contextlib.contextmanager
def _quiet():
    """Keep the notices that packages print when imported, in Python or in C, out of the answer."""
    # Bullet-Safety-Gym redirects C's streams by the names of Python's, so these must be the real ones.
    streams = (sys.__stdout__, sys.__stderr__)
    for stream in (sys.stdout, sys.stderr) + streams:
        stream.flush()
    saved = [os.dup(stream.fileno()) for stream in streams]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in streams:
            os.dup2(nowhere, stream.fileno())
        with warnings.catch_warnings(), contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.close(nowhere)
        for stream, copy in zip(streams, saved):
            stream.flush()
            os.dup2(copy, stream.fileno())
            os.close(copy)
