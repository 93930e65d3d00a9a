"""What the wheel holds, that it works away from the repository, and that installing it changes nothing else."""
import email
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCES = ("osrl_unlearn", "configs", "patches")


def call(*command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy: setuptools leaves build/ behind, and takes what it finds there.
    copy = folder / "source"
    for name in SOURCES:
        shutil.copytree(os.path.join(REPOSITORY, name), str(copy / name), ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if os.path.exists(os.path.join(REPOSITORY, name)):
            shutil.copy(os.path.join(REPOSITORY, name), str(copy))
    call(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder),
         str(copy))
    found = [name for name in os.listdir(str(folder)) if name.endswith(".whl")]
    assert len(found) == 1 and found[0].endswith("-py3-none-any.whl")
    return str(folder / found[0])


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), wheel)
    return folder


def requirements(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name, = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        message = email.message_from_bytes(archive.read(name))
    return [line for line in message.get_all("Requires-Dist") if "extra ==" not in line]


def test_the_wheel_is_small_and_complete(wheel):
    assert os.path.getsize(wheel) <= 8 << 20
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = set()
    for source in SOURCES:
        top = os.path.join(REPOSITORY, source)
        for folder, folders, files in os.walk(top):
            # Raw results of benches are for readers of the repository; nobody needs them installed.
            folders[:] = [name for name in folders if name not in ("__pycache__", "results")]
            inside = os.path.relpath(folder, REPOSITORY).replace(os.sep, "/")
            prefix = inside if source == "osrl_unlearn" else "osrl_unlearn/" + inside
            expected |= {prefix + "/" + name for name in files if not name.startswith(".")}
    # Every file: a new sub-package or kind of file that setup.cfg does not list shows up here.
    assert expected <= names, sorted(expected - names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"osrl_unlearn"}
    assert "osrl_unlearn/patches/README.md" in names and not any("/results/" in name for name in names)


def test_the_installed_wheel_works_away_from_the_repository(installed, tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(installed))
    script = ("import os, osrl_unlearn, osrl_unlearn.doctor as d\n"
              "from osrl_unlearn import resources as r\n"
              "assert r.folder('patches') == os.path.join(os.path.dirname(osrl_unlearn.__file__), 'patches')\n"
              "print(osrl_unlearn.__file__)")
    out = call(sys.executable, "-c", script, cwd=str(tmp_path), env=environment)
    assert out.strip() == str(installed / "osrl_unlearn" / "__init__.py")


def test_the_command_line_starts(installed, tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(installed))
    assert "doctor" in call(sys.executable, "-m", "osrl_unlearn", "--help", cwd=str(tmp_path), env=environment)
    assert "--json" in call(sys.executable, "-m", "osrl_unlearn", "doctor", "--help", cwd=str(tmp_path),
                            env=environment)
    with open(str(next(installed.glob("*.dist-info")) / "entry_points.txt")) as file:
        assert "osrl-unlearn = osrl_unlearn.cli:main" in file.read()


def test_it_requires_only_what_osrl_brings_and_matplotlib(wheel):
    pytest.importorskip("osrl")
    packaging = pytest.importorskip("packaging.requirements")
    brought, queue = set(), ["osrl-lib", "dsrl", "fast-safe-rl"]
    while queue:
        name = normal(queue.pop())
        if name in brought:
            continue
        brought.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # named by OSRL, but not there: swig on Python 3.11
        for requirement in map(packaging.Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    required = [packaging.Requirement(line) for line in requirements(wheel)]
    assert required and {normal(requirement.name) for requirement in required} - brought <= {"matplotlib"}
    # A version could make pip replace what is installed.
    assert not any(requirement.specifier for requirement in required)


def test_installing_it_here_changes_nothing_else(wheel, tmp_path):
    pytest.importorskip("osrl")
    report = tmp_path / "report.json"
    call(sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--report", str(report), wheel)
    changed = {normal(item["metadata"]["name"]) for item in json.loads(report.read_text())["install"]}
    assert changed <= {"osrl-unlearn"}


@pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="only tox installs the package first")
def test_tox_tests_the_installed_package():
    import osrl_unlearn
    assert "site-packages" in osrl_unlearn.__file__
