"""Where the files that ship with the package are.

``configs/`` and ``patches/`` stand at the top of the repository and are mapped into the package when it is built, so
that both an installed wheel and a source checkout find them.
"""
import os

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def folder(name):
    """Path of a shipped folder: ``configs``, ``patches`` or ``datasets``."""
    inside = os.path.join(_PACKAGE, name)
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(_PACKAGE), name)


def find(path):
    """``path``; if there is none and it begins with ``configs/``, that of the shipped file of this name."""
    start, _, rest = str(path).partition("/")
    shipped = os.path.join(folder(start), rest) if start == "configs" else ""
    return shipped if not os.path.exists(path) and os.path.isfile(shipped) else path
