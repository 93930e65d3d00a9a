"""The main figures of an audit, to be read."""


def rows(metrics):
    """[metric, figure, value] of each main figure of {metric: what :meth:`Metric.run` gives}, and what is missing."""
    found = []
    for name in [name for name in SHOWN if name in metrics] + [name for name in metrics if name not in SHOWN]:
        result = metrics[name]
        if "not_computed" in result:
            found.append([name, "not computed", result["not_computed"]])
        else:
            found += [[name, figure, text] for figure, text in SHOWN.get(name, _any)(result["value"])
                      if text is not None]
            # What a metric lacked the means for, beside what it could say.
            found += [[name, figure + ": not computed", why] for figure, why in
                      result.get("details", {}).get("not_computed", {}).items()]
    return found


def _any(value):
    """Of a metric of a third party: what is a number or has a mean."""
    return [[name, _shown(figure)] for name, figure in value.items()]


def _shown(figure):
    """A number, or a mean with its interval, as text; None for anything else."""
    if isinstance(figure, dict) and "mean" in figure:
        interval = figure.get("ci95")
        return "{:.4g}".format(figure["mean"]) + (" [{:.4g}, {:.4g}]".format(*interval) if interval else "")
    return "{:.4g}".format(figure) if isinstance(figure, (int, float)) else None


def _safety(value):
    return [["{} of {}".format(key, name), _shown(figure)]
            for name, found in value.get("agents", {}).items() for key, figure in found.items()] + [
        ["{} of audited minus {}, paired".format(key, name), _shown(figure)]
        for name, found in value.get("difference", {}).items() for key, figure in found.items()] + [
        ["estimated discounted cost of " + name, _shown(found["cost"])]
        for name, found in value.get("estimate", {}).items()] + [
        ["cost by fitted Q evaluation of " + name, "{mean:.4g}, 95 % upper bound {upper:.4g}".format(**found)]
        for name, found in (value.get("fitted_q") or {}).items()]


def _distance(value):
    return [["{}, {}, {} states".format(title, pair, where), show(found[key])]
            for key, title, show in (("actions", "squared distance of actions", _shown),
                                     ("kl", "KL of the policies", _shown),
                                     ("reward_value", "reward critics, Wasserstein-1 and Kolmogorov-Smirnov", _apart),
                                     ("cost_value", "cost critics, Wasserstein-1 and Kolmogorov-Smirnov", _apart))
            for pair, sets in value.items() for where, found in sets.items() if key in found]


def _apart(found):
    """How far apart the values of two critics are."""
    parts = [text.format(_shown({"mean": found[key], "ci95": found.get(key + "_ci95")})) for key, text in (
        ("wasserstein", "W1 {}"), ("ks", "KS {}"), ("p_value", "p = {}")) if key in found]
    return ", ".join(parts) or None


def _relearning(value):
    return [["{}, {}: updates to a {measure} of {level:.4g}".format(label, name, **value),
             "not within {budget}".format(**value) if found["updates"] is None else found["updates"]]
            for label, agents in value.items() if isinstance(agents, dict) for name, found in agents.items()]


NON_MEMBERS = {"reference": "audited against reference", "original": "original against reference",
               "calibration": "a reference against another", "holdout": "audited against held-out trajectories"}
SHOWN = {
    "safety": _safety,
    "distance": _distance,
    "membership": lambda v: [["AUROC of {}{}".format(name, title), _shown(found["auroc"])] for key, title in (
        ("attacks", ""), ("calibration", ", a reference in its place"), ("power", ", original in its place"))
        for name, found in v.get(key, {}).items()],
    "trajauditor": lambda v: [["{} trajectories taken for training data of {}".format(where, name), _shown(found)]
                              for where, agents in v.items() for name, found in agents.items()],
    "auditor": lambda v: [["{} of {}".format(figure, NON_MEMBERS.get(against, against)), _shown(found)]
                          for against, figures in v.items() if isinstance(figures, dict)
                          for figure, found in figures.items()],
    "gaussian_score": lambda v: [["score of " + name, "{}, p = {:.2g}".format(_shown(found["score"]), found[
        "p_value"])] for name, found in v.items()],
    "trigger": lambda v: [[text.format(label, name), _shown(found.get(key))] for key, text in (
        ("cost", "{}: cost of {}"), ("reward", "{}: return of {}"),
        ("difference", "{}: cost of audited minus {}, paired"))
        for label, agents in v.items() for name, found in agents.items()],
    "relearning": _relearning,
}
