"""The seams: wrapped while a script runs, and exactly as before when it is done, however it ends."""
import subprocess
import sys

import pytest
from agents import subprocess_environment

DRIVER = """
import contextlib, importlib, os, sys
from osrl_unlearn import cli
from osrl_unlearn.hooks.seams import SEAMS

def entries():
    out = {}
    for seam in SEAMS:
        module, _, path = seam.target.partition(":")
        owner, _, name = path.rpartition(".")
        with contextlib.redirect_stdout(sys.stderr):
            cls = getattr(importlib.import_module(module), owner)
        out[seam.target] = vars(cls)[name]
    return out

before = entries(), list(sys.meta_path), dict(os.environ)
status = cli.main(sys.argv[1:])
after = entries()
assert all(before[0][target] is after[target] for target in after), "a patch was left behind"
assert sys.meta_path == before[1] and dict(os.environ) == before[2]
print("status", status)
"""


def drive(tmp_path, source, *flags):
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "script.py").write_text(source)
    return subprocess.run([sys.executable, "driver.py", "--poison", "cost_hide", *flags, "script.py"],
                          cwd=str(tmp_path), env=subprocess_environment(), text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


PROBE = """
from dsrl.offline_env import OfflineEnv
assert "pre_process_data" in repr(OfflineEnv.pre_process_data) and hasattr(OfflineEnv.pre_process_data, "__wrapped__")
"""


@pytest.mark.parametrize("end, status", [
    ("", 2),  # the poison never reached a trainer: said loudly
    ("raise SystemExit(3)", 3), ("1 / 0", 1), ("raise KeyboardInterrupt", 130)])
def test_every_patch_is_undone(tmp_path, end, status):
    done = drive(tmp_path, PROBE + end)
    assert done.stdout.splitlines()[-1:] == ["status {}".format(status)], done.stderr


def test_a_seam_that_has_moved_stops_the_script_and_leaves_no_patch(tmp_path):
    source = """
import sys, types
import fsrl.utils.logger.base_logger
from osrl.common import dataset
"""
    moved = tmp_path / "sitecustomize.py"
    moved.write_text("")
    driver = DRIVER.replace("before = ", """
from osrl.common.dataset import TransitionDataset
def renamed(self, rows, reward_scale=1.0, cost_scale=1.0, state_init=False):
    pass
TransitionDataset.__init__ = renamed
before = """)
    (tmp_path / "driver.py").write_text(driver)
    (tmp_path / "script.py").write_text(source + "open('it_ran', 'w').close()\n")
    done = subprocess.run([sys.executable, "driver.py", "--poison", "cost_hide", "script.py"], cwd=str(tmp_path),
                          env=subprocess_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout.splitlines()[-1:] == ["status 2"], done.stderr
    assert "TransitionDataset.__init__" in done.stderr and not (tmp_path / "it_ran").exists()


def test_data_that_a_script_loads_but_does_not_train_on_are_not_called_poisoned(tmp_path):
    done = drive(tmp_path, "print('nothing')\n")
    assert "never gave the poisoned data" in done.stderr and done.stdout.splitlines()[-1] == "status 2"
