"""Cells as jobs of submitit: one after another in this process, in local processes, or on a SLURM cluster.

    OUT/jobs/JOB_submitted.pkl, JOB_0_log.out, JOB_0_log.err     submitit's files of every job

What is finished is known from OUT/results alone, as it is without submitit. So a job may be preempted, requeued or
killed, and the process that submitted it too: whoever computes the cell next goes on from what is kept in OUT.
"""
import os
import subprocess
import time

from tqdm import tqdm

from osrl_unlearn import status
from osrl_unlearn.bench import runner
from osrl_unlearn.errors import ConfigError, EnvironmentProblem

CLUSTERS = ("local", "slurm", "debug")
DEFAULTS = {"name": "osrl-unlearn", "timeout_min": 24 * 60}
POLL = {"local": 0.2, "slurm": 2.0, "debug": 0.0}  # seconds


class Job:
    """One cell, as submitit runs it."""

    def __init__(self, function, cell, out):
        self.function, self.cell, self.out = function, cell, out

    def __call__(self):
        return runner.work(self.function, self.cell, self.out)

    def checkpoint(self):
        """What to run when the job is requeued after it was preempted: the same."""
        from submitit.helpers import DelayedSubmission
        return DelayedSubmission(self)


def executor(name, parameters, out):
    """submitit's executor of the cluster called ``name``, with ``parameters`` (a mapping, in submitit's names).

    Raises EnvironmentProblem without submitit, ConfigError for a parameter or a cluster that is not there.
    """
    try:
        import submitit
    except ImportError as error:
        raise EnvironmentProblem("--cluster needs submitit, which cannot be imported ({}): install "
                                 "osrl-unlearn[sweep]".format(error))
    try:
        made = submitit.AutoExecutor(os.path.join(os.path.abspath(out), "jobs"), cluster=name)
        made.update_parameters(**dict(DEFAULTS, **parameters))
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError("--cluster {}: {}".format(name, " ".join(str(error).split())))
    return made


def compute(todo, total, function, out, jobs, executor):
    """Compute ``todo`` with at most ``jobs`` jobs at once; for :func:`~osrl_unlearn.bench.runner.run_cells`."""
    out, waiting, running, failed = os.path.abspath(out), list(reversed(todo)), {}, 0
    with tqdm(total=total, initial=total - len(todo), unit="cell", smoothing=0, dynamic_ncols=True,
              disable=status.quiet) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop()
                    running[_submit(executor, Job(function, cell, out))] = cell
                over = _over(running, executor.cluster)
                for job in over:
                    cell = running.pop(job)
                    error = _error(job, cell, out)
                    if error is not None:
                        failed += 1
                        bar.set_postfix(failed=failed)
                        yield cell, error
                    bar.update()
                if not over:
                    time.sleep(POLL[executor.cluster])
        except BaseException:
            for job in running:
                job.cancel(check=False)
            raise


def _submit(executor, job):
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    try:
        return executor.submit(job)
    except (FailedJobError, FailedSubmissionError) as error:
        raise EnvironmentProblem("--cluster {}: a job cannot be submitted: {}".format(
            executor.cluster, " ".join(str(error).split())))


def _over(running, cluster):
    """The jobs that have ended, however they did."""
    if cluster != "slurm":
        return [job for job in running if job.done()]
    # submitit asks sacct, which knows nothing where the cluster keeps no accounts.
    listed = subprocess.run(["squeue", "--me", "--noheader", "--format=%i"], stdout=subprocess.PIPE,
                            universal_newlines=True)
    queue = set(listed.stdout.split()) if listed.returncode == 0 else {job.job_id for job in running}
    return [job for job in running if job.job_id not in queue]


def _error(job, cell, out):
    """None if the cell is finished, else why it is not, in one line."""
    from submitit.local.debug import DebugJob
    if runner.finished(cell, out) is not None:
        return None
    log = job.paths.stderr
    if not isinstance(job, DebugJob) and not job.paths.result_pickle.exists():
        return "the job ended without a result (cancelled, or for want of memory?); its output: {}".format(log)
    try:
        error = job.result()
    except Exception as problem:
        error = [line for line in str(problem).splitlines() if line.strip()][-1]
    return error or "the job has finished, but its result is not in {}: all nodes must share that folder".format(out)
