"""Means with bootstrap confidence intervals."""
import inspect
import math
import warnings

import numpy as np
from scipy.stats import binomtest, bootstrap

LEVEL, RESAMPLES = 0.95, 9999
MEMORY = 10 ** 8  # numbers that are drawn at a time
# SciPy 1.15 renamed the argument; the old name will go away.
_GENERATOR = "rng" if "rng" in inspect.signature(bootstrap).parameters else "random_state"


def summary(values):
    """Mean and 95 % bootstrap confidence interval of the mean.

    BCa with 9,999 resamples; the percentile interval where BCa is undefined. The generator is private and seeded, so
    the same values always give the same interval. Equal values, and a single one, give the interval [mean, mean]: for
    a single value that does not mean that the mean is known, so look at ``n`` too.

    Args:
        values: numbers of shape [n], n >= 1.

    Returns:
        {"mean": float, "ci95": [low, high], "n": int}, in the unit of ``values``.

    Raises:
        ValueError: no values, more than one axis, or a value that is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError("expected finite numbers of shape [n] with n >= 1, got shape {}{}".format(
            list(values.shape), "" if np.isfinite(values).all() else " with NaN or infinity"))
    if (values == values[0]).all():
        # Taken as it is: the mean of equal numbers can differ from them in the last digit.
        mean = float(values[0])
        return {"mean": mean, "ci95": [mean, mean], "n": int(values.size)}
    interval = _interval(values, "BCa")
    if not all(map(math.isfinite, interval)):
        interval = _interval(values, "percentile")
    return {"mean": float(values.mean()), "ci95": interval, "n": int(values.size)}


def paired_difference(a, b):
    """:func:`summary` of ``a - b``, where ``a[i]`` and ``b[i]`` belong together (episodes from the same seed).

    Args:
        a, b: numbers of the same shape [n], n >= 1.

    Raises:
        ValueError: as :func:`summary`, or the shapes differ.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError("only values that belong together can be paired: got shapes {} and {}".format(
            list(a.shape), list(b.shape)))
    return summary(a - b)


def worst_share(values, share=0.1):
    """Conditional value at risk: mean of the highest ``share`` of ``values`` (at least one), as :func:`summary`.

    The interval is the percentile one: BCa's acceleration is unreliable for a mean of few order statistics.
    """
    values = np.asarray(values, np.float64)
    worst = max(1, int(np.ceil(share * values.size)))

    def tail(sample, axis=-1):
        return np.sort(sample, axis)[..., -worst:].mean(axis)

    found = summary(values)
    found["mean"] = float(tail(values))
    found["ci95"] = _interval(values, "percentile", tail) if found["ci95"][0] != found["ci95"][1] else found["ci95"]
    return found


def share(count, n):
    """{"mean", "ci95", "n"} of a share of ``count`` in ``n``, with Wilson's score interval."""
    low, high = binomtest(int(count), int(n)).proportion_ci(LEVEL, method="wilson")
    return {"mean": count / n, "ci95": [float(low), float(high)], "n": int(n)}


def _interval(values, method, statistic=np.mean):
    with warnings.catch_warnings():
        # A degenerate sample makes BCa warn and return NaN, which summary() deals with.
        warnings.simplefilter("ignore")
        low, high = bootstrap((values,), statistic, n_resamples=RESAMPLES, confidence_level=LEVEL, method=method,
                              batch=max(1, MEMORY // values.size),
                              **{_GENERATOR: np.random.default_rng(0)}).confidence_interval
    return [float(low), float(high)]
