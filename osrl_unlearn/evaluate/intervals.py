"""Means over training seeds, and differences between them, with 95 % intervals."""
import numpy as np
from scipy import stats

from osrl_unlearn.errors import EnvironmentProblem

LEVEL = 0.95


def mean(values):
    """Mean over seeds with Student's interval. ``values``: one number per seed, shape [n], n >= 1.

    Returns:
        {"mean", "ci95": [low, high] or None for a single seed, "n", "values"}
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"mean": float(values.mean()), "ci95": _interval(values.mean(), error, n - 1), "n": n,
            "values": values.tolist()}


def by_seed(results, seeds, *where):
    """{seed: result} of those of ``seeds`` for which results[where + (seed,)] is there and not None."""
    found = {seed: results.get(where + (seed,)) for seed in seeds}
    return {seed: result for seed, result in found.items() if result is not None}


def per_seed(evaluations):
    """The mean cost and return of every seed.

    A seed's episodes are one number: episodes and checkpoints of one agent are not independent.

    Args:
        evaluations: {seed: [{"cost": [episodes], "reward": [episodes]}, ...]}.

    Returns:
        {"cost": {seed: mean}, "return": {seed: mean}}, per episode.
    """
    return {name: {seed: float(np.mean(np.concatenate([e[column] for e in found])))
                   for seed, found in evaluations.items()}
            for name, column in (("cost", "cost"), ("return", "reward"))}


def means(numbers):
    """:func:`mean` of each of {name: {seed: number}}."""
    return {name: mean(list(values.values())) for name, values in numbers.items()}


def paired(a, b):
    """:func:`mean` of a - b, seed by seed, with Student's interval; of each of {name: {seed: number}}.

    Seeds that one of them lacks are left out; None if no seed is left.
    """
    apart = {name: {seed: value - b[name][seed] for seed, value in values.items() if seed in b[name]}
             for name, values in a.items()}
    return means(apart) if all(apart.values()) else None


def difference(a, b):
    """mean(a) - mean(b) with Welch's interval; ``a`` and ``b`` hold one number per seed, shapes [n] and [m].

    Returns:
        {"mean", "ci95": [low, high], or None if one of them has a single seed}
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    apart, error, freedom = a.mean() - b.mean(), None, None
    if min(len(a), len(b)) > 1:
        # As scipy.stats.ttest_ind(equal_var=False), whose interval SciPy has since 1.11 only.
        va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
        error = float(np.sqrt(va + vb))
        freedom = (va + vb) ** 2 / (va ** 2 / (len(a) - 1) + vb ** 2 / (len(b) - 1)) if error else None
    return {"mean": float(apart), "ci95": _interval(apart, error, freedom)}


def _interval(center, error, freedom):
    if error is None:
        return None
    if error == 0:
        return [float(center), float(center)]
    return [float(end) for end in stats.t.interval(LEVEL, freedom, loc=center, scale=error)]


# Aggregates over settings ---------------------------------------------------------------------------------------------

REPETITIONS = 2000  # of the bootstrap


def check_rliable():
    """Raise EnvironmentProblem if rliable is not there."""
    try:
        import rliable.library  # noqa: F401
    except Exception as error:  # arch, which rliable uses, breaks in other ways with a pandas that it does not know
        raise EnvironmentProblem("rliable cannot be imported ({}: {}): run python -m pip install rliable \"pandas<3\", "
                                 "or install osrl-unlearn[bench]".format(
                                     type(error).__name__, (str(error).splitlines() or [""])[0]))


def interquartile_mean(scores):
    """Interquartile mean over runs and tasks, with a bootstrap interval stratified by task (rliable).

    Args:
        scores: normalised per task, shape [runs, tasks], at least two runs.

    Returns:
        {"mean": the interquartile mean, "ci95", "n": runs, "tasks"}
    """
    from rliable import metrics
    return _aggregate(metrics.aggregate_iqm, np.asarray(scores, np.float64))


def improvement(scores, others):
    """Probability that a run of ``scores`` is above one of ``others``, mean over tasks (rliable).

    Both have shape [runs, tasks], with the same tasks. Returns as :func:`interquartile_mean`.
    """
    from rliable import metrics
    return _aggregate(metrics.probability_of_improvement, (np.asarray(scores, np.float64),
                                                           np.asarray(others, np.float64)))


def _aggregate(function, scores):
    from rliable import library
    before = np.random.get_state()
    np.random.seed(0)  # rliable draws from NumPy's global generator, whatever it is given
    try:
        point, interval = library.get_interval_estimates(
            {"": scores}, lambda *args: np.array([function(*args)]), reps=REPETITIONS)
    finally:
        np.random.set_state(before)
    runs, tasks = (scores if isinstance(scores, np.ndarray) else scores[0]).shape
    return {"mean": float(point[""][0]), "ci95": [float(end) for end in interval[""].ravel()], "n": runs,
            "tasks": tasks}
