"""What ``osrl-unlearn doctor`` says about this environment, and about broken ones."""
import argparse
import importlib.machinery
import importlib.util
import json
import sys

import pytest

from osrl_unlearn import doctor
from osrl_unlearn.hooks.seams import SEAMS, Seam

needs_osrl = pytest.mark.skipif(importlib.util.find_spec("osrl") is None, reason="OSRL is not installed")


def run(*arguments):
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    return doctor.main(parser.parse_args(arguments))


def plan(monkeypatch, *functions):
    monkeypatch.setattr(doctor, "_plan", lambda: [(function.__name__, function, ()) for function in functions])


@needs_osrl
def test_nothing_needed_is_broken_here(capfd):
    status = run()
    out, err = capfd.readouterr()
    assert status == 0, out
    assert out.endswith("Everything needed is there.\n")
    assert not err
    # One line a check, and the lines that mend something: no notice of any package.
    assert {line.split()[0] for line in out.splitlines()[:-1]} <= {"ok", "warning", "fix:"}
    for seam in SEAMS:
        assert "ok      seam " + seam.target in out


@needs_osrl
def test_json_is_a_list_of_checks_and_nothing_else(capfd):
    assert run("--json") == 0
    found = json.loads(capfd.readouterr().out)
    assert all(set(check) == {"name", "status", "detail", "fix"} for check in found)
    assert {"torch", "OSRL", "DSRL", "FSRL", "Bullet tasks"} <= {check["name"] for check in found}


@needs_osrl
@pytest.mark.parametrize("seam, expected", [
    (Seam("osrl.common.dataset:TransitionDataset.moved", ("self",)), "is not there"),
    (Seam("osrl.common.dataset:TransitionDataset.__init__", ("self", "data")), "expected (self, data, ...)"),
    (Seam("osrl.common.moved:TransitionDataset", ()), "no module named osrl.common.moved"),
])
def test_a_moved_seam_is_broken_and_says_what_mends_it(monkeypatch, capfd, seam, expected):
    monkeypatch.setattr(doctor, "_plan", lambda: [("seam", doctor._seam, (seam,))])
    assert run() == 1
    out = capfd.readouterr().out
    assert out.startswith("broken  seam: ") and expected in out
    assert "fix: python -m pip install " in out and "osrl" in out


def test_a_missing_package_is_named_with_its_requirement(monkeypatch, capfd):
    # None in sys.modules makes the import fail as if the package were not there.
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    plan(monkeypatch, doctor._gymnasium)
    assert run() == 1
    out = capfd.readouterr().out
    assert "missing _gymnasium: no module named gymnasium\n" in out
    assert "fix: python -m pip install gymnasium==0.28.1\n" in out


def test_any_exception_is_one_line(monkeypatch, capfd):
    def noisy():
        print("a banner")
        raise RuntimeError("first line\nsecond line")

    def leaves():
        raise SystemExit("no display")

    plan(monkeypatch, noisy, leaves)
    assert run() == 1
    out = capfd.readouterr().out
    assert out.splitlines()[:2] == ["broken  noisy: RuntimeError: first line", "broken  leaves: SystemExit: no display"]


def test_a_warning_is_no_failure(monkeypatch, capfd):
    monkeypatch.setattr(doctor, "_plan", lambda: [("x", lambda: (doctor.WARNING, "old", "renew it"), ())])
    assert run() == 0
    assert "warning x: old\n        fix: renew it\n" in capfd.readouterr().out


def test_an_interrupted_download_is_found(monkeypatch, tmp_path):
    h5py = pytest.importorskip("h5py")
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    assert doctor._datasets()[0] == doctor.OK
    with h5py.File(str(tmp_path / "good.hdf5"), "w") as file:
        file["rewards"] = [1.0]
    assert doctor._datasets()[:2] == (doctor.OK, "1 in {}: good.hdf5".format(tmp_path))
    (tmp_path / "cut.hdf5").write_bytes((tmp_path / "good.hdf5").read_bytes()[:100])
    status, detail, fix = doctor._datasets()
    assert status == doctor.WARNING and "cut.hdf5" in detail and "good" not in detail
    assert fix == 'rm "{}"'.format(tmp_path / "cut.hdf5")


@pytest.mark.parametrize("variable", ["WANDB_MODE", "WANDB_API_KEY"])
def test_wandb_asks_for_a_login_only_without_one(monkeypatch, tmp_path, variable):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    assert doctor._wandb()[0] == doctor.WARNING
    monkeypatch.setenv(variable, "offline")
    assert doctor._wandb()[0] == doctor.OK


@needs_osrl
def test_the_doctor_shows_whether_plain_python_takes_our_flags(monkeypatch, tmp_path):
    from osrl_unlearn.hooks import startup
    monkeypatch.setattr(startup, "_folders", lambda: [str(tmp_path)])
    assert doctor._plain_python()[1].startswith("does not take our flags")
    path = startup.enable()
    assert doctor._plain_python() == (doctor.OK, "enabled by " + path, "")
    assert startup.disable() == [path]
    patched = tmp_path / "osrl" / "__init__.py"
    patched.parent.mkdir()
    patched.write_text("# loads osrl.plugins")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(
        name, None, origin=str(patched)))
    monkeypatch.setattr(doctor, "_entry_point", lambda: True)
    assert doctor._plain_python() == (doctor.OK, "OSRL is patched", "")
    monkeypatch.setattr(doctor, "_entry_point", lambda: False)
    assert doctor._plain_python()[0] == doctor.WARNING
