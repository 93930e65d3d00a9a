"""Atomic writes, locks, hashes and safe reads. Files from others are never unpickled."""
import fcntl
import hashlib
import json
import os
import pickle
import tempfile
from contextlib import contextmanager

import numpy as np

from osrl_unlearn.errors import ConfigError, RunError


@contextmanager
def _written(path):
    try:
        yield
    except OSError as error:
        raise ConfigError("{} cannot be written ({}): choose another place".format(path, error.strerror))


def check_writable(folder):
    """Make ``folder`` if it is not there, before long work. Raises ConfigError if nothing can be written to it."""
    with _written(folder):
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def check_new(path):
    """Raise ConfigError if there is anything at ``path``, which --out names: it would be lost."""
    if os.path.exists(path):
        raise ConfigError("{} exists already: delete it, or choose another --out".format(path))


@contextmanager
def atomic_path(path):
    """Yield a temporary path in the folder of ``path``; move it into place only if the block succeeds.

    Raises ConfigError if nothing can be written there.
    """
    path = os.path.abspath(os.fspath(path))
    with _written(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix="." + os.path.basename(path) + ".",
                                             suffix=os.path.splitext(path)[1])
    os.close(handle)
    # mkstemp makes files private; a result should be as readable as any other file the user writes.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


@contextmanager
def locked(path):
    """Hold ``path``.lock: of several processes that want to make ``path``, one makes it and the others wait."""
    # Not filelock: torch 1.13 does not bring it. The system lets go of the lock when the process ends, however it does.
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_text(path, text):
    """Write ``text`` to ``path`` atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(text)


def write_json(path, value):
    """Write ``value`` as indented JSON, atomically. NumPy scalars and arrays become numbers and lists."""

    def plain(item):
        if isinstance(item, (np.generic, np.ndarray)):
            return item.tolist()
        raise TypeError("not JSON: {!r}".format(type(item)))

    write_text(path, json.dumps(value, indent=2, default=plain, allow_nan=False) + "\n")


def save_tensors(path, value):
    """``torch.save`` of tensors and Python primitives, atomically, so that ``load_tensors`` can read it."""
    import torch
    with atomic_path(path) as temporary:
        torch.save(_convert(value, lambda v: {_FLOAT: torch.tensor(v, dtype=torch.float64)}, float), temporary)


# torch 1.13 refuses floats when it loads weights only, so they travel as tensors.
_FLOAT = "__float__"


def _convert(value, convert, kind):
    if isinstance(value, kind) and (kind is float or set(value) == {_FLOAT}):
        return convert(value)
    if isinstance(value, dict):
        return {key: _convert(item, convert, kind) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_convert(item, convert, kind) for item in value)
    return value


def load_tensors(path, device="cpu"):
    """Read a checkpoint of plain tensors and primitives.

    Raises RunError for a missing, truncated or pickled file: code in a checkpoint is never executed.
    """
    import torch
    if not os.path.isfile(path):
        raise RunError("no checkpoint at {}: expected a file written by torch.save".format(path))
    try:
        return _convert(torch.load(path, map_location=device, weights_only=True), lambda v: v[_FLOAT].item(), dict)
    except pickle.UnpicklingError as error:
        raise RunError("{} is not a plain tensor checkpoint ({}); it was not loaded, because unpickling it could run "
                       "code. Save it again with torch.save({{'model_state': model.state_dict()}}, ...)".format(
                           path, (str(error) or type(error).__name__).splitlines()[0][:120]))
    except Exception as error:
        raise RunError("{} is damaged, empty or cut off ({}): copy it again, or make it anew".format(
            path, (str(error) or type(error).__name__).splitlines()[0][:120]))


def sha256_array(array):
    """Hex digest of an array's dtype, shape and bytes."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256("{}{}".format(array.dtype.str, array.shape).encode())
    digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def sha256_file(path):
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_state(state):
    """Hex digest of a ``state_dict``: names and tensor bytes, in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(sha256_array(state[name].detach().cpu().numpy()).encode())
    return digest.hexdigest()
