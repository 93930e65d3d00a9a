"""The tables and the figure of ``osrl-unlearn bench unlearning``, from its report."""
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from osrl_unlearn.bench import output
from osrl_unlearn.bench.goals import name as _name
from osrl_unlearn.bench.output import number
from osrl_unlearn.bench.partial import STYLES
from osrl_unlearn.evaluate.report import markdown_table, panels

SETS = ("forget", "retain", "fresh")


def text(report):
    """The tables as Markdown; a measurement without results has none."""
    parts = ["# Unlearning against retraining", _about(report)]
    parts += _goals(report) if report["goals"] else []
    for task in report["tasks"]:
        if task["poisoned"]:
            parts += _task(report, task)
    for rows, function in ((report["overall"], _overall), (report["distance"], _distance),
                           (report["relearning"], _relearning), (report["checkpoints"], _checkpoints),
                           (report["sequential"], _sequential), (report["clean_deletion"], _clean_deletion),
                           (report["ablations"], _ablations)):
        if rows:
            parts += function(report, rows)
    return "\n\n".join(parts)


def _about(report):
    return (
        "Costs and returns per episode: mean over training seeds ({}) [95 % interval]. Under an attack with a trigger "
        "they are those with the trigger, and a line below gives those without; the clean agent is shown none. "
        "\"Recovery\": (cost of the poisoned agent - cost) / (cost of the poisoned - cost of the retrained agent), 1 "
        "is as good as retraining; the denominator is the mean over seeds. It is given only where the attack harmed: "
        "where the 95 % interval of the poisoned minus the retrained agent's cost, in pairs of seeds, is above 0. "
        "\"Return ratio\": return (without the trigger) to the mean of the retrained agents. Updates and seconds are "
        "ratios to those of retraining.".format(", ".join(map(str, report["suite"]["seeds"]))))


def _share(value, digits=1):
    return "" if value is None else "{:.{}%}".format(value, digits)


def _score(summary):
    return "" if summary is None else number(summary, digits=2)


def _goals(report):
    rows = report["goals"]
    where = list(dict.fromkeys(row["where"] for row in rows))
    found = {(row["goal"], row["where"]): "{} {}".format(row["value"], "yes" if row["holds"] else "NO")
             for row in rows}
    return ["## What `{}` reaches\n\nIn the tasks that the attack harmed. The goals were set before anything was "
            "measured.".format(next(iter(report["suite"]["methods"]))),
            markdown_table([[goal] + [found.get((goal, one), "") for one in where]
                            for goal in dict.fromkeys(row["goal"] for row in rows)], ["goal"] + where)]


def _task(report, task):
    setting = report["suite"]["settings"][task["setting"]]
    evaluation = setting["evaluation"]
    clean = report["clean"][task["setting"]]
    lines = [["clean", number(clean["cost"]), number(clean["return"])] + [""] * 5] if clean else []
    rows = [("poisoned", task["poisoned"]), ("retrained", task["retrained"]), ("retrained, other seed", task["again"])]
    rows += [(row["method"], row) for row in report["rows"] if _name(row) == _name(task)
             and row["budget"] == report["suite"]["methods"][row["method"]]["budget"]]
    for name, row in rows:
        if row:
            paid = name != "poisoned"
            lines.append([name] + _quality(row) + [_share(row["updates_ratio"]) * paid,
                                                   _share(row["seconds_ratio"]) * paid,
                                                   "{} of {}".format(row["accepted"], row["seeds"]) * paid])
            if row["plain"]:
                lines.append([name + ", without the trigger", number(row["plain"]["cost"]),
                              number(row["plain"]["return"])] + [""] * 5)
    gap = "" if task["gap"] is None else " Poisoned - retrained cost: {}: the attack {}.".format(
        number(task["gap"], "+"), "harmed" if task["harmed"] else "is not shown to have harmed")
    return ["## {}\n\n{} The final agents are evaluated in {} episodes.{}".format(
        _name(task), output.training(setting), evaluation["last"] * evaluation["episodes"], gap),
        markdown_table(lines, ["agent", "cost", "return", "recovery", "return ratio", "updates", "seconds",
                               "changed the agent"])]


def _quality(row):
    return [number(row["cost"]), number(row["return"]), _score(row["recovery"]), _score(row["return_ratio"])]


def _overall(report, rows):
    first, tasks = next(iter(report["suite"]["methods"])), [task for task in report["tasks"] if task["harmed"]]
    return ["## All together\n\nOver the tasks in which the attack harmed ({}): interquartile means and the "
            "probability that a run of `{}` is above one of the other method [95 % bootstrap interval, stratified by "
            "task; rliable]. Of a method that an agent cannot take, over the other tasks; the probability too.".format(
                "; ".join(map(_name, tasks)), first),
            markdown_table([[row["method"], row["return_ratio"]["tasks"], _share(row["budget"])] + [
                _score(row[name]) for name in ("recovery", "return_ratio", "better_recovery", "better_return_ratio")]
                for row in rows], ["method", "tasks", "updates", "recovery", "return ratio",
                                   "P({} recovers more)".format(first), "P({} returns more)".format(first)])]


def _distance(report, rows):
    return ["## Distance to retraining\n\nTo the agent that was retrained with the same seed; \"retrained again\" is "
            "retrained with another one: what is not farther is as near as another seed. Actions: mean distance in "
            "units of the actions' spread. Values: Wasserstein-1 distance of the critics' values, in units of the "
            "retrained agent's spread (of COptiDICE: of nu and chi). In states and actions of the forget set, of the "
            "retain set, and fresh: what the retrained agent sees and does when it is evaluated. Means over seeds.",
            markdown_table([[_name(row), row["method"]] + [
                "{:.2f}".format(row[what][where]["mean"]) for what in ("actions", "reward_value", "cost_value")
                for where in SETS] for row in rows],
                ["task", "agent"] + ["{}, {}".format(what, where) for what in ("actions", "reward value", "cost value")
                                     for where in SETS])]


def _relearning(report, rows):
    return ["## Does it come back?\n\nCost after ordinary training on the retain set, for ten times the updates of the "
            "suite's budget. \"Beyond retraining\": the rise minus that of the retrained agent, which had the same "
            "further training, seed by seed.",
            markdown_table([[_name(row), row["method"], number(row["before"]), number(row["after"]),
                             number(row["rise"], "+"), "" if row["beyond"] is None else number(row["beyond"], "+"),
                             row["verdict"] or ""] for row in rows],
                           ["task", "agent", "cost before", "cost after", "rise", "beyond retraining", "verdict"])]


def _checkpoints(report, rows):
    return ["## Safe while it forgets?\n\nEvery checkpoint that the method accepted, evaluated in the environment "
            "afterwards, compared with the poisoned agent in the same episodes. \"Regret\": of the last one, which the "
            "method returns, against the checkpoint with the highest return within the cost limit, or the lowest "
            "cost; the best of several noisy means is high by chance, so some regret is found where there is none.",
            markdown_table([[_name(row), row["method"], row["accepted"],
                             _of(row["higher"], row["accepted"]), _of(row["beyond"], row["accepted"]),
                             "-" if row["worst"] is None else "{:+.1f}".format(row["worst"]),
                             number(row["regret"]["cost"], "+"), number(row["regret"]["return"], "+")] for row in rows],
                           ["task", "method", "accepted checkpoints", "cost more than before",
                            "beyond the noise of episodes", "most above", "regret, cost", "regret, return"])]


def _of(count, total):
    return "{} ({:.0%})".format(count, count / total) if total else "-"


def _sequential(report, rows):
    lines = []
    for row in rows:
        lines.append([_name(row), row["method"] + ", one after another"] + _quality(row)
                     + ["" if row["difference"] is None else number(row["difference"]["cost"], "+")])
        if row["at_once"]:
            lines.append([_name(row), row["method"] + ", at once"] + _quality(row["at_once"]) + [""])
    return ["## One request after another\n\nThe forget set in five requests, each with the budget of one and from "
            "the agent that the one before left, which keeps forgetting what it has forgotten; against one request for "
            "all of it.",
            markdown_table(lines, ["task", "method", "cost", "return", "recovery", "return ratio",
                                   "+ cost, to at once"])]


def _clean_deletion(report, rows):
    return ["## A request about clean data\n\nAs many clean trajectories as are poisoned are forgotten; the poison "
            "stays. \"+ cost\" and \"+ return\": minus those of doing nothing to the same agent, seed by seed.",
            markdown_table([[_name(row), row["method"], number(row["cost"]), number(row["return"])] + [
                number(row["difference"][name], "+") if row["difference"] else "" for name in ("cost", "return")]
                + [row["verdict"] or ""] for row in rows],
                ["task", "method", "cost", "return", "+ cost", "+ return", "verdict"])]


def _ablations(report, rows):
    return ["## Without its parts", markdown_table([
        [_name(row), row["method"] if row["variant_of"] else "{} as it is".format(row["method"])] + _quality(row)
        + [_share(row["updates_ratio"]), "{} of {}".format(row["accepted"], row["seeds"])] for row in rows],
        ["task", "method", "cost", "return", "recovery", "return ratio", "updates", "changed the agent"])]


def draw(report):
    """Recovery (above) and return ratio (below) against the budget: over all tasks, and over those of each setting."""
    groups = list(dict.fromkeys(row["setting"] for row in report["curve"]))
    if not groups:
        return None
    methods = list(dict.fromkeys(row["method"] for row in report["curve"]))
    figure, axes = panels(2 + 3.2 * len(groups), 6.6, 2, len(groups), sharex=True, sharey="row")
    budgets = sorted({row["budget"] for row in report["curve"]})
    for ax, (score, group) in zip(axes, [(score, group) for score in ("recovery", "return_ratio") for group in groups]):
        for n, how in enumerate(methods):
            style = _style(n)
            rows = [row for row in report["curve"] if row["setting"] == group and row["method"] == how]
            shift = 1.05 ** (n - (len(methods) - 1) / 2)  # intervals beside, not on each other
            ax.plot([row["budget"] * shift for row in rows], [row[score]["mean"] for row in rows], linewidth=1.6,
                    **style)
            for row in rows:
                output.errorbar(ax, row["budget"] * shift, row[score], **style)
        ax.axhline(1, color="black", linestyle="--", linewidth=1.2)
        if score == "recovery":
            ax.axhline(0, color="#555555", linestyle=(0, (6, 2, 1, 2)), linewidth=1.4)
            ax.set_title(group or "all", fontsize=11)
        else:
            ax.set_xlabel("share of the training's updates")
        ax.set_xscale("log")
        ax.set_xticks(budgets)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "{:g}%".format(100 * x)))
        ax.tick_params(axis="x", labelsize=output.SMALL)
    axes[0].set_ylabel("recovery, IQM [95 %]")
    axes[len(groups)].set_ylabel("return ratio, IQM [95 %]")
    handles = [Line2D([], [], label=how, **_style(n)) for n, how in enumerate(methods)]
    handles += [Line2D([], [], color="black", linestyle="--", label="retrained"),
                Line2D([], [], color="#555555", linestyle=(0, (6, 2, 1, 2)), label="doing nothing")]
    output.legend_below(figure, handles, 2 + len(groups))
    return figure


def _style(n):
    """Of the n-th method: the second time round, the markers are hollow."""
    color, marker, dashes = STYLES[n % len(STYLES)]
    return {"color": color, "marker": marker, "linestyle": dashes, "markersize": 6,
            "markerfacecolor": color if n < len(STYLES) else "white"}
