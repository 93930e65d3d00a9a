import dis
import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest

import osrl_unlearn
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.hooks import runner
from osrl_unlearn.hooks.runner import run_target

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(osrl_unlearn.__file__)))

DRIVER = """
import sys
from osrl_unlearn.hooks import imports, patching, runner

as_module = sys.argv[1] == "-m"
target, argv = sys.argv[1 + as_module], sys.argv[2 + as_module:]
patches = patching.PatchSet()
imports.on_import("broken", print)
patches.when_imported("lib", [patching.Patch("lib:Thing.go", lambda original, *args: original(*args))])
runner.quiet_wandb()
try:
    runner.run_target(target, argv, as_module)
except Exception as error:
    runner.print_exception(error)
    sys.exit(1)
"""

DESCRIBE = '''
"""Tell everything a script can know about how it was started."""
import inspect
import json
import os
import pickle
import sys


class Thing:
    pass


def here():
    return inspect.currentframe().f_code.co_filename


print(json.dumps({
    "globals": sorted(globals()),
    "name": __name__, "file": __file__, "package": __package__, "doc": __doc__, "cached": __cached__,
    "spec": __spec__ and [__spec__.name, __spec__.origin, __spec__.parent],
    "loader": [type(__loader__).__name__, __loader__.name, __loader__.path],
    "builtins": type(__builtins__).__name__, "annotations": globals().get("__annotations__", "none"),
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "code": here(),
    "main": sys.modules["__main__"].__dict__ is globals(),
    "pickle": type(pickle.loads(pickle.dumps(Thing()))) is Thing,
    "source": inspect.getsource(Thing), "depth": "osrl_unlearn" in "".join(map(str, inspect.stack()[:1])),
}, indent=1))
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to work in, with the driver elsewhere."""
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "driver.py").write_text(DRIVER)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def python(*argv, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "COV", "NETRC"))}
    clean.update(PYTHONPATH=ROOT, OMP_NUM_THREADS="1")
    clean.update(environment)
    return subprocess.run([sys.executable] + list(argv), env=clean, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True)


def driven(*argv, **environment):
    return python(os.path.join("..", "driver", "driver.py"), *argv, **environment)


# --- like python -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [
    ["describe.py", "--a", "x y", "--", "-h"], ["./describe.py"], ["pkg/mod.py"], ["../far/describe.py", "1"],
    ["ABSOLUTE"], ["-m", "describe", "-m", "x"], ["-m", "pkg.mod", "--help"], ["-m", "pkg"],
], ids=" ".join)
def test_a_script_sees_what_it_sees_under_python(place, argv):
    for path in (place / "describe.py", place / "pkg" / "mod.py", place / "pkg" / "__main__.py",
                 place.parent / "far" / "describe.py"):
        write(path, DESCRIBE)
    write(place / "pkg" / "__init__.py", "")
    argv = [str(place.parent / "far" / "describe.py") if one == "ABSOLUTE" else one for one in argv]
    plain, ours = python(*argv), driven(*argv)
    assert plain.returncode == 0, plain.stderr
    assert (ours.returncode, ours.stderr) == (0, "")
    expected = json.loads(plain.stdout)
    # The one difference: the current directory is at the end, unless it is there already.
    if str(place) not in expected["path"]:
        expected["path"].append(str(place))
    assert json.loads(ours.stdout) == expected


@pytest.mark.parametrize("source", [
    "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)",
    "import sys; sys.exit('a message')",
    "import sys; sys.exit()",
    "raise SystemExit(True)",
    "def f(x):\n    return 1 / x\n\nprint('start')\nf(0)\n",
    "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError('b') from error\n",
    "try:\n    {}['a']\nexcept KeyError:\n    import broken\n",
    "import broken",
    "import no_such_module",
    "import importlib\nimportlib.import_module('no_such_module')\n",
    "import misspelt",
    "def f(:\n  pass\n",
    "x = 1\n  y = 2\n",
    "exec('1/0')",
    "import sys\nsys.excepthook = lambda *a: print('hooked', len(a), a[2].tb_lineno)\nraise ValueError\n",
    "import os; os._exit(7)",
    "import threading; threading.Thread(target=print, args=('thread',)).start()",
    "import atexit; atexit.register(print, 'at exit')",
])
def test_exit_codes_and_tracebacks_are_those_of_python(place, source):
    write(place / "bad.py", source)
    write(place / "broken.py", "def fail():\n    raise RuntimeError('broken')\n\nfail()\n")
    write(place / "misspelt.py", "a = = 1\n")
    plain, ours = python("bad.py"), driven("bad.py")
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_patches_do_not_show_in_tracebacks(place):
    write(place / "lib.py", "class Thing:\n    def go(self):\n        raise ValueError('inside')\n")
    write(place / "bad.py", "from lib import Thing\nThing().go()\n")
    error = driven("bad.py").stderr
    assert "ValueError: inside" in error and "lib.py" in error and "bad.py" in error
    assert "patching.py" not in error and "runner.py" not in error


def test_a_failing_parent_package_shows_its_own_lines(place):
    write(place / "pkg" / "__init__.py", "import no_such_module\n")
    write(place / "pkg" / "mod.py", "")
    done = driven("-m", "pkg.mod")
    assert done.returncode == 1
    assert "__init__.py\", line 1" in done.stderr and "No module named 'no_such_module'" in done.stderr
    assert "runner.py" not in done.stderr and "importlib" not in done.stderr


def test_configs_from_the_root_of_a_checkout(place):
    write(place / "examples" / "configs" / "toy.py", "VALUE = 5\n")
    write(place / "examples" / "train" / "toy.py", "from examples.configs.toy import VALUE\nprint(VALUE)\n")
    assert python("examples/train/toy.py").returncode == 1
    for argv in (["examples/train/toy.py"], ["-m", "examples.train.toy"]):
        done = driven(*argv)
        assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(place, method):
    write(place / "work.py", """
        import multiprocessing

        def double(x):
            return 2 * x

        if __name__ == "__main__":
            with multiprocessing.get_context("{}").Pool(1) as pool:
                print(pool.map(double, [1, 2]))
        """.format(method))
    for argv in (["work.py"], ["-m", "work"]):
        done = driven(*argv)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[2, 4]\n", "")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_loader_workers(place):
    write(place / "load.py", """
        from torch.utils.data import DataLoader, IterableDataset

        class Numbers(IterableDataset):
            def __iter__(self):
                return iter(range(4))

        if __name__ == "__main__":
            print(sorted(int(x) for batch in DataLoader(Numbers(), batch_size=2, num_workers=1) for x in batch))
        """)
    done = driven("load.py")
    assert (done.returncode, done.stdout) == (0, "[0, 1, 2, 3]\n"), done.stderr


@pytest.mark.parametrize("argv, text", [
    (["no.py"], "no script at no.py: expected a Python file"), (["pkg"], "pkg is a directory"),
])
def test_missing_scripts(place, argv, text):
    (place / "pkg").mkdir()
    with pytest.raises(ConfigError, match=text):
        run_target(*argv)


@pytest.mark.parametrize("name, text", [
    ("no_such", "no module named no_such"), ("no.such", "no module named no.such"),
    ("json.no", "no module named json.no"), ("json.decoder.no", "no module named"),
    ("thing.py", "no module named thing.py"), (".thing", "no module named"),
    ("json", "json is a package without a __main__"),
])
def test_missing_modules(place, name, text):
    with pytest.raises(ConfigError, match=text):
        run_target(name, as_module=True)


@pytest.mark.parametrize("ending", ["", "raise ValueError('x')", "raise SystemExit(4)", "raise KeyboardInterrupt"])
@pytest.mark.parametrize("as_module", [False, True])
def test_everything_is_put_back(place, ending, as_module):
    (place / "sub").mkdir()
    write(place / "change.py", "import os, sys\nsys.argv.append('x')\nsys.path.insert(0, 'x')\nsys.path = ['y']\n"
                               "os.chdir('sub')\nsys.argv = None\n" + ending)
    argv, path, main = sys.argv, sys.path, sys.modules["__main__"]
    copies = list(argv), list(path)
    try:
        run_target("change" if as_module else "change.py", ["a"], as_module)
    except (ValueError, SystemExit, KeyboardInterrupt):
        assert ending
    else:
        assert not ending
    assert sys.argv is argv and sys.path is path and sys.modules["__main__"] is main
    assert (list(argv), list(path)) == copies
    assert os.getcwd() == str(place)


# --- the repair of gym -------------------------------------------------------------------------------------------


TRAIN = '''
"""Toy with the mistake: gym is imported in one branch of a function that uses it in all."""
import sys

import gymnasium as gym


def train(task):
    """Doc."""
    if "Metadrive" in task:
        import gym
    print(gym.make(task), train.__doc__)
    return 1 / 0


train(sys.argv[1])
'''


@pytest.fixture
def gyms(place):
    write(place / "gym.py", "def make(task):\n    return 'old ' + task\n")
    write(place / "gymnasium.py", "def make(task):\n    return 'new ' + task\n")
    write(place / "train_toy.py", TRAIN)
    return place


@pytest.mark.parametrize("start", [["train_toy.py"], ["-m", "train_toy"]])
def test_gym_is_repaired(gyms, start):
    assert "UnboundLocalError" in python(*start + ["Ball"]).stderr
    for task, output in (("Ball", "new Ball Doc.\n"), ("Metadrive", "old Metadrive Doc.\n")):
        done = driven(*start + [task])
        assert done.stdout == output
        lines = done.stderr.splitlines()
        assert lines[0] == ("osrl-unlearn: repaired train_toy.py: 'gym' is imported inside train() and would have been "
                            "unbound there (line 11)")
        # Lines are those of the file.
        assert "train_toy.py\", line 12, in train" in done.stderr and "    return 1 / 0" in lines
        assert lines[1] == "Traceback (most recent call last):"


TOP = "import gymnasium as gym\n"


@pytest.mark.parametrize("source, line", [
    (TOP + "def f(x):\n    if x:\n        import gym\n    return gym\n", 5),
    (TOP + "async def f(x):\n    if x:\n        import gym\n    return gym\n", 5),
    (TOP + "class C:\n    def f(self, x):\n        while x:\n            import gym\n        gym.make(x)\n", 6),
    (TOP + "def f(x):\n    gym.make(x)\n    import gym\n", 3),
    (TOP + "def f(x):\n    if x:\n        import old as gym\n    else:\n        pass\n    gym.make(x)\n", 7),
    (TOP + "def f(x):\n    try:\n        import gym\n    except ImportError:\n        pass\n    gym.make(x)\n", 7),
    (TOP + "def f(x):\n    with x:\n        for y in x:\n            from old import gym\n        gym.make(x)\n", 6),
    (TOP + "def f(x):\n    if x:\n        import gym\n    return lambda: gym.make(x)\n", 5),
    ("try:\n    import gymnasium as gym\nexcept ImportError:\n    import gym\n"
     "def f(x):\n    if x:\n        import gym\n    return gym\n", 8),
])
def test_sources_with_the_mistake(source, line, capsys):
    code = runner._repaired(source, "dir/toy.py")
    assert capsys.readouterr().err.endswith("toy.py: 'gym' is imported inside f() and would have been unbound there "
                                            "(line {})\n".format(line))
    assert starts(code) == starts(compile(source, "dir/toy.py", "exec"))


def starts(code):
    """First lines of all instructions, in nested functions too."""
    inner = [starts(one) for one in code.co_consts if hasattr(one, "co_consts")]
    return [line for _, line in dis.findlinestarts(code) if line], inner


@pytest.mark.parametrize("source", [
    TOP + "def f(x):\n    import gym\n    return gym.make(x)\n",
    TOP + "def f(x):\n    if x:\n        import gym\n    else:\n        import new as gym\n    return gym.make(x)\n",
    TOP + "def f(x):\n    if x:\n        import gym\n        return gym.make(x)\n    return None\n",
    TOP + "def f(x):\n    if not x:\n        return None\n    else:\n        import gym\n    return gym.make(x)\n",
    TOP + "def f(x):\n    try:\n        import gym\n    except ImportError:\n        raise\n    gym.make(x)\n",
    TOP + "def f(x):\n    try:\n        import gym\n    except ImportError:\n        gym = None\n    return gym\n",
    TOP + "def f(x):\n    global gym\n    if x:\n        import gym\n    return gym.make(x)\n",
    TOP + "def f(x, gym=None):\n    if x:\n        import gym\n    return gym.make(x)\n",
    TOP + "def f(x):\n    return gym.make(x)\n",
    TOP + "def f(x):\n    gym = x\n    if x:\n        import gym\n    return gym.make(x)\n",
    TOP + "def f(x):\n    if x:\n        import gym.spaces as spaces\n    return gym.make(x)\n",
    TOP + "def f(x):\n    def g():\n        import gym\n        return gym\n    return gym.make(x), g\n",
    # No gym at the top: the script is wrong, but not in the way that can be repaired.
    "def f(x):\n    if x:\n        import gym\n    return gym.make(x)\n",
    "import gymnasium\ndef f(x):\n    if x:\n        import gym\n    return gym.make(x)\n",
    TOP + "def f(x):\n    if x:\n        import gym\n    gym: object = gym\n",
    "def f(:\n", "", "\0",
])
def test_sources_that_are_left_alone(source, capsys):
    assert runner._repaired(source, "toy.py") is None
    assert capsys.readouterr().err == ""


def test_scripts_in_other_encodings(place):
    path = place / "latin.py"
    text = ("# -*- coding: latin-1 -*-\nimport gymnasium as gym\nassert '\xe9' == chr(233)\n"
            "def f(x):\n    if x:\n        import gym\n    return gym\nprint(f(0).make(1))\n")
    path.write_bytes(text.encode("latin-1"))
    write(place / "gymnasium.py", "make = str\n")
    assert driven("latin.py").stdout == "1\n"


# --- wandb -------------------------------------------------------------------------------------------------------


LINE = ("osrl-unlearn: no wandb API key found, so wandb logs offline (WANDB_MODE=offline; set WANDB_API_KEY or "
        "WANDB_MODE to change this)\n")


@pytest.fixture
def wandb(place):
    write(place / "wandb.py", "")
    write(place / "log.py", "import os\nassert os.environ.get('WANDB_MODE') in (None, 'online')\n"
                            "import wandb\nprint(os.environ.get('WANDB_MODE'))\n")
    return place


def home(place, name=None, text=""):
    if name:
        write(place / "home" / name, text)
    return {"HOME": str(place / "home")}


def test_without_a_key_wandb_is_offline(wandb):
    done = driven("log.py", **home(wandb))
    assert (done.stdout, done.stderr) == ("offline\n", LINE)


def test_a_script_without_wandb_hears_nothing_of_it(wandb):
    write(wandb / "quiet.py", "import os\nprint(os.environ.get('WANDB_MODE'))\n")
    done = driven("quiet.py", **home(wandb))
    assert (done.stdout, done.stderr) == ("None\n", "")


@pytest.mark.parametrize("name, text, configured", [
    (".netrc", "machine api.wandb.ai\n  login user\n  password secret\n", True),
    ("_netrc", "machine api.wandb.ai login user password secret\n", True),
    (".netrc", "machine example.com login user password secret\n", False),
    (".netrc", "what is this", False),
    (".config/wandb/settings", "[default]\nmode = disabled\n", True),
    (".config/wandb/settings", "[default]\nbase_url = https://wandb.example.com\n", False),
    (".config/wandb/settings", "no section", False),
])
def test_files_of_wandb(wandb, name, text, configured):
    done = driven("log.py", **home(wandb, name, text))
    assert (done.stdout, done.stderr) == (("None\n", "") if configured else ("offline\n", LINE))


@pytest.mark.parametrize("extra, output", [
    ({"WANDB_API_KEY": "x"}, "None\n"), ({"WANDB_MODE": "online"}, "online\n"), ({"NETRC": "other"}, "None\n"),
    ({"NETRC": "other", "WANDB_BASE_URL": "https://wandb.example.com"}, "offline\n"),
])
def test_environment_of_wandb(wandb, extra, output):
    write(wandb / "other", "machine api.wandb.ai login user password secret\n")
    assert driven("log.py", **dict(home(wandb), **extra)).stdout == output


def test_the_environment_is_put_back(monkeypatch, tmp_path, capsys):
    for name in [name for name in os.environ if name.startswith("WANDB")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", runner)  # any module will do: it counts as imported
    undo = runner.quiet_wandb()
    assert os.environ["WANDB_MODE"] == "offline"
    undo()
    undo()
    assert "WANDB_MODE" not in os.environ
    assert capsys.readouterr().err == LINE
    # What somebody else has set meanwhile stays.
    undo = runner.quiet_wandb()
    monkeypatch.setenv("WANDB_MODE", "disabled")
    undo()
    assert os.environ["WANDB_MODE"] == "disabled"
