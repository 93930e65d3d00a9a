"""Compute many independent results in several processes, each of them once.

A *cell* is a dictionary of plain values that fully describes one result, random seeds and the hash of the dataset
included. Its result is kept as OUT/results/KEY.json, where KEY is a hash of the cell, so that an interrupted bench goes
on where it stopped, and a changed one computes only what is new.
"""
import hashlib
import importlib
import json
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from osrl_unlearn import status
from osrl_unlearn.data.manifest import versions
from osrl_unlearn.errors import ConfigError, EnvironmentProblem, OsrlUnlearnError
from osrl_unlearn.files import locked, write_json

THREADS = {"OMP_NUM_THREADS": "1"}  # one per cell
UNKEYED = ("label", "path", "script")  # what a cell is called, and where its files are, changes no result


def key(cell):
    """Hex digest of everything in ``cell`` that its result depends on."""
    return hashlib.sha256(json.dumps(identity(cell), sort_keys=True).encode()).hexdigest()


def identity(cell):
    """All of ``cell`` but UNKEYED."""
    return {name: value for name, value in cell.items() if name not in UNKEYED}


def finished(cell, out):
    """The result of a cell, or None if it has not been computed."""
    return stored(cell, out).get("result")


def stored(cell, out):
    """All that is kept of a cell: "cell", "result" and "versions" of what computed it; empty if it has not been.

    Older results come without versions. Raises ConfigError if the file is not one of ours.
    """
    try:
        with open(_path(cell, out), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError("{} is damaged ({}): delete it, and the cell is computed again".format(
            _path(cell, out), error))


def restore(lines, out):
    """Take the finished results of a bench from its NAME.jsonl, if that is there: raw results travel as one file."""
    if not os.path.isfile(lines):
        return
    with open(lines, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ConfigError("{}, line {} is damaged ({}): delete the line, and its cell is computed again".format(
                    lines, number, error))
            if not os.path.exists(_path(line["cell"], out)):
                write_json(_path(line["cell"], out), {
                    name: line[name] for name in ("cell", "result", "versions") if name in line})


def _path(cell, out):
    return os.path.join(out, "results", key(cell) + ".json")


def run_cells(cells, function, out, jobs=1, compute=None):
    """The results of ``cells``, in their order; None for those that failed, which are listed on stderr.

    Args:
        cells: dictionaries of plain values; "label" is for people, "path" for ``function``, all else is the identity.
        function: "module:function"; called as function(cell, out), it returns a result that JSON can hold.
        out: folder of the results. What the workers print, and tracebacks, go to ``out``/bench.log.
        jobs: number of cells that are computed at the same time.
        compute: (cells, number of all cells, function, out, jobs) -> (cell, error in one line) of those that failed;
            default: in processes of this machine. It calls :func:`work` for every cell.

    Raises KeyboardInterrupt after Ctrl-C; finished cells are kept.
    """
    results = {key(cell): finished(cell, out) for cell in cells}
    todo = list({key(cell): cell for cell in cells if results[key(cell)] is None}.values())
    failures = []
    try:
        if todo:
            os.makedirs(out, exist_ok=True)
            os.environ.update(THREADS)  # read when a process starts
            failures.extend((compute or _compute)(todo, len(results), function, out, jobs))
    finally:  # what has failed is said even if the rest is interrupted
        if failures:
            logs = _log(out) if compute is None else os.path.join(out, "jobs")
            print("osrl-unlearn: {} of {} cells failed (tracebacks: {}); run again to repeat them, or one with the "
                  "command below it".format(len(failures), len(results), logs), file=sys.stderr)
        for cell, error in sorted(failures, key=lambda failure: _label(failure[0])):
            write_json(_failed(cell, out), {"function": function, "cell": cell})
            print("  {}: {}\n    osrl-unlearn sweep --repeat {}".format(
                _label(cell), error, shlex.quote(_failed(cell, out))), file=sys.stderr)
    return [finished(cell, out) for cell in cells]


def repeat(path):
    """Compute the cell that failed, of which :func:`run_cells` has left the file ``path``; returns its error or None.

    Raises ConfigError if there is no such file.
    """
    try:
        with open(path, encoding="utf-8") as file:
            failed = json.load(file)
        function, cell = failed["function"], failed["cell"]
        key(cell)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("--repeat {}: expected OUT/failed/KEY.json of a cell that failed ({}); one that is finished "
                          "has none".format(path, str(error)[:100]))
    os.environ.update(THREADS)
    return work(function, cell, os.path.dirname(os.path.dirname(os.path.abspath(path))))


def _label(cell):
    return cell.get("label", key(cell))


def _failed(cell, out):
    return os.path.join(out, "failed", key(cell) + ".json")


def _log(out):
    return os.path.join(out, "bench.log")


def _compute(todo, total, function, out, jobs):
    others, failed = set(multiprocessing.active_children()), 0
    with ProcessPoolExecutor(min(jobs, len(todo)), multiprocessing.get_context("spawn"), _start_worker,
                             (_log(out),)) as pool, \
            tqdm(total=total, initial=total - len(todo), unit="cell", smoothing=0, dynamic_ncols=True,
                 disable=status.quiet) as bar:
        # Workers inherit this: after Ctrl-C they are ended by us and print nothing.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            futures = {pool.submit(work, function, cell, out): cell for cell in todo}
        finally:
            signal.signal(signal.SIGINT, before)
        try:
            for future in as_completed(futures):
                error = future.result()
                if error is not None:
                    failed += 1
                    bar.set_postfix(failed=failed)
                    yield futures[future], error
                bar.update()
        except BaseException as error:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise EnvironmentProblem("a worker process died, perhaps for want of memory: run again, with fewer "
                                         "--jobs; {} of {} cells are finished".format(
                                             total - sum(finished(cell, out) is None for cell in todo), total))
            raise


def _start_worker(log):
    # Progress bars and remarks of libraries would tear the bar apart.
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    tqdm.set_lock(threading.RLock())  # its default is shared between processes and outlives one that is terminated
    # A worker whose parent was killed would wait for work for ever.
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()


def work(function, cell, out):
    """Compute and save one result, unless it is there; returns None, or the error in one line.

    Of several processes that are given the same cell, one computes it and the others wait: the job of an earlier run
    may still be there.
    """
    started = time.perf_counter()
    try:
        with locked(_path(cell, out)):
            if finished(cell, out) is None:
                module, _, name = function.partition(":")
                result = getattr(importlib.import_module(module), name)(cell, out)
                write_json(_path(cell, out), {"cell": identity(cell), "result": result, "versions": versions(),
                                              "seconds": time.perf_counter() - started})
        if os.path.exists(_failed(cell, out)):
            os.unlink(_failed(cell, out))
    except Exception as error:
        print("{}:\n{}".format(_label(cell), traceback.format_exc()), file=sys.stderr, flush=True)
        text = (str(error).splitlines() or [""])[0]
        return text if isinstance(error, OsrlUnlearnError) else "{}: {}".format(type(error).__name__, text)
    return None
