"""The main figures of an audit, to be read."""


def rows(metrics):
    """[metric, figure, value] of each main figure of {metric: what :meth:`Metric.run` gives}, and what is missing."""
    found = []
    for name in [name for name in SHOWN if name in metrics] + [name for name in metrics if name not in SHOWN]:
        result = metrics[name]
        if "not_computed" in result:
            found.append([name, "not computed", result["not_computed"]])
        else:
            found += [[name] + row for row in SHOWN.get(name, _any)(result["value"])]
    return found


def _any(value):
    """Of a metric of a third party: what is a number or has a mean."""
    return [[name, _summary(figure) if isinstance(figure, dict) else "{:.4g}".format(figure)]
            for name, figure in value.items()
            if isinstance(figure, (int, float)) or isinstance(figure, dict) and {"mean", "ci95"} <= set(figure)]


def _summary(figure):
    return "{:.4g} [{:.4g}, {:.4g}]".format(figure["mean"], *figure["ci95"])


def _figures(agents, prefix=""):
    return [["{}{} of {}".format(prefix, key, name), _summary(figure)] for name, found in agents.items()
            for key, figure in found.items()]


NON_MEMBERS = {"reference": "audited against reference", "original": "original against reference",
               "calibration": "reference 2 against reference", "holdout": "audited against held-out trajectories"}
SHOWN = {
    "safety": lambda v: _figures(v.get("agents", {})) + [
        ["estimated discounted cost of " + name, "{:.4g}".format(found["cost"])]
        for name, found in v["estimate"].items()] + [
        ["cost by fitted Q evaluation of " + name, "{mean:.4g}, 95 % upper bound {upper:.4g}".format(**found)]
        for name, found in (v.get("fitted_q") or {}).items()],
    "distance": lambda v: [["{}, {}, {} states".format(title, pair, where), _summary(found[key])]
                           for key, title in (("actions", "squared distance of actions"), ("kl", "KL of the policies"))
                           for pair, sets in v.items() for where, found in sets.items() if key in found],
    "membership": lambda v: [["AUROC of {}{}".format(name, title), _summary(found["auroc"])] for key, title in (
        ("attacks", ""), ("calibration", ", reference 2 in its place"), ("power", ", original in its place"))
        for name, found in v.get(key, {}).items()],
    "trajauditor": lambda v: [["{} trajectories taken for training data of {}".format(where, name), _summary(found)]
                              for where, agents in v.items() for name, found in agents.items()],
    "auditor": lambda v: [["{} of {}".format(figure, NON_MEMBERS[against]), _summary(found)]
                          for against, figures in v.items() for figure, found in figures.items()],
    "gaussian_score": lambda v: [["score of " + name, "{}, p = {:.2g}".format(_summary(found["score"]), found[
        "p_value"])] for name, found in v.items()],
    "trigger": lambda v: [row for label, agents in v.items() for row in _figures(
        {name: {"cost": found["cost"]} for name, found in agents.items()}, label + ": ")],
    "relearning": lambda v: [["{}, {}: updates to a cost of {:.4g}".format(label, name, v["original"]),
                              "not within {}".format(v["budget"]) if found["updates"] is None else found["updates"]]
                             for label, agents in v.items() if isinstance(agents, dict)
                             for name, found in agents.items()],
}
