"""Make Safety-Gymnasium 0.4 usable on Python 3.11 and 3.12.

From 3.11 on a dataclass refuses unhashable defaults, and Safety-Gymnasium uses the NumPy arrays of two dicts as
defaults. A view of the same array with a hash is accepted, and is still an array for everybody else. For 3.12 there is
only a MuJoCo that refuses three of the models: see :mod:`osrl_unlearn.hooks.mjcf`.
"""
import sys

from osrl_unlearn.hooks import mjcf
from osrl_unlearn.hooks.imports import on_import
from osrl_unlearn.hooks.patching import Patch, PatchSet

_DICTS = (("safety_gymnasium.assets.color", "COLOR"), ("safety_gymnasium.assets.group", "GROUP"))
_installed = []  # the undo function, while installed


def install():
    """Repair Safety-Gymnasium when it is imported, on Python 3.11 and later. A second call changes nothing.

    Returns a function that takes the repair back; classes that exist by then keep their defaults.
    """
    if _installed:
        return _installed[0]
    restore, pending = [], []

    def undo():
        while pending:
            pending.pop()()
        while restore:
            table, key, value = restore.pop()
            table[key] = value
        del _installed[:]

    _installed.append(undo)
    if sys.version_info >= (3, 11):
        for module, name in _DICTS:
            pending.append(on_import(module, _repair(name, restore)))
        patches = PatchSet()
        pending.append(patches.undo)
        pending.append(on_import("gymnasium.envs.mujoco.mujoco_env", lambda module: _modernise(module, patches)))
    return undo


def _modernise(module, patches):
    version = getattr(getattr(module, "mujoco", None), "__version__", None)
    if version and mjcf.is_needed(version):
        patches.add(Patch(mjcf.TARGET, mjcf.initialize))


def _repair(name, restore):
    return lambda module: _make_hashable(getattr(module, name, {}), restore)


def _make_hashable(table, restore):
    hashable, ndarray = _hashable_array()
    for key, value in list(table.items()):
        if isinstance(value, dict):
            _make_hashable(value, restore)
        elif isinstance(value, ndarray) and type(value).__hash__ is None:
            restore.append((table, key, value))
            table[key] = value.view(hashable)


def _hashable_array():
    # Made when needed: NumPy must not be imported before the script has set its environment variables.
    import numpy

    class HashableArray(numpy.ndarray):
        """An array that a dataclass accepts as a default. The hash is that of the object, not of its values."""

        __hash__ = object.__hash__

        def __reduce__(self):
            # Pickles and copies are plain arrays, so that no file needs this package to be read.
            return self.view(numpy.ndarray).__reduce__()

        def __deepcopy__(self, memo):
            return self.view(numpy.ndarray).copy()

    return HashableArray, numpy.ndarray
