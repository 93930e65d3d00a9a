"""Recognise a command that was run before: its training is complete and need not be done again."""
import os
import sys
import sysconfig

from osrl_unlearn.files import sha256_file
from osrl_unlearn.registry import ATTACKS, REGISTRIES

SMALL = 1 << 20  # bytes; larger files on a command line are data, of which the forget manifest has hashes


class Skipped(SystemExit):
    """Ends a script, with status 0, before it trains again what is complete."""


def fingerprint(started):
    """What the running script's training depends on: own modules, arguments, and small files among them.

    To be called when the script makes its logger; its configurations are imported by then. ``started`` is the folder
    that the script was started in, which paths are relative to: it may have gone elsewhere.
    """
    named = {arg.partition("=")[2] if arg.startswith("--") and "=" in arg else arg for arg in sys.argv[1:]}
    return {"arguments": sys.argv[1:],
            "modules": {name: sha256_file(path) for name, path in sorted(_own_modules(started).items())},
            "files": {name: sha256_file(path) for name, path in ((n, os.path.join(started, n)) for n in sorted(named))
                      if os.path.isfile(path) and os.path.getsize(path) < SMALL}}


def _own_modules(started):
    """{module: its file} of the script and of what it has imported that is neither Python's nor installed.

    By name: a checkout may be moved, and torch writes a module into a new temporary folder every time.
    """
    library = os.path.join(sysconfig.get_path("stdlib"), "")
    # Of our plugins only attacks have a part in the training; another method is to find it complete.
    plugins = {name for registry in REGISTRIES if registry is not ATTACKS for name in registry.modules()}
    found = {"__main__": os.path.join(started, sys.modules["__main__"].__file__)}  # relative before Python 3.9
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if (path.endswith(".py") and os.path.isfile(path) and not path.startswith(library)
                and not {"site-packages", "dist-packages"} & set(path.split(os.sep))
                and name.partition(".")[0] not in ("__main__", "osrl_unlearn") and name not in plugins):
            found[name] = path
    return found


def file_hashes(paths):
    """{absolute path: hash of the file, None if there is none}."""
    return {path: sha256_file(path) if os.path.isfile(path) else None for path in map(os.path.abspath, sorted(paths))}
