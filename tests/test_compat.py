import os
import subprocess
import sys

import pytest

import osrl_unlearn
from osrl_unlearn.hooks import compat

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(osrl_unlearn.__file__)))

TOY = """
import pickle, sys
from osrl_unlearn.hooks import compat

finders = list(sys.meta_path)
undo = compat.install()
assert compat.install() is undo and "numpy" not in sys.modules and "safety_gymnasium" not in sys.modules
import numpy
from safety_gymnasium.assets.color import COLOR
from safety_gymnasium.use import Button
assert isinstance(Button().color, numpy.ndarray) and (Button().color * 2).tolist() == [2, 0]
assert type(COLOR["plain"]) is int and hash(COLOR["nested"]["a"]) is not None
assert type(pickle.loads(pickle.dumps(COLOR["button"]))) is numpy.ndarray
undo()
undo()
assert type(COLOR["button"]) is numpy.ndarray and type(COLOR["nested"]["a"]) is numpy.ndarray
assert sys.meta_path == finders
print("fine")
"""

REAL = """
import sys
from osrl_unlearn.hooks import compat

compat.install()
import dsrl, gymnasium
for task in sys.argv[1:]:
    env = gymnasium.make(task)
    env.reset()
    assert len(env.step(env.action_space.sample())) == 5
    env.close()
print("fine")
"""


def run(source, path, *argv):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(path), ROOT]), OMP_NUM_THREADS="1",
                       DSRL_DATASET_DIR=str(path), MPLBACKEND="agg")
    done = subprocess.run([sys.executable, "-c", source] + list(argv), env=environment, cwd=str(path),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "fine", done.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="only Python 3.11 refuses unhashable defaults")
def test_arrays_become_dataclass_defaults_and_go_back(tmp_path):
    pytest.importorskip("numpy")
    assets = tmp_path / "safety_gymnasium" / "assets"
    assets.mkdir(parents=True)
    (assets.parent / "__init__.py").write_text("")
    (assets / "__init__.py").write_text("")
    (assets / "color.py").write_text("import numpy as np\nCOLOR = {'button': np.array([1, 0]), 'plain': 3, "
                                     "'nested': {'a': np.array([1.0])}}\n")
    (assets.parent / "use.py").write_text(
        "from dataclasses import dataclass\nfrom safety_gymnasium.assets.color import COLOR\n"
        "@dataclass\nclass Button:\n    color: object = COLOR['button']\n")
    run(TOY, tmp_path)


def test_nothing_to_do_on_older_pythons(monkeypatch):
    monkeypatch.setattr(compat.sys, "version_info", (3, 10))
    finders = list(sys.meta_path)
    undo = compat.install()
    assert sys.meta_path == finders
    undo()


def test_safety_gymnasium_tasks_can_be_made(tmp_path):
    pytest.importorskip("safety_gymnasium")
    pytest.importorskip("dsrl")
    run(REAL, tmp_path, "OfflinePointGoal1Gymnasium-v0", "OfflineCarPush1Gymnasium-v0",
        "OfflinePointCircle1Gymnasium-v0", "OfflineHopperVelocityGymnasium-v1")
