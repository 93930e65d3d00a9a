"""Atomic writes and safe reads."""
import os
import subprocess
import sys

import pytest
import torch

from osrl_unlearn import resources
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.files import atomic_path, check_writable, load_tensors, save_tensors, sha256_state, write_json
from osrl_unlearn.testing.contracts import assert_same


def test_tensors_and_primitives_survive_exactly(tmp_path):
    value = {"a": [0.1, 3, True, None, "x", (1e-300, -2.5)], "b": {"c": torch.arange(3), "d": torch.tensor(0.5)},
             "e": torch.tensor(0.1, dtype=torch.float64), "lr": 1e-3, "big": 2 ** 40}
    path = str(tmp_path / "state.pt")
    save_tensors(path, value)
    loaded = load_tensors(path)
    assert_same(loaded, value)
    assert isinstance(loaded["lr"], float) and torch.is_tensor(loaded["e"]) and isinstance(loaded["a"][5], tuple)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        write_json(str(path), {"a": float("nan")})
    with pytest.raises(ZeroDivisionError):
        with atomic_path(str(path)) as temporary:
            with open(temporary, "w") as file:
                file.write("half")
            1 / 0
    assert path.read_text() == "old" and os.listdir(str(tmp_path)) == ["file.json"]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    inside = str(tmp_path / "file" / "out.json")
    for write in (lambda: check_writable(inside), lambda: write_json(inside, {})):
        with pytest.raises(ConfigError, match="out.json cannot be written .*: choose another place"):
            write()
    check_writable(str(tmp_path / "new"))
    assert os.listdir(str(tmp_path / "new")) == []


@pytest.mark.parametrize("command", [
    ["detect", "--task", "OfflineBallCircle-v0", "--out", "{}/found.json"],
    ["collect", "--task", "OfflineBallCircle-v0", "--out", "{}/data.hdf5"],
    ["demo", "--out", "{}/demo"],
    ["bench", "attacks", "--data", resources.folder("datasets"), "--out", "{}/bench", "--only", "coptidice/BallCircle"],
])
def test_commands_that_take_long_find_out_first(command, tmp_path):
    (tmp_path / "file").write_text("")
    command = [part.format(tmp_path / "file") for part in command]
    ended = subprocess.run([sys.executable, "-m", "osrl_unlearn"] + command, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, universal_newlines=True, timeout=120)
    assert ended.returncode == 2 and "cannot be written" in ended.stderr and "Traceback" not in ended.stderr


def test_the_hash_of_weights_follows_names_and_bytes():
    one = {"a": torch.ones(2), "b": torch.zeros(1)}
    assert sha256_state(one) == sha256_state(dict(reversed(list(one.items()))))
    assert sha256_state(one) != sha256_state({"a": torch.ones(2), "b": torch.full((1,), 1e-45)})
    assert sha256_state(one) != sha256_state({"a": torch.ones(2), "c": torch.zeros(1)})
