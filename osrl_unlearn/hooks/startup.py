"""--poison and --unlearn in a script that plain python runs, without our runner.

Two ways lead to :func:`activate`: an OSRL that loads the entry points of ``osrl.plugins`` (``osrl-unlearn patch``),
and a line that python executes when it starts (``osrl-unlearn enable``), which waits until the script imports ``osrl``.
Both do nothing, and import nothing but the standard library, unless a flag of ours is on the command line.
"""
import ast
import atexit
import functools
import os
import sys
import traceback

from osrl_unlearn.errors import ConfigError, EnvironmentProblem, OsrlUnlearnError
from osrl_unlearn.hooks.imports import on_import, package_root

_LINE_FILE = "osrl_unlearn_startup.pth"
# Python executes this at every start, also in other programs, and also after this package has been uninstalled.
_LINE = ("import sys; any(a.startswith(('--poison', '--unlearn')) for a in getattr(sys, 'argv', [])[1:]) and exec('try:"
         "\\n from osrl_unlearn.hooks.startup import wait\\nexcept ImportError:\\n pass\\nelse:\\n wait()')\n")
_status = None  # of a process that was ended: python exits with it even if the script swallows SystemExit
_taken = False  # whether somebody, our runner or an earlier call, looks after the flags of this process


def take():
    """Keep :func:`activate` from doing anything in this process: the runner is at work."""
    global _taken
    _taken = True


def given(argv):
    """Whether ``argv`` (without the program's name) holds --poison, --unlearn or one of their options before a ``--``.

    --dataset alone is not asked for: other scripts have such a flag of their own.
    """
    for token in argv:
        if token == "--":
            return False
        if token.startswith("--") and token[2:].partition("=")[0].partition(".")[0] in ("poison", "unlearn"):
            return True
    return False


def wait():
    """Call :func:`activate` when the script imports ``osrl``. Called by the line of ``osrl-unlearn enable``."""
    if not given(sys.argv[1:]):
        return
    from osrl_unlearn.hooks import compat
    compat.install()
    on_import("osrl", lambda module: activate())
    # OSRL's scripts import their configs from the root of the checkout, before they import osrl.
    if os.path.isfile(sys.argv[0]):
        root = package_root(sys.argv[0])
        if root != os.path.dirname(os.path.realpath(sys.argv[0])) and root not in sys.path:
            sys.path.append(root)


def activate():
    """Take our flags, if there are any, and serve the script that is being started. Raises SystemExit on an error."""
    if _taken or not given(sys.argv[1:]):
        return
    take()
    atexit.register(_leave)
    try:
        _begin()
    except BaseException as error:
        _stop(error)


def _stop(error):
    """End the process: whoever imports ``osrl`` may swallow other errors, and train without what was asked for."""
    global _status
    if isinstance(error, SystemExit):
        _status = error.code
        raise error
    from osrl_unlearn import cli
    _status = cli.explain(error)
    if _status is None:
        traceback.print_exception(type(error), error, error.__traceback__)
        _status = 1
    raise SystemExit(_status)


def _leave():
    """While python exits, nothing else changes its status."""
    if _status:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(_status)


def _begin():
    from osrl_unlearn import cli, status
    from osrl_unlearn.hooks import flags
    path, spec = sys.argv[0], getattr(sys.modules["__main__"], "__spec__", None)
    if not os.path.isfile(path):
        raise ConfigError("--poison and --unlearn work in scripts only, and {} is no file".format(path or "this"))
    with open(path, "rb") as file:
        source = file.read()
    if not _trains_under_pyrallis(source):
        # When its training is over cannot be seen from here, but the runner sees when the script is.
        as_module = spec is not None and spec.origin == path  # not so under a profiler
        raise SystemExit(cli.main(["run"] + (["-m", spec.name] if as_module else [path]) + sys.argv[1:]))
    line = flags.split_argv([path] + sys.argv[1:])
    status.quiet = line.quiet
    if line.help:
        print(cli.help_text(line), flush=True)
    else:
        plain = _Plain(line.ours)
        if plain.session.unlearn is not None:
            from osrl_unlearn.hooks.refusals import refuse_unsupported
            refuse_unsupported(source, path)
    sys.argv[1:] = line.rest


def _trains_under_pyrallis(source):
    """Whether the script decorates a function with ``pyrallis.wrap()``, as OSRL's scripts do."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import)
             for alias in node.names if alias.name == "pyrallis"}
    return any(isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Attribute)
               and decorator.func.attr == "wrap" and isinstance(decorator.func.value, ast.Name)
               and decorator.func.value.id in names for node in nodes if isinstance(node, ast.FunctionDef)
               for decorator in node.decorator_list)


class _Plain:
    """A script whose function under ``pyrallis.wrap()`` trains: when that returns, training is over.

    A script may call it several times; each call is a run of its own.
    """

    def __init__(self, ours):
        from osrl_unlearn.hooks import compat, runner
        from osrl_unlearn.hooks.patching import Patch, PatchSet
        self.ours, self.calls = ours, 0
        self._open()
        compat.install()
        runner.quiet_wandb()
        # Not undone: the script decorates its function once, and may call it at any time.
        PatchSet([Patch("pyrallis:wrap", self._wrap, ("config_path",))]).apply()
        atexit.register(self._nothing_ran)

    def _open(self):
        from osrl_unlearn import cli
        self.session = cli.make_session(self.ours)
        self.patches = self.session.patches()

    def _close(self):
        from osrl_unlearn.status import say
        for note in self.patches.undo():
            say(note)
        self.session = None

    def _wrap(self, original, *args, **kwargs):
        from osrl_unlearn.hooks import runner
        decorate = original(*args, **kwargs)

        def decorated(function):
            inner = decorate(runner.repair_function(function))
            return functools.wraps(inner)(lambda *a, **k: self._train(inner, *a, **k))

        return decorated

    def _train(self, inner, *args, **kwargs):
        from osrl_unlearn import environments, status
        from osrl_unlearn.hooks.repeat import Skipped
        self.calls += 1
        if self.session is None:
            self._open()
        result = leave = None
        try:
            try:
                result = inner(*args, **kwargs)
            except OsrlUnlearnError as error:
                _stop(error)
            except NameError as error:
                if not environments.lacks_oapackage(error):
                    raise
                _stop(EnvironmentProblem(environments.OAPACKAGE))
            except SystemExit as stop:
                if stop.code:
                    raise
                leave = None if isinstance(stop, Skipped) else stop
            try:
                text = self.session.finish(not status.quiet)
            except BaseException as error:
                _stop(error)
        finally:
            self._close()
        if text:
            from osrl_unlearn import cli
            cli.finish_wandb()
            print(text)
        if leave is not None:
            raise leave
        return result

    def _nothing_ran(self):
        global _status
        if self.calls or _status or getattr(sys, "last_type", None) is not None:
            return
        print("osrl-unlearn: error: the script never called its function under pyrallis.wrap(): nothing was "
              "poisoned or unlearned", file=sys.stderr)
        _status = 2


# The line that python executes when it starts ------------------------------------------------------------------------


def line_paths():
    """Where the start-up line is: paths of this environment, then of the user's site-packages. Mostly one or none."""
    return [path for path in map(_in, _folders()) if os.path.isfile(path)]


def enable():
    """Write the start-up line for the current environment; returns its path. Raises ConfigError."""
    from osrl_unlearn.files import write_text
    folders = _folders()
    for folder in folders:
        try:
            write_text(_in(folder), _LINE)
            return _in(folder)
        except ConfigError:
            continue
    raise ConfigError("cannot write to {}: use a virtual environment of your own, or python -m osrl_unlearn "
                      "SCRIPT, which needs no start-up line".format(" or ".join(folders)))


def disable():
    """Remove the start-up line; returns the paths that were removed. Raises ConfigError."""
    removed = line_paths()
    for path in removed:
        try:
            os.unlink(path)
        except OSError as error:
            raise ConfigError("cannot remove {}: {}".format(path, error.strerror)) from None
    return removed


def _in(folder):
    return os.path.join(folder, _LINE_FILE)


def _folders():
    import site
    import sysconfig
    return [sysconfig.get_path("purelib")] + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])
