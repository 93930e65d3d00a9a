"""Find, fetch and check DSRL's HDF5 files."""
import os
import urllib.error
import urllib.request

import h5py
import numpy as np
from tqdm import tqdm

from osrl_unlearn import resources, status
from osrl_unlearn.data.poison import REQUIRED
from osrl_unlearn.errors import DataError
from osrl_unlearn.files import locked
from osrl_unlearn.status import say

# Where DSRL's repository points to since its first server has been unreliable; PyPI's dsrl 0.1.0 does not know it.
MIRROR = "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main/"
SHIPPED = {"OfflineBallCircle-v0": "BallCircle.hdf5"}
MATRICES = ("observations", "next_observations", "actions")
TIMEOUT = 10  # seconds without an answer before the next source is tried


def check_file(path, task=None, observation_shape=None, action_shape=None):
    """Raise DataError, naming the problem, unless ``path`` is a readable DSRL file (of the task, if given)."""
    if not os.path.isfile(path):
        raise DataError("no dataset at {}: expected an HDF5 file in DSRL's format".format(path))
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in REQUIRED if key not in file]
            if missing:
                raise DataError("{} lacks the dataset{} {}: DSRL's format needs {}".format(
                    path, "" if len(missing) == 1 else "s", ", ".join(missing), ", ".join(REQUIRED)))
            shapes = {key: file[key].shape for key in REQUIRED}
            kinds = {key: file[key].dtype for key in REQUIRED}
        made_for = task_of(path)
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises any of them for a broken file
        raise DataError("{} is not a readable HDF5 file, perhaps truncated ({}): delete it or give another with "
                        "--dataset".format(path, str(error).splitlines()[0][:120]))
    rows = shapes["observations"][0] if shapes["observations"] else 0
    for key, shape in shapes.items():
        columns = 2 if key in MATRICES else 1
        # DSRL makes the others flat, but not 'timeouts', and would then compare each of these with each terminal.
        flat = shape[:1] if len(shape) == 2 and shape[1] == 1 and columns == 1 and key != "timeouts" else shape
        if len(flat) != columns or flat[0] != rows or not rows:
            raise DataError("{}: '{}' has shape {}, expected {} with the same number of rows everywhere".format(
                path, key, shape, "[rows, dim]" if columns == 2 else "[rows]"))
        if kinds[key].kind not in "fiub":
            raise DataError("{}: '{}' has dtype {}, expected numbers".format(path, key, kinds[key]))
    wrong = (task and made_for and made_for != task) or any(
        expected is not None and shapes[key][1:] != tuple(expected)
        for key, expected in (("observations", observation_shape), ("actions", action_shape)))
    if wrong:
        raise DataError("{} is not a dataset of {}: it was made for {}, with observations {} and actions {}".format(
            path, task or "this task", made_for or "another task", list(shapes["observations"][1:]),
            list(shapes["actions"][1:])))


def task_of(path):
    """The task that an HDF5 file says it was made for, or None."""
    with h5py.File(path, "r") as file:
        made_for = file.attrs.get("task")
    made_for = made_for.decode() if isinstance(made_for, bytes) else made_for
    return made_for if isinstance(made_for, str) else None


def read_columns(path):
    """The columns of a DSRL file (see :func:`check_file`) as {name: array}, shapes [rows] and [rows, dim].

    Columns that lie in the file in one piece and uncompressed are not read but mapped into memory, so that they may be
    larger than it; what is written into such an array does not reach the file.
    """
    mapped, out = {}, {}
    with h5py.File(path, "r") as file:
        for key in REQUIRED:
            column = file[key]
            if column.chunks is None and column.id.get_offset() is not None:
                mapped[key] = column.dtype, column.id.get_offset(), column.shape
            else:
                out[key] = column[()]
    for key, (dtype, offset, shape) in mapped.items():
        out[key] = np.asarray(np.memmap(path, dtype, "c", offset, shape))
    return {key: column if column.ndim == 1 or key in MATRICES else column[:, 0] for key, column in out.items()}


def check_arrays(data, path):
    """Raise DataError if the loaded arrays hold NaN or infinity, or if no row ends a trajectory."""
    for key in REQUIRED:
        if data[key].dtype.kind == "f" and not np.isfinite(data[key]).all():
            bad = int(np.argmin(np.isfinite(data[key]).reshape(len(data[key]), -1).all(1)))
            raise DataError("{}: '{}' holds NaN or infinity, first in row {}".format(path, key, bad))
    if not (np.asarray(data["terminals"]).astype(bool) | np.asarray(data["timeouts"]).astype(bool)).any():
        raise DataError("{}: no row is marked in 'terminals' or 'timeouts', so no trajectory ends; mark the last row "
                        "of each".format(path))


def resolve(task, url, cached, chosen=None):
    """Path of the file that holds the dataset of ``task``; says on stderr which source it is.

    Order: ``chosen`` (--dataset, or what a run or a manifest records); ``cached`` (DSRL's own folder); a download from
    ``url`` and then from the location that DSRL's repository uses now, into ``cached``; the dataset shipped with this
    package.

    Raises DataError naming the choices when there is none.
    """
    if chosen is not None:
        path = os.path.abspath(chosen)
        return _say(path, "given or recorded") if os.path.exists(path) else path  # whoever reads it says what is wrong
    found = "found in DSRL's dataset folder"
    if cached and os.path.exists(cached):
        return _say(cached, found)
    failures = []
    if url:
        for source in dict.fromkeys([url, MIRROR + os.path.basename(url)]):
            try:
                return _say(cached, "downloaded from " + source if download(source, cached) else found)
            except (OSError, DataError) as error:
                failures.append("{}: {}".format(source, getattr(error, "reason", None) or error))
    shipped = os.path.join(resources.folder("datasets"), SHIPPED.get(task, ""))
    if os.path.isfile(shipped):
        return _say(shipped, "shipped with osrl-unlearn, made with fast-safe-rl; it is not DSRL's own file, which "
                             "could not be downloaded")
    raise DataError(
        "no dataset for {}: give one with --dataset FILE, put it at {}, make one with 'osrl-unlearn collect --task {} "
        "--out FILE', or connect to the network (tried {})".format(
            task, cached, task, "; ".join(failures) or "no address, the task names none"))


def _say(path, source):
    say("dataset {} ({})".format(path, source))
    return path


def download(url, path):
    """Fetch ``url`` to ``path``: resumed where an earlier try stopped, in place only when complete and readable.

    Returns False if another process has fetched it meanwhile. Raises OSError, DataError.
    """
    with locked(path):
        if os.path.exists(path):
            return False
        _fetch(url, path)
    return True


def _fetch(url, path):
    part = path + ".part"
    have = os.path.getsize(part) if os.path.exists(part) else 0
    request = urllib.request.Request(url, headers={"Range": "bytes={}-".format(have)} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        response, size = None, (error.headers.get("Content-Range") or "*").rpartition("/")[2]
        if size not in ("*", str(have)):
            os.unlink(part)  # it is of another file
            return _fetch(url, path)
    if response is not None:
        with response:
            resumed = response.status == 206
            length = response.headers.get("Content-Length")
            total = int(length) + (have if resumed else 0) if length else None
            with open(part, "ab" if resumed else "wb") as file, tqdm(
                    total=total, initial=have if resumed else 0, unit="B", unit_scale=True, desc="download",
                    disable=status.quiet) as bar:
                for block in iter(lambda: response.read(1 << 20), b""):
                    file.write(block)
                    bar.update(len(block))
        if total is not None and os.path.getsize(part) != total:
            raise OSError("the connection broke after {} of {} bytes; run again to resume".format(
                os.path.getsize(part), total))
    try:
        check_file(part)
    except DataError as error:
        os.unlink(part)  # it cannot be completed any more
        raise DataError(str(error).replace(part, url))
    os.replace(part, path)
