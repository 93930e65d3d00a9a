"""Reversible patches: replace a method of a class that is not ours, and put back exactly what was there.

Scripts bind classes early (``from osrl.algorithms import CPQTrainer``), so a patch goes on the class that defines the
method, never on a module's name for the class.
"""
import functools
import importlib
import inspect

from osrl_unlearn.errors import EnvironmentProblem
from osrl_unlearn.hooks.imports import on_import

MISSING = object()

# Distributions whose name is not that of the package they hold.
_DISTRIBUTIONS = {"osrl": "osrl-lib", "fsrl": "fast-safe-rl"}


class Patch:
    """Have ``around(original, *args, **kwargs)`` called in place of ``target``, a string ``"pkg.mod:Class.attr"``.

    ``original`` is the plain function: for a method ``args`` starts with ``self``, for a class method with the class.
    ``parameters`` are the names that the original's parameters must start with; with other names the patch refuses,
    because ``around`` would misread the call. ``owner`` is the class itself, for one that cannot be imported: then
    ``target`` is for messages only.
    """

    def __init__(self, target, around, parameters=(), owner=None):
        self.owner = owner
        self.target, self.around, self.parameters = target, around, tuple(parameters)
        self.module, _, path = target.partition(":")
        self.path = path.split(".")
        if not self.module or not all(self.path):
            raise ValueError("a patch target looks like 'pkg.mod:Class.attr', not {!r}".format(target))
        self._installed = None

    def __repr__(self):
        return "Patch({!r})".format(self.target)

    @property
    def installed(self):
        """Whether the patch is in place."""
        return self._installed is not None

    def apply(self):
        """Install the patch; nothing happens if it is installed. Raises EnvironmentProblem if the seam has moved."""
        if self._installed is not None:
            return
        owner, name = self._owner(), self.path[-1]
        raw = vars(owner).get(name, MISSING)
        if raw is MISSING:
            # An inherited method belongs to the parent: patching both would call `around` twice.
            where = "inherited" if hasattr(owner, name) else "not there"
            raise self._problem("{!r} is not defined in {} itself ({})".format(name, owner.__name__, where))
        kind = type(raw) if isinstance(raw, (staticmethod, classmethod)) else None
        original = raw.__func__ if kind else raw
        if not callable(original) or (isinstance(owner, type) and not hasattr(original, "__get__")):
            raise self._problem("{!r} is a {}, not a function".format(name, type(raw).__name__))
        self._check_parameters(original)
        # One switch per installation, so that a wrapper left behind by an earlier one stays off.
        switch, around = {"on": True}, self.around

        @functools.wraps(original)
        def wrapper(*args, **kwargs):
            if not switch["on"]:
                return original(*args, **kwargs)
            return around(original, *args, **kwargs)

        entry = kind(wrapper) if kind else wrapper
        setattr(owner, name, entry)
        self._installed = owner, name, raw, entry, switch

    def undo(self):
        """Put the original object back; nothing happens if the patch is not installed.

        If somebody patched the same attribute after us, theirs stays and ours only passes calls on. Returns a list
        of notes that say so (empty in the normal case).
        """
        if self._installed is None:
            return []
        owner, name, raw, entry, switch = self._installed
        self._installed = None
        switch["on"] = False
        if vars(owner).get(name, MISSING) is entry:
            setattr(owner, name, raw)
            return []
        return ["{} was changed by somebody else after osrl-unlearn had patched it: their change stays, ours is "
                "switched off".format(self.target)]

    def _owner(self):
        if self.owner is not None:
            return self.owner
        try:
            owner = importlib.import_module(self.module)
        except ImportError as error:
            raise self._problem("{} cannot be imported ({})".format(self.module, error)) from error
        for part in self.path[:-1]:
            owner = getattr(owner, part, MISSING)
            if owner is MISSING:
                raise self._problem("there is no {!r} in {}".format(part, self.module))
        return owner

    def _check_parameters(self, original):
        if not self.parameters:
            return
        try:
            found = tuple(inspect.signature(original).parameters)
        except (TypeError, ValueError):
            found = ()
        if found[:len(self.parameters)] != self.parameters:
            raise self._problem("its parameters are ({}), expected ({}, ...)".format(
                ", ".join(found), ", ".join(self.parameters)))

    def _problem(self, why):
        package = self.module.partition(".")[0]
        return EnvironmentProblem("cannot patch {}: {}. The installed {} is not a version that osrl-unlearn knows; "
                                  "install one that it was tested with".format(self.target, why, _version(package)))


def _version(package):
    from importlib.metadata import PackageNotFoundError, version
    name = _DISTRIBUTIONS.get(package, package)
    try:
        return "{} {}".format(name, version(name))
    except PackageNotFoundError:
        return package


class PatchSet:
    """Patches that are installed together and undone together, in reverse order. A context manager.

    ``notes`` collects what the last ``undo`` had to say.
    """

    def __init__(self, patches=()):
        self._patches = tuple(patches)
        self._applied, self._pending, self.notes = [], [], []

    def apply(self):
        """Install the patches given to the constructor: all of them, or on an error none."""
        self._install([patch for patch in self._patches if patch not in self._applied])

    def add(self, *patches):
        """Install more patches now: all of them, or on an error none of them."""
        self._install([patch for patch in patches if patch not in self._applied])

    def when_imported(self, module, patches):
        """Install ``patches`` right after ``module`` has been executed, or now if it is imported already.

        ``patches`` may be a function that takes the module and returns them. If they do not fit, the import of that
        module fails with EnvironmentProblem.
        """
        find = patches if callable(patches) else (lambda imported, fixed=tuple(patches): fixed)
        self._pending.append(on_import(module, lambda imported: self.add(*find(imported))))

    def undo(self):
        """Drop what is pending, undo what is installed, and return the notes. A second call does nothing."""
        while self._pending:
            self._pending.pop()()
        notes = []
        while self._applied:
            notes += self._applied.pop().undo()
        self.notes = notes
        return notes

    def _install(self, patches):
        done = []
        try:
            for patch in patches:
                patch.apply()
                done.append(patch)
        except BaseException:
            for patch in reversed(done):
                patch.undo()
            raise
        self._applied += done

    def __enter__(self):
        try:
            self.apply()
        except BaseException:
            # `when_imported` may have been called before the block.
            self.undo()
            raise
        return self

    def __exit__(self, *exception):
        self.undo()
