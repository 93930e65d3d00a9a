"""Call back right after a module has been imported.

Training scripts set environment variables before they import torch, dsrl or osrl, and those read them at import. So
nothing here imports a module early: a callback waits until the script does.
"""
import importlib.machinery
import os
import sys
import threading

_lock = threading.RLock()
_waiting = []  # registrations in the order in which they were made


class _Registration:
    def __init__(self, name, callback):
        self.name, self.callback, self.done = name, callback, False


def package_root(path):
    """The folder from which the Python file ``path`` is imported: the first above it that is not itself a package."""
    folder = os.path.dirname(os.path.realpath(path))
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder = os.path.dirname(folder)
    return folder


def on_import(name, callback):
    """Call ``callback(module)`` once, after the module ``name`` has been executed; at once if it is in
    ``sys.modules`` already.

    If the callback raises, the import fails with that error, and a second attempt to import calls back again.
    Returns a function that takes the registration back; the last one leaves ``sys.meta_path`` as it was.
    """
    module = sys.modules.get(name)
    if module is not None:
        callback(module)
        return lambda: None
    registration = _Registration(name, callback)
    with _lock:
        _waiting.append(registration)
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)

    def undo():
        with _lock:
            registration.done = True
            if registration in _waiting:
                _waiting.remove(registration)
            if not _waiting and _finder in sys.meta_path:
                sys.meta_path.remove(_finder)

    return undo


def _registered(name):
    with _lock:
        return [registration for registration in _waiting if registration.name == name and not registration.done]


class _Finder:
    """Let the other finders find a module and watch its loader."""

    def find_spec(self, name, path=None, target=None):
        if not _registered(name):
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    _watch(spec)
                return spec
        return None


def _watch(spec):
    loader = spec.loader
    if isinstance(loader, (importlib.machinery.SourceFileLoader, importlib.machinery.SourcelessFileLoader,
                           importlib.machinery.ExtensionFileLoader)):
        # Each find makes a new loader of these classes, so it can carry the hook itself for a moment, and whoever
        # asked with importlib.util.find_spec still gets the loader that they expect.
        if "exec_module" not in vars(loader):
            loader.exec_module = lambda module: _execute_once(loader, module)
    else:
        spec.loader = _WatchedLoader(loader)


class _WatchedLoader:
    """Stand in for a loader that may serve several modules, until the module has been executed."""

    def __init__(self, loader):
        self.watched = loader

    def __getattr__(self, name):
        if name == "watched":  # not set yet while unpickling or copying
            raise AttributeError(name)
        return getattr(self.watched, name)

    def exec_module(self, module):
        if getattr(module.__spec__, "loader", None) is self:
            module.__spec__.loader = self.watched
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self.watched
        _execute(self.watched, module)


def _execute_once(loader, module):
    vars(loader).pop("exec_module", None)
    _execute(loader, module)


def _execute(loader, module):
    loader.exec_module(module)
    name = module.__spec__.name
    # A copy that somebody loads by hand, outside sys.modules, is not what others will import.
    registrations = _registered(name) if name in sys.modules else []
    for registration in registrations:
        registration.callback(sys.modules[name])  # not `module`: a module may replace itself while it runs
    # Only now: if one of them failed, the module is thrown away, and the next attempt must call all of them again.
    for registration in registrations:
        registration.done = True


_finder = _Finder()
