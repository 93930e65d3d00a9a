"""Means over training seeds, and differences between them, with 95 % intervals."""
import numpy as np
from scipy import stats

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
