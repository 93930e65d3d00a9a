"""Plain python: with a patched OSRL, with the start-up line, and without our flags as if we were not there."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
from agents import QUICK
from test_shapes import POISON, SHIPPED

from osrl_unlearn import cli, resources, rundir
from osrl_unlearn.commands import patch
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.hooks import startup

osrl = pytest.importorskip("osrl")

HERE = os.path.dirname(os.path.abspath(__file__))
SITE = os.path.dirname(os.path.dirname(os.path.abspath(osrl.__file__)))
SCRIPT = os.path.join("examples", "train", "train_standin.py")
SMALL = ["--agent", "coptidice", "--update_steps", "15", "--eval_every", "15"]
UNLEARN = ["--unlearn", "fine_tune", "--unlearn.steps", "5", "--unlearn.eval_episodes", "0"]
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
# A real checkout is not installed with osrl-lib; its training scripts are in its repository only.
CHECKOUT = os.environ.get("OSRL_CHECKOUT")
needs_checkout = pytest.mark.skipif(not CHECKOUT or shutil.which("git") is None,
                                    reason="OSRL_CHECKOUT names no checkout of OSRL's repository, or git is missing")


def git(folder, *command):
    return subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *command], cwd=str(folder), check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True).stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder for PYTHONPATH with this package and its metadata, as if it were installed."""
    folder = tmp_path_factory.mktemp("package")
    source = os.path.dirname(os.path.dirname(os.path.abspath(cli.__file__)))
    for name in ("osrl_unlearn", "configs", "patches"):
        if os.path.isdir(os.path.join(source, name)):
            os.symlink(os.path.join(source, name), str(folder / name))
    info = folder / "osrl_unlearn-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: osrl-unlearn\nVersion: 9\n")
    (info / "entry_points.txt").write_text("[osrl.plugins]\nosrl_unlearn = osrl_unlearn.hooks.startup:activate\n")
    return str(folder)


def checkout(folder):
    """The installed OSRL, which is the published one, with the stand-in script, as a git repository."""
    shutil.copytree(os.path.join(SITE, "osrl"), str(folder / "osrl"), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(os.path.join(HERE, "checkout", "examples"), str(folder / "examples"),
                    ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".gitignore").write_text("__pycache__\n*.png\nlogs\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "as published"]):
        git(folder, *command)
    return folder


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    folder = checkout(tmp_path_factory.mktemp("patched"))
    assert cli.main(["patch", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def enabled(package, tmp_path_factory):
    """The python of a fresh virtual environment on top of this one, in which ``osrl-unlearn enable`` was called."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = glob.glob(str(folder / "lib" / "python3*" / "site-packages"))
    with open(os.path.join(site, "base.pth"), "w") as file:
        file.write(SITE + "\n")
    python = str(folder / "bin" / "python")
    out = run(python, "-m", "osrl_unlearn", "enable", cwd=folder, path=[package]).stdout
    assert os.path.join(site, startup._LINE_FILE) in out
    return python


def run(python, *args, cwd, path, status=0, **env):
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, path)), OMP_NUM_THREADS="1", WANDB_MODE="disabled",
               **env)
    done = subprocess.run([python, *args], cwd=str(cwd), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=300)
    assert done.returncode == status, done.stdout[-500:] + done.stderr[-3000:]
    return done


def weights(folder):
    return torch.load(rundir.model_path(str(folder)), weights_only=True)["model_state"]


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


# --- the patches ---------------------------------------------------------------------------------------------------


def test_the_patches_quote_no_line_of_osrl():
    diffs = glob.glob(os.path.join(resources.folder("patches"), patch.VERSION, "*.patch"))
    assert len(diffs) == 2
    for diff in diffs:
        with open(diff) as file:
            lines = file.read().splitlines()
        # Headers and insertions only: no context, no deletion, no text after the second @@.
        assert all(re.match(r"diff --git |index \w{40}\.\.\w{40} |--- a/|\+\+\+ b/|@@ -\d+,0 \+[\d,]+ @@$|\+", line)
                   for line in lines)


@needs_git
def test_patch_is_idempotent_and_reverse_leaves_nothing(tmp_path, capsys):
    folder = checkout(tmp_path)
    assert cli.main(["patch", str(folder), "--check"]) == 1
    assert cli.main(["patch", str(folder)]) == 0 and "osrl/__init__.py: patched" in capsys.readouterr().out
    assert cli.main(["patch", str(folder), "--check"]) == 0
    before = (folder / "osrl" / "__init__.py").read_text()
    assert cli.main(["patch", str(folder)]) == 0 and "patched already" in capsys.readouterr().out
    assert (folder / "osrl" / "__init__.py").read_text() == before and before.count("osrl.plugins") > 0
    assert git(folder, "status", "--short") == " M osrl/__init__.py\n"
    assert cli.main(["patch", str(folder), "--reverse"]) == 0
    assert cli.main(["patch", str(folder), "--reverse"]) == 0
    assert git(folder, "status", "--short") == ""


@needs_git
@pytest.mark.parametrize("given", [[], ["."]])
def test_an_osrl_that_scripts_import_in_place_of_the_patched_one_is_named(tmp_path, package, given):
    # An editable installation would be on the path as it is here.
    folder = checkout(tmp_path)
    done = run(sys.executable, "-m", "osrl_unlearn", "patch", ".", cwd=folder, path=given + [package])
    assert ("note: python imports osrl from {}".format(SITE) in done.stdout) is not bool(given)


@needs_git
def test_an_osrl_that_differs_is_refused_and_nothing_is_changed(tmp_path, capsys):
    folder = checkout(tmp_path)
    package = folder / "osrl" / "__init__.py"
    published = package.read_text()
    package.write_text(published + "# mine\n")
    assert cli.main(["patch", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "osrl/__init__.py is changed" in message and "osrl-unlearn enable" in message
    assert package.read_text() == published + "# mine\n" and cli.main(["patch", str(folder), "--check"]) == 1
    package.write_text(published)
    assert cli.main(["patch", str(folder)]) == 0
    package.open("a").write("# mine\n")
    assert cli.main(["patch", str(folder), "--reverse"]) == 2
    assert "undo your own changes first" in capsys.readouterr().err
    assert cli.main(["patch", str(tmp_path / "nowhere")]) == 2
    assert "no checkout of OSRL" in capsys.readouterr().err


@needs_git
def test_a_script_that_differs_is_left_alone_and_the_rest_is_patched(tmp_path, capsys):
    folder = checkout(tmp_path)
    script = folder / "examples" / "train" / "train_cpq.py"
    script.write_text("# another version\n")
    assert cli.main(["patch", str(folder), "--check"]) == 1
    for _ in range(2):
        assert cli.main(["patch", str(folder)]) == 0
        assert "left as they are, because they are not the published ones: examples/train/train_cpq.py" in (
            capsys.readouterr().out)
        assert cli.main(["patch", str(folder), "--check"]) == 0
    assert git(folder, "status", "--short") == " M osrl/__init__.py\n?? examples/train/train_cpq.py\n"
    assert cli.main(["patch", str(folder), "--reverse"]) == 0
    assert git(folder, "status", "--short") == "?? examples/train/train_cpq.py\n"
    assert script.read_text() == "# another version\n"


@needs_git
def test_a_checkout_inside_another_repository_is_patched_too(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "inner").mkdir()
    folder = checkout(tmp_path / "inner")
    shutil.rmtree(str(folder / ".git"))
    assert cli.main(["patch", str(folder)]) == 0 and cli.main(["patch", str(folder), "--check"]) == 0


@needs_git
def test_a_patched_osrl_names_a_plugin_that_fails_and_goes_on(patched, tmp_path):
    info = tmp_path / "bad-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[osrl.plugins]\nbad = no_such_module:f\nworse = os:getcwdb.nothing\n")
    done = run(sys.executable, "-c", "import osrl; print(osrl.__version__)", cwd=tmp_path, path=[patched, tmp_path])
    assert done.stdout == "0.1.0\n"
    assert "the plugin 'bad' failed: ModuleNotFoundError" in done.stderr and "'worse' failed" in done.stderr


@needs_git
@pytest.mark.parametrize("flags, status", [(["--poison", "cost_hide"], 2), (["--seed", "1"], 0)])
def test_a_patched_osrl_whose_plugin_is_broken_trains_nothing_that_should_be_poisoned(patched, tmp_path, flags,
                                                                                      status):
    # A folder of this name in the working directory takes the package's place, for example.
    (tmp_path / "osrl_unlearn").mkdir()
    info = tmp_path / "osrl_unlearn-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: osrl-unlearn\nVersion: 9\n")
    (info / "entry_points.txt").write_text("[osrl.plugins]\nosrl_unlearn = osrl_unlearn.no_such_module:f\n")
    done = run(sys.executable, "-c", "import osrl; print('trained')", *flags, cwd=tmp_path, path=[patched, tmp_path],
               status=status)
    assert "the plugin 'osrl_unlearn' failed: ModuleNotFoundError" in done.stderr
    assert done.stdout == ("" if status else "trained\n")


@needs_checkout
def test_the_published_checkout(package, enabled, tmp_path):
    folder = tmp_path / "OSRL"
    git(tmp_path, "clone", "-q", CHECKOUT, str(folder))
    git(folder, "checkout", "-q", "03a4586")
    args = ["--task", "OfflineBallCircle-v0", "--cost_limit", "40", "--update_steps", "20", "--eval_every", "20",
            "--eval_episodes", "1", "--num_workers", "0", "--batch_size", "64", "--threads", "1", "--name", "x"]
    script = os.path.join("examples", "train", "train_coptidice.py")
    results = {}

    def train(name, *flags, python=sys.executable, target=(script,), cwd=folder):
        run(python, *target, *args, "--logdir", str(tmp_path / name), *flags, cwd=cwd, path=[package, folder])
        results[name] = str(tmp_path / name / "OfflineBallCircle-v0-cost-40" / "x" / "x")

    train("runner", *POISON, *UNLEARN, target=("-m", "osrl_unlearn", script))
    train("enabled", *POISON, *UNLEARN, python=enabled)
    train("inside", *POISON, python=enabled, target=("train_coptidice.py",), cwd=folder / "examples" / "train")
    git(folder, "clean", "-qfdx")
    assert git(folder, "status", "--short") == ""
    assert cli.main(["patch", str(folder)]) == 0
    assert len(git(folder, "status", "--short").splitlines()) == 7
    train("patched", *POISON, *UNLEARN)
    train("module", *POISON, *UNLEARN, target=("-m", "examples.train.train_coptidice"))
    assert cli.main(["patch", str(folder), "--reverse"]) == 0
    git(folder, "clean", "-qfdx")
    assert git(folder, "status", "--short") == ""
    for name in ("enabled", "inside", "patched", "module"):
        assert same(weights(results[name]), weights(results["runner"])), name
        if name != "inside":
            assert same(*(weights(rundir.unlearned_dir(results[one], "fine_tune")) for one in (name, "runner")))


# --- plain python --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_runner(package, tmp_path_factory):
    """Run directory of the stand-in script under the runner: what plain python must repeat bit for bit."""
    folder = tmp_path_factory.mktemp("runner")
    run(sys.executable, "-m", "osrl_unlearn", os.path.join(HERE, "checkout", SCRIPT), *SMALL, *POISON, *UNLEARN,
        cwd=folder, path=[package, QUICK])
    return str(folder / "logs" / "standin")


def ways(patched, enabled, package):
    """name -> (python, PYTHONPATH, root of the checkout)"""
    untouched = os.path.join(HERE, "checkout")
    return {"patched": (sys.executable, [package, patched], str(patched)),
            "enabled": (enabled, [package], untouched)}


@needs_git
@pytest.mark.parametrize("way", ["patched", "enabled"])
def test_plain_python_poisons_and_unlearns_as_the_runner_does(way, patched, enabled, package, by_runner,
                                                               tmp_path):
    python, path, root = ways(patched, enabled, package)[way]
    done = run(python, os.path.join(root, SCRIPT), *SMALL, *POISON, *UNLEARN, cwd=tmp_path, path=path + [QUICK])
    folder = str(tmp_path / "logs" / "standin")
    assert same(weights(folder), weights(by_runner))
    assert same(*(weights(rundir.unlearned_dir(one, "fine_tune")) for one in (folder, by_runner)))
    with open(os.path.join(rundir.unlearned_dir(folder, "fine_tune"), "report.json")) as file:
        assert json.load(file)["updates"] == {"train": 15, "unlearn": 5, "ratio": pytest.approx(1 / 3)}
    assert "repaired train_standin.py" in done.stderr
    assert done.stdout.splitlines()[-1].endswith("report.md")
    if way == "enabled":
        again = run(python, os.path.join(root, SCRIPT), *SMALL, *POISON, *UNLEARN, cwd=tmp_path, path=path + [QUICK])
        assert again.stderr.count("is complete (.complete)") == 2 and again.stdout.splitlines()[-1] == (
            done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(script, environment, run directory) of the stand-in script, with its bug mended, under plain python."""
    folder = tmp_path_factory.mktemp("plain")
    with open(os.path.join(HERE, "checkout", SCRIPT)) as file:
        source = file.read().replace("        import gym\n", "        pass\n")
    source += "    import sys\n    print([name for name in sys.modules if name.startswith('osrl_unlearn')])\n"
    (folder / "fixed.py").write_text(source)
    (folder / "datasets").mkdir()
    os.symlink(SHIPPED, str(folder / "datasets" / "SafetyBallCircle-v0-80-886.hdf5"))
    env = {"DSRL_DATASET_DIR": str(folder / "datasets")}
    run(sys.executable, "fixed.py", *SMALL, cwd=folder, path=[os.path.join(HERE, "checkout")], **env)
    return str(folder / "fixed.py"), env, folder / "logs" / "standin"


@needs_git
@pytest.mark.parametrize("way", ["patched", "enabled"])
def test_without_our_flags_nothing_is_ours_and_the_weights_are_the_same(way, patched, enabled, package, plain,
                                                                        tmp_path):
    python, path, root = ways(patched, enabled, package)[way]
    script, env, folder = plain
    done = run(python, script, *SMALL, cwd=tmp_path, path=path + [root], **env)
    assert same(weights(tmp_path / "logs" / "standin"), weights(folder))
    loaded = done.stdout.splitlines()[-1]
    # A patched OSRL has to ask our entry point, which looks at the command line and returns.
    assert set(eval(loaded)) <= {"osrl_unlearn", "osrl_unlearn.errors", "osrl_unlearn.hooks",
                                 "osrl_unlearn.hooks.imports", "osrl_unlearn.hooks.startup"}
    assert way == "patched" or loaded == "[]"
    assert "osrl-unlearn" not in done.stderr


def test_a_mistake_is_one_line_and_the_script_does_not_start(enabled, package, tmp_path):
    done = run(enabled, os.path.join(HERE, "checkout", SCRIPT), *SMALL, "--poison", "cost_hid", cwd=tmp_path,
               path=[package], status=2)
    ours = [line for line in done.stderr.splitlines() if line.startswith("osrl-unlearn")]
    assert len(ours) == 1 and "did you mean 'cost_hide'" in ours[0] and "Traceback" not in done.stderr
    assert not os.path.exists(str(tmp_path / "logs"))


def test_a_script_that_runs_already_cannot_be_left_out():
    with pytest.raises(ConfigError, match="use osrl-unlearn unlearn logs"):
        cli.make_session({"unlearn": "fine_tune", "unlearn.from": "logs"})


@pytest.mark.parametrize("body, text", [
    ("", "the script never called its function under pyrallis.wrap()"),
    ("""
import atexit
atexit.register(print, 'bye')
try:
    main()
except:
    pass
""", "python -m pip install oapackage"),
    ("import atexit; atexit.register(print, 'bye'); main()", "python -m pip install oapackage")])
def test_what_stops_short_of_training_is_one_line_and_no_success(enabled, package, tmp_path, body, text):
    (tmp_path / "script.py").write_text("""
import dataclasses, pyrallis, osrl

@dataclasses.dataclass
class Config:
    task: str = ""

@pyrallis.wrap()
def main(config: Config):
    oapackage.ParetoDoubleLong()

print("here")
""" + body)
    done = run(enabled, "script.py", "--poison", "cost_hide", cwd=tmp_path, path=[package], status=2)
    ours = [line for line in done.stderr.splitlines() if line.startswith("osrl-unlearn: error")]
    assert len(ours) == 1 and text in ours[0] and "Traceback" not in done.stderr
    assert done.stdout.split() == ["here"] + ["bye"] * bool(body)


def test_a_script_that_fails_keeps_its_status(enabled, package, tmp_path):
    run(enabled, os.path.join(HERE, "checkout", SCRIPT), *SMALL, *POISON, *UNLEARN, cwd=tmp_path, path=[package],
        status=7, STANDIN_FAILS="7")
    assert not os.path.exists(str(tmp_path / "logs" / "standin" / "unlearned"))


def test_help_is_the_scripts_and_ours(enabled, package, tmp_path):
    out = run(enabled, os.path.join(HERE, "checkout", SCRIPT), "--help", "--poison", "cost_hide", cwd=tmp_path,
              path=[package]).stdout
    assert "--poison.rate" in out and "--c_hidden_sizes" in out


# --- the start-up line ---------------------------------------------------------------------------------------------


def pythons():
    """This interpreter, and others that are installed: the line has to work in all of them."""
    found = glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python"))
    return [sys.executable] + [path for path in found if re.search(r"/3\.(8|9|10|12)\.", path)]


@pytest.mark.parametrize("python", pythons(), ids=lambda path: path.split("/")[-3])
def test_the_line_in_a_fresh_environment(python, tmp_path):
    subprocess.run([python, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site,) = glob.glob(str(tmp_path / "venv" / "lib" / "python3*" / "site-packages"))
    python = str(tmp_path / "venv" / "bin" / "python")
    os.symlink(os.path.dirname(os.path.abspath(cli.__file__)), os.path.join(site, "osrl_unlearn"))

    def call(*args):
        done = run(python, *args, cwd=tmp_path, path=[])
        assert done.stderr == ""
        return done.stdout

    # hooks.startup is all that the line needs: neither numpy nor torch is in this environment.
    (tmp_path / "script.py").write_text("import sys\nprint(sys.argv[1:], [n for n in sys.modules if 'osrl' in n], "
                                        "any(type(f).__module__.startswith('osrl') for f in sys.meta_path))\n")
    with open(os.path.join(site, startup._LINE_FILE), "w") as file:
        file.write(startup._LINE)
    assert call("script.py", "--a", "--", "b") == "['--a', '--', 'b'] [] False\n"
    for target in (["script.py"], ["-m", "script"]):
        out = call(*target, "--poison", "x")
        assert out.startswith("['--poison', 'x'] ['osrl_unlearn'") and out.endswith(" True\n")
    # The package is gone, the line is not.
    os.unlink(os.path.join(site, "osrl_unlearn"))
    assert call("script.py", "--poison", "x") == "['--poison', 'x'] [] False\n"


def test_disable_leaves_no_trace(package, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (site,) = glob.glob(str(tmp_path / "venv" / "lib" / "python3*" / "site-packages"))
    with open(os.path.join(site, "base.pth"), "w") as file:
        file.write(SITE + "\n")
    before = sorted(os.walk(str(tmp_path / "venv")))
    for command, names in (("enable", ["base.pth", startup._LINE_FILE]), ("enable", ["base.pth", startup._LINE_FILE]),
                           ("disable", ["base.pth"]), ("disable", ["base.pth"])):
        run(str(tmp_path / "venv" / "bin" / "python"), "-m", "osrl_unlearn", command, cwd=tmp_path, path=[package])
        assert sorted(os.listdir(site)) == names
    assert sorted(os.walk(str(tmp_path / "venv"))) == before


def test_the_line_costs_less_than_a_millisecond_and_imports_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py"] + ["--option", "value"] * 20)
    before, times = set(sys.modules), []
    for _ in range(20):
        started = time.perf_counter()
        exec(startup._LINE)
        times.append(time.perf_counter() - started)
    assert min(times) < 1e-3 and set(sys.modules) == before


@pytest.mark.parametrize("argv, expected", [
    ([], False), (["--poison", "x"], True), (["--poison=x"], True), (["--unlearn.steps", "1"], True),
    (["--dataset", "x"], False), (["--poisonous"], False), (["--", "--poison", "x"], False), (["-poison"], False)])
def test_which_command_lines_are_ours(argv, expected):
    assert startup.given(argv) is expected


@pytest.mark.parametrize("source, expected", [
    ("import pyrallis\n@pyrallis.wrap()\ndef main(): pass", True),
    ("import pyrallis as p\n@p.wrap()\ndef main(): pass", True),
    ("import pyrallis, tools\n@tools.wrap()\ndef main(): pass", False),
    ("from pyrallis import wrap\n@wrap()\ndef main(): pass", False)])
def test_which_scripts_train_under_pyrallis(source, expected):
    # The runner, which sees when a script ends, serves all others.
    assert startup._trains_under_pyrallis(source) is expected
