"""Recognise a command that was run before: its training is complete and need not be done again."""
import os
import sys

from osrl_unlearn.files import sha256_file
from osrl_unlearn.hooks.imports import package_root

SMALL = 1 << 20  # bytes; larger files on a command line are data, of which the forget manifest has hashes


class Skipped(SystemExit):
    """Ends a script, with status 0, before it trains again what is complete."""


def fingerprint(started):
    """What the running script's training depends on: its own modules, its arguments, and small files among them.

    To be called when the script makes its logger; its configurations are imported by then. ``started`` is the folder
    that the script was started in, which paths are relative to: it may have gone elsewhere.
    """
    main = os.path.join(started, sys.modules["__main__"].__file__)  # relative before Python 3.9
    root = package_root(main) + os.sep
    own = {path for name, path in ((name, getattr(module, "__file__", None)) for name, module in list(
        sys.modules.items())) if path and path.startswith(root) and path.endswith(".py")
        and not name.startswith("osrl_unlearn") and "site-packages" not in path}
    named = {arg.partition("=")[2] if arg.startswith("--") and "=" in arg else arg for arg in sys.argv[1:]}
    return {"arguments": sys.argv[1:],
            "modules": {os.path.relpath(path, root): sha256_file(path) for path in sorted(own | {main})},
            "files": {name: sha256_file(path) for name, path in ((n, os.path.join(started, n)) for n in sorted(named))
                      if os.path.isfile(path) and os.path.getsize(path) < SMALL}}


def file_hashes(paths):
    """{absolute path: hash of the file, None if there is none}."""
    return {path: sha256_file(path) if os.path.isfile(path) else None for path in map(os.path.abspath, sorted(paths))}
