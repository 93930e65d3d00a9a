"""Atomic writes and safe reads."""
import os

import pytest
import torch

from osrl_unlearn.files import atomic_path, load_tensors, save_tensors, sha256_state, write_json
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


def test_the_hash_of_weights_follows_names_and_bytes():
    one = {"a": torch.ones(2), "b": torch.zeros(1)}
    assert sha256_state(one) == sha256_state(dict(reversed(list(one.items()))))
    assert sha256_state(one) != sha256_state({"a": torch.ones(2), "b": torch.full((1,), 1e-45)})
    assert sha256_state(one) != sha256_state({"a": torch.ones(2), "c": torch.zeros(1)})
