"""Run a training script the way python would, in this process, and leave no trace."""
import ast
import configparser
import importlib.machinery
import importlib.util
import netrc
import os
import sys
import types
import urllib.parse
from contextlib import contextmanager

from osrl_unlearn.errors import ConfigError
from osrl_unlearn.hooks.imports import on_import, package_root
from osrl_unlearn.status import say


def run_target(target, argv=(), as_module=False):
    """Run the script ``target`` with the arguments ``argv``, like ``python target *argv``.

    With ``as_module`` it is the name of a module, like ``python -m target *argv``. Whatever the script raises passes
    through, SystemExit too; ``print_exception`` shows it as python would. ``sys.argv``, ``sys.path``, the ``__main__``
    module and the current directory are put back at the end. Raises ConfigError if there is no such script or module.

    One difference from python: the current directory and the root of the script's package are appended to ``sys.path``,
    because OSRL's scripts import their configs from the root of the checkout (``from examples.configs...``).
    """
    with _restored():
        if as_module:
            sys.path[0:_launcher_entries()] = [os.getcwd()]
            sys.argv = ["-m"] + list(argv)  # what python shows to the parent packages while it imports them
            spec = _find_module(target)
            sys.argv[0] = spec.origin
            code = _module_code(spec)
        else:
            path = _script_path(target)
            sys.path[0:_launcher_entries()] = [os.path.dirname(os.path.realpath(path))]
            for folder in (os.getcwd(), package_root(path)):
                if folder not in sys.path:
                    sys.path.append(folder)
            sys.argv = [target] + list(argv)
            spec = None
            with open(path, "rb") as file:
                code = _compile(file.read(), path)
        main = types.ModuleType("__main__")
        main.__builtins__ = sys.modules["builtins"]
        if sys.version_info < (3, 14):
            main.__annotations__ = {}
        if spec is None:
            main.__file__, main.__cached__ = path, None
            main.__loader__ = importlib.machinery.SourceFileLoader("__main__", path)
        else:
            main.__file__, main.__cached__, main.__spec__ = spec.origin, spec.cached, spec
            main.__loader__, main.__package__ = spec.loader, spec.parent
        sys.modules["__main__"] = main
        _execute(code, main)


def print_exception(error):
    """Print the traceback of what ``run_target`` raised, through ``sys.excepthook``, as plain python would.

    Our own frames are cut from ``error`` and from the errors that led to it.
    """
    seen, queue = set(), [error]
    while queue:
        one = queue.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = _user_traceback(one.__traceback__)
            queue += [one.__cause__, one.__context__]
    sys.excepthook(type(error), error, error.__traceback__)


def quiet_wandb():
    """Let wandb log offline if it could only ask for a key. Decided when the script imports wandb.

    Returns a function that undoes this, the change of the environment included.
    """
    changed = []

    def decide(_):
        if not _wandb_is_configured():
            changed.append(os.environ.get("WANDB_MODE"))
            os.environ["WANDB_MODE"] = "offline"
            say("no wandb API key found, so wandb logs offline (WANDB_MODE=offline; set WANDB_API_KEY or WANDB_MODE "
                "to change this)")

    forget = on_import("wandb", decide)

    def undo():
        forget()
        before = changed.pop() if changed else "not ours"
        if before is None and os.environ.get("WANDB_MODE") == "offline":
            del os.environ["WANDB_MODE"]
        elif before == "":
            os.environ["WANDB_MODE"] = before

    return undo


def _wandb_is_configured():
    """Whether the user has logged in to wandb, or has said in another way how it should log."""
    if any(os.environ.get("WANDB_" + name) for name in (
            "MODE", "API_KEY", "DISABLED", "ANONYMOUS", "IDENTITY_TOKEN_FILE")):
        return True
    home = os.path.expanduser("~")
    settings = configparser.ConfigParser(interpolation=None)
    try:
        folders = [os.environ.get("WANDB_CONFIG_DIR") or os.path.join(home, ".config", "wandb"),
                   os.path.join(os.environ.get("WANDB_DIR") or ".", "wandb")]
        settings.read([os.path.join(folder, "settings") for folder in folders])
    except (configparser.Error, UnicodeDecodeError):
        pass
    chosen = dict(settings["default"]) if settings.has_section("default") else {}
    if chosen.get("api_key") or chosen.get("mode", "online") != "online":
        return True
    url = os.environ.get("WANDB_BASE_URL") or chosen.get("base_url") or "https://api.wandb.ai"
    files = [os.environ["NETRC"]] if os.environ.get("NETRC") else [os.path.join(home, name) for name in (
        ".netrc", "_netrc")]
    for path in files:
        try:
            if urllib.parse.urlsplit(url).hostname in netrc.netrc(os.path.expanduser(path)).hosts:
                return True
        except (OSError, ValueError, netrc.NetrcParseError):
            pass  # wandb ignores such a file as well
    return False


# --- finding and executing ---------------------------------------------------------------------------------------


@contextmanager
def _restored():
    argv, path, entries, directory = sys.argv, sys.path, list(sys.path), os.getcwd()
    main = sys.modules.get("__main__")
    try:
        yield
    finally:
        sys.argv, sys.path = argv, path
        sys.path[:] = entries
        if main is not None:
            sys.modules["__main__"] = main
        try:
            os.chdir(directory)
        except OSError:
            pass  # the script removed it; its own error, if any, matters more


def _launcher_entries():
    """How many entries at the head of ``sys.path`` (0 or 1) are there only because python started *us* from there."""
    if not sys.path or getattr(sys.flags, "safe_path", False) or sys.flags.isolated:
        return 0
    started = os.path.dirname(os.path.realpath(sys.argv[0])) if sys.argv and sys.argv[0] else os.getcwd()
    return int(sys.path[0] in ("", os.getcwd(), started))


def _script_path(target):
    if os.path.isdir(target):
        raise ConfigError("{} is a directory: expected a Python file".format(target))
    if not os.path.isfile(target):
        raise ConfigError("no script at {}: expected a Python file; the current directory is {}{}".format(
            target, os.getcwd(), "" if os.sep in target or target.endswith(".py") else
            "; 'osrl-unlearn --help' lists the commands"))
    return target if sys.version_info < (3, 9) else os.path.join(os.getcwd(), target)


def _find_module(name):
    missing = "no module named {}: expected what python -m takes, such as examples.train.train_cpq, from the " \
              "directory that holds its top package; the current directory is {}".format(name, os.getcwd())
    if name.startswith(".") or name.endswith(".py"):
        raise ConfigError(missing)
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        # An import that fails inside the user's package is the user's error, not a wrong name.
        if error.name and (name + ".").startswith(error.name + "."):
            raise ConfigError(missing) from None
        raise
    except ValueError:  # a module without a spec, such as __main__
        spec = None
    if spec is None:
        raise ConfigError(missing)
    if spec.submodule_search_locations is not None:
        if name.endswith(".__main__"):
            raise ConfigError("{} is a package: it cannot be run".format(name))
        try:
            return _find_module(name + ".__main__")
        except ConfigError:
            raise ConfigError("{} is a package without a __main__ module: name a module in it".format(name)) from None
    if not hasattr(spec.loader, "get_code"):
        raise ConfigError("{} is not written in Python: it cannot be run with -m".format(name))
    return spec


def _module_code(spec):
    try:
        source = spec.loader.get_source(spec.name)
    except (AttributeError, ImportError):
        source = None
    code = None if source is None else _repaired(source, spec.origin)
    code = code or spec.loader.get_code(spec.name)
    if code is None:
        raise ConfigError("there is no code for {}: it cannot be run with -m".format(spec.name))
    return code


def _compile(source, path):
    return _repaired(source, path) or compile(source, path, "exec", dont_inherit=True)


def _execute(code, main):
    exec(code, vars(main))


# --- tracebacks --------------------------------------------------------------------------------------------------


_HOOKS = os.path.dirname(os.path.abspath(__file__))
_THIS = _execute.__code__.co_filename


def _user_traceback(traceback):
    """The traceback without our frames: everything up to the user's first frame, and hooks further down."""
    entries = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    codes = [entry.tb_frame.f_code for entry in entries]
    first = 0
    if _execute.__code__ in codes:
        first = codes.index(_execute.__code__) + 1
    elif any(code.co_filename == _THIS for code in codes):
        # The script was not reached: it does not compile, or a parent package of the module fails.
        first = max(i for i, code in enumerate(codes) if code.co_filename == _THIS) + 1
        while first < len(codes) and _is_import_machinery(codes[first]):
            first += 1
    kept = []
    for entry in entries[first:]:
        name = os.path.basename(entry.tb_frame.f_code.co_filename)
        ours = os.path.dirname(entry.tb_frame.f_code.co_filename) == _HOOKS and name in ("imports.py", "patching.py")
        if not ours:
            kept.append(entry)
        elif name == "imports.py":
            # Python hides its import machinery only where it is not interrupted by a frame like ours.
            while kept and _is_import_machinery(kept[-1].tb_frame.f_code):
                kept.pop()
    result = None
    for entry in reversed(kept):
        result = types.TracebackType(result, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return result


def _is_import_machinery(code):
    return code.co_filename.startswith("<frozen importlib") or code.co_filename == importlib.util.__file__


# --- the repair of scripts that import gym in one branch of a function -----------------------------------------------


def _repaired(source, path):
    """Code in which ``gym`` is global where it would be an unbound local; None if there is nothing to repair.

    OSRL's training scripts import gymnasium as gym at the top and old gym inside ``train()``, but only for MetaDrive.
    That makes gym a local name of ``train()``, which has no value for any other task.
    """
    try:
        tree = ast.parse(source, path)
    except (SyntaxError, ValueError):
        return None  # compiling the source itself gives the message that python gives
    if not any(_binds_gym(node) for node in _scope(tree.body)):
        return None
    repairs = []
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            line = _unbound_line(function)
            if line:
                start = 1 if ast.get_docstring(function, clean=False) is not None else 0
                # The statement makes no code, so all lines of the function stay where they are.
                statement = ast.copy_location(ast.Global(names=["gym"]), function.body[start])
                function.body.insert(start, statement)
                repairs.append((function.name, line))
    if not repairs:
        return None
    try:
        code = compile(tree, path, "exec", dont_inherit=True)
    except SyntaxError:
        return None  # gym cannot be global there, for example because of an annotation
    for name, line in repairs:
        say("repaired {}: 'gym' is imported inside {}() and would have been unbound there (line {})".format(
            os.path.basename(path), name, line))
    return code


def repair_function(function):
    """The function with ``gym`` global if it imports it in one branch only; its module must import it as well.

    For a function whose module runs already. The repair is in the function alone, not in its file.
    """
    path, first = function.__code__.co_filename, function.__code__.co_firstlineno
    try:
        with open(path, "rb") as file:
            module = _repaired(file.read(), path)
    except OSError:
        module = None
    for code in module.co_consts if module is not None else ():
        if isinstance(code, types.CodeType) and (code.co_name, code.co_firstlineno) == (function.__name__, first):
            function.__code__ = code
    return function


_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def _scope(nodes):
    """All nodes below ``nodes`` that belong to the same scope; nested functions and classes are not entered."""
    for node in nodes:
        yield node
        if not isinstance(node, _SCOPES):
            yield from _scope(ast.iter_child_nodes(node))


def _binds_gym(node):
    return isinstance(node, (ast.Import, ast.ImportFrom)) and any(
        (alias.asname or alias.name.partition(".")[0]) == "gym" for alias in node.names)


def _unbound_line(function):
    """The first line at which ``gym`` may be a local without a value; 0 if it is no local, or always has one."""
    nodes = list(_scope(function.body))
    if not any(_binds_gym(node) for node in nodes):
        return 0
    if any(isinstance(node, (ast.Global, ast.Nonlocal)) and "gym" in node.names for node in nodes):
        return 0
    if any(isinstance(node, ast.arg) and node.arg == "gym" for node in ast.walk(function.args)):
        return 0
    uses = []
    _follow(function.body, False, uses)
    return min(uses) if uses else 0


_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


def _follow(statements, bound, uses):
    """Walk the statements in the order of execution; return whether ``gym`` surely has a value after them.

    Appends the lines of uses at which it may have none. After a statement that leaves the block the answer is True,
    since nothing after it is reached.
    """
    for node in statements:
        if isinstance(node, _SCOPES):
            uses += [] if bound else _reads(node)
            continue
        # What is evaluated first: the condition of an if, the items of a with, the whole of a simple statement.
        head = [child for name, value in ast.iter_fields(node) if name not in _BLOCKS
                for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
        if not bound:
            uses += [line for child in head for line in _reads(child)]
        before = bound
        stores = any(isinstance(child, ast.Name) and child.id == "gym" and isinstance(child.ctx, ast.Store)
                     for child in _scope(head))
        if isinstance(node, (ast.Return, ast.Raise, ast.Continue, ast.Break)):
            return True
        if isinstance(node, ast.If):
            one = _follow(node.body, bound or stores, uses)
            bound = _follow(node.orelse, bound or stores, uses) and one
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
            # The body may not be executed at all, so it gives nothing to what follows.
            _follow(node.body, bound or stores, uses)
            _follow(node.orelse, bound, uses)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            bound = _follow(node.body, bound or stores, uses)
        elif hasattr(node, "handlers"):
            ends = [_follow(node.orelse, _follow(node.body, bound, uses), uses)]
            ends += [_follow(handler.body, before, uses) for handler in node.handlers]
            bound = _follow(node.finalbody, before, uses) or all(ends)
        elif hasattr(node, "cases"):
            for case in node.cases:
                _follow(case.body, bound or stores, uses)
        else:
            bound = bound or stores or _binds_gym(node)
    return bound


def _reads(node):
    """The lines below ``node`` that read ``gym``, in nested functions too unless they have one of their own."""
    if isinstance(node, _SCOPES) and any(
            _binds_gym(child) or (isinstance(child, ast.arg) and child.arg == "gym") for child in ast.walk(node)):
        return []
    lines = [line for child in ast.iter_child_nodes(node) for line in _reads(child)]
    if isinstance(node, ast.Name) and node.id == "gym" and isinstance(node.ctx, ast.Load):
        lines.append(node.lineno)
    return lines
