"""The seams: wrapped while a script runs, and exactly as before when it is done, however it ends."""
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from agents import subprocess_environment
from torch.utils.data import DataLoader

from osrl_unlearn.environments import stdout_to_stderr
from osrl_unlearn.hooks.reach import ENOUGH, Reach, columns_of
from osrl_unlearn.testing import toy_data

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


def test_a_command_is_another_one_when_a_module_beside_its_script_has_changed(tmp_path):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "mylib").mkdir()
    (tmp_path / "scripts" / "train.py").write_text("""
import importlib.util, json, sys, tempfile
sys.path.insert(0, {!r})
import mylib.conf, numpy
with tempfile.TemporaryDirectory() as folder:  # as torch.distributed.nn does
    with open(folder + "/written.py", "w") as file:
        file.write("x = 1")
    sys.path.insert(0, folder)
    import written
    from osrl_unlearn.hooks.repeat import fingerprint
    print(json.dumps(fingerprint(".")))
""".format(str(tmp_path)))

    def fingerprint(text):
        (tmp_path / "mylib" / "conf.py").write_text(text)
        done = subprocess.run([sys.executable, "scripts/train.py"], cwd=str(tmp_path), env=subprocess_environment(),
                              text=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout)

    first, again, other = map(fingerprint, ("lr = 1", "lr = 1", "lr = 10"))
    assert first == again and first["modules"].pop("mylib.conf") != other["modules"].pop("mylib.conf")
    assert first == other and {"__main__", "written"} <= set(first["modules"])
    assert not {"os", "json.decoder", "numpy", "torch", "osrl_unlearn.hooks.repeat"} & set(first["modules"])


FORGET = np.arange(127, 144)  # one trajectory of the toy data
SCALES = (0.1, 0.5)


def look(data, given, batches=30, drawn=None, **options):
    """A Reach of ``data`` that has seen batches of OSRL's SequenceDataset of ``given``."""
    from osrl.algorithms import CDTTrainer
    from osrl.common import SequenceDataset
    np.random.seed(0)
    with stdout_to_stderr():
        dataset = SequenceDataset(given, 4, *SCALES, **options)
    if drawn is not None:
        dataset.sample_prob = np.isin(np.arange(len(dataset.dataset)), drawn) / len(drawn)
    reach = Reach(data, FORGET)
    for _, batch in zip(range(batches), DataLoader(dataset, batch_size=16)):
        columns = columns_of(CDTTrainer.train_one_step, object(), batch, {})
        assert reach.known(columns) == 1  # padding is not counted
        reach.look(columns, *SCALES, cost_reverse=options.get("cost_reverse", False))
    return reach


@pytest.fixture
def toy():
    data = toy_data()
    ends = np.flatnonzero(data["terminals"] | data["timeouts"])
    assert FORGET[-1] in ends and FORGET[0] - 1 in ends and data["costs"][FORGET].any()
    return data


@pytest.mark.parametrize("options", [{}, {"cost_reverse": True}, {"random_aug": 0.5}])
def test_forget_rows_are_found_among_sequences(toy, options):
    reach = look(toy, toy, **options)
    assert reach.reached > 0 and reach.otherwise == 0


def test_forget_rows_that_are_not_drawn_have_not_reached_anything(toy):
    reach = look(toy, toy, drawn=[0, 1])
    assert reach.looked and reach.reached == reach.otherwise == 0


def test_what_osrl_adds_to_sequences_is_neither_the_forget_set_nor_a_change_by_the_script(toy):
    from osrl.common import SequenceDataset
    with stdout_to_stderr():
        known = len(SequenceDataset(toy).dataset)
    reach = look(toy, toy, drawn=np.arange(known, 2 * known), random_aug=1.0)
    assert reach.reached == reach.otherwise == 0


@pytest.mark.parametrize("column, seen", [("actions", True), ("costs", True), ("rewards", False)])
def test_sequences_with_other_labels_are_not_the_forget_set(toy, column, seen):
    changed = dict(toy)
    changed[column] = changed[column].copy()
    changed[column][FORGET] += 1
    reach = look(toy, changed)
    # Other rewards show in what is to go only, as do those of the sequences that OSRL adds.
    assert reach.reached == 0 and (reach.otherwise > ENOUGH) == seen


def test_columns_are_named_after_osrls_trainer_whatever_a_subclass_calls_them():
    from osrl.algorithms import BCTrainer, COptiDICETrainer

    class Any(BCTrainer):
        def train_one_step(self, *columns):
            pass

    one, two = torch.zeros(3), torch.ones(3)
    for cls, names in ((Any, ["observations", "actions"]), (COptiDICETrainer, ["observations", "next_observations"])):
        trainer = cls.__new__(cls)
        args = (one, two) if cls is Any else ([one, two],)
        assert list(columns_of(cls.train_one_step, trainer, args, {})) == names
