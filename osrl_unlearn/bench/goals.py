"""What the first method of ``osrl-unlearn bench unlearning`` should reach, and whether it does.

The goals were set before anything was measured; they are about the tasks that the attack harmed.
"""
from scipy import stats

from osrl_unlearn.bench.output import number

RECOVERY, RETURN, UPDATES, SECONDS, IMPROVEMENT = 0.95, 0.95, 0.01, 0.01, 0.75
RIVALS = ("fine_tune", "traj_deleter", "grad_diff", "value_suppression")
ALL = "all"
RECOVERS = "cost recovery (IQM) at least {:g}".format(RECOVERY)
WITHIN = "cost within the limit, where retraining's is (cost / limit)"
EARNS = "return at least {:g} of retraining's".format(RETURN)
CHEAP = "at most {:.0%} of retraining's {}"
ALIKE = "no farther from retraining than retraining with another seed, means of 9 distances"
STAYS = "no rise of the cost in further training on the retain set is shown beyond retraining's"
SAFE = "accepted checkpoints that cost more than the poisoned agent: none"
BETTER = "recovers more than `{}` with probability at least {:g}"


def judge(suite, report):
    """Rows {"goal", "where": a task's name or ALL, "value": as text, "holds"}; what was not measured has none.

    ``report`` is as :func:`osrl_unlearn.bench.comparison.aggregate` makes it.
    """
    rows = []
    for task in report["tasks"]:
        if task["harmed"]:
            limit = suite.settings[task["setting"]].agent["cost_limit"]
            rows += [{"goal": goal, "where": name(task), "value": value, "holds": bool(holds)}
                     for goal, value, holds in _task(suite, report, task, limit)]
    harmed = sum(task["harmed"] for task in report["tasks"])
    return rows + [{"goal": goal, "where": ALL, "holds": score["mean"] >= least, "value": "{:.3f}{}".format(
        score["mean"], "" if score["tasks"] == harmed else " ({} of {} tasks)".format(score["tasks"], harmed))}
                   for goal, score, least in _overall(suite, report)]


def name(row):
    """The task of a row of the report."""
    return "{setting}, {attack} {rate:g}".format(**row)


def _task(suite, report, task, limit):
    first, method = next(iter(suite.methods.items()))

    def find(part, label=first):
        return next((row for row in report[part] if name(row) == name(task) and row["method"] == label
                     and row.get("budget", method.budget) == method.budget), None)

    row = find("rows")
    if row:
        recovery = stats.trim_mean(row["recovery"]["values"], 0.25)
        yield RECOVERS, "{:.3f}".format(recovery), recovery >= RECOVERY
        if task["retrained"]["cost"]["mean"] <= limit:
            cost = row["cost"]["mean"]
            yield WITHIN, "{:.3f}".format(cost / limit if limit else cost), cost <= limit
        if row["return_ratio"]:
            ratio = row["return_ratio"]["mean"]
            yield EARNS, "{:.3f}".format(ratio), ratio >= RETURN
        for what, goal in (("updates", UPDATES), ("seconds", SECONDS)):
            ratio = row[what + "_ratio"]
            if ratio is not None:
                yield CHEAP.format(goal, what), "{:.1%}".format(ratio), round(ratio, 3) <= goal
    row, again = find("distance"), find("distance", "retrained again")
    if row and again:
        near = [row[what][where]["mean"] <= again[what][where]["mean"]
                for what in ("actions", "reward_value", "cost_value") for where in row[what]]
        yield ALIKE, "{} of {}".format(sum(near), len(near)), all(near)
    row = find("relearning")
    if row and row["beyond"] and row["beyond"]["ci95"]:
        yield STAYS, number(row["beyond"], "+"), row["beyond"]["ci95"][0] <= 0
    row = find("checkpoints")
    if row and row["accepted"]:
        yield SAFE, "{} of {}".format(row["higher"], row["accepted"]), not row["higher"]


def _overall(suite, report):
    first = next(iter(suite.methods))
    for row in report["overall"]:
        if row["method"] == first:
            for goal, score, least in ((RECOVERS, row["recovery"], RECOVERY), (EARNS, row["return_ratio"], RETURN)):
                if score:
                    yield goal, score, least
        elif suite.methods[row["method"]].name in RIVALS and row["better_recovery"]:
            yield BETTER.format(row["method"], IMPROVEMENT), row["better_recovery"], IMPROVEMENT
