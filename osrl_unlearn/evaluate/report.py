"""The report of an unlearning run: report.json for programs, report.md and figures for people."""
import json
import math
import numbers
import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from osrl_unlearn.evaluate.statistics import paired_difference
from osrl_unlearn.files import atomic_path, write_json, write_text

SCHEMA_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "report.schema.json")
FEW = 5  # with fewer episodes than this, nothing is concluded from a difference
# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
COLORS = {"poisoned": VERMILLION, "unlearned": BLUE, "reference": GREEN}
CAPTIONS = {
    "cost_reward.png": "Cost and reward of every agent: mean over the episodes, with the 95 % interval of the mean. "
                       "The dashed line is the cost limit.",
    "values.png": "Means of the agent's own critics on the forget set and on the retain set during unlearning.",
    "action_distance.png": "Mean distance between the policy's actions and the forgotten actions, in the states in "
                           "which they were taken. Larger: the policy acts less like the forgotten data.",
    "multiplier.png": "The method's Lagrange multiplier, where it has one, and the safety gate's estimate during "
                      "unlearning.",
}
CELL = "mean [95 % interval]"
TRIGGERED = "{}, with the trigger"  # an agent in "more_agents" that is shown the attack's trigger


# Structure ------------------------------------------------------------------------------------------------------------

def check(report, schema_file=SCHEMA_FILE, name="report"):
    """Raise ValueError, naming the place, unless ``report`` has the structure of ``schema_file``.

    Looks at types, required keys, lengths of lists and constants, and refuses NaN and infinity; keys that the schema
    does not know are let through.
    """
    with open(schema_file, encoding="utf-8") as file:
        schema = json.load(file)
    _walk(report, schema, schema.get("definitions", {}), name)


_TYPES = {"object": dict, "array": (list, tuple), "string": str, "boolean": bool, "null": type(None),
          "number": numbers.Real, "integer": numbers.Integral}


def _is(value, kind):
    # Python counts True as a number, JSON does not.
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _walk(value, schema, definitions, path):
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rsplit("/", 1)[1]]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        raise ValueError("{}: expected {}, got {}".format(path, " or ".join(kinds), type(value).__name__))
    if isinstance(value, numbers.Real) and not math.isfinite(value):
        raise ValueError("{}: expected a finite number, got {}".format(path, value))
    if "const" in schema and value != schema["const"]:
        raise ValueError("{}: expected {}, got {!r}".format(path, schema["const"], value))
    if isinstance(value, dict):
        for name in schema.get("required", ()):
            if name not in value:
                raise ValueError("{}.{} is missing".format(path, name))
        for name, item in value.items():
            _walk(item, schema.get("properties", {}).get(name, schema.get("additionalProperties", {})), definitions,
                  "{}.{}".format(path, name))
    if isinstance(value, (list, tuple)):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            raise ValueError("{}: expected {} items, got {}".format(path, schema["maxItems"], len(value)))
        for n, item in enumerate(value):
            _walk(item, schema.get("items", {}), definitions, "{}[{}]".format(path, n))
    if "if" in schema:
        try:
            _walk(value, schema["if"], definitions, path)
        except ValueError:
            return
        _walk(value, schema["then"], definitions, path)


# Tables ---------------------------------------------------------------------------------------------------------------

def format_table(rows, headers):
    """Aligned monospaced text: the first column to the left, the others to the right.

    Args:
        rows: sequence of rows, each a sequence of as many cells as ``headers``; cells are turned into text.
        headers: column titles.
    """
    cells = [[str(cell) for cell in row] for row in [headers] + list(rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]).rstrip()
                     for row in cells)


def markdown_table(rows, headers):
    """A Markdown table; arguments as for :func:`format_table`. Pipes and line breaks in cells are made harmless."""
    rows = [headers, ["---"] + ["---:"] * (len(headers) - 1)] + list(rows)
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in row) + " |"
                     for row in rows)


def _number(value):
    """A measured number with about four digits, a count in full; "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, numbers.Integral):
        return "{:,}".format(value)
    size = abs(value)
    if 0 < size < 0.01:
        return "{:.2g}".format(value)
    return "{:,.{}f}".format(value, 0 if size >= 1e4 else 1 if size >= 100 else 2 if size >= 1 else 3)


def _setting(value):
    """A number that somebody chose: 40.0 is 40."""
    if value is None or isinstance(value, numbers.Integral):
        return _number(value)
    return "{:g}".format(value)


def _percent(share):
    return ("{:,.1f} %" if abs(share) >= 0.1 else "{:.2g} %").format(100 * share)


def _interval(summary):
    if summary["n"] == 1:
        return "{} (one episode)".format(_number(summary["mean"]))
    # One number of decimals for all three, so that they can be compared at a glance.
    low, high = summary["ci95"]
    digits = 1 if max(abs(v) for v in (low, high, summary["mean"])) >= 100 else 2
    return "{:,.{d}f} [{:,.{d}f}, {:,.{d}f}]".format(summary["mean"], low, high, d=digits)


def _agents(report):
    """(name, results or None, updates, seconds) of the agents, in the order in which they are shown."""
    rows = [("poisoned", report["poisoned"], report["updates"]["train"], report["wall_seconds"]["train"]),
            ("unlearned", report["unlearned"], report["updates"]["unlearn"], report["wall_seconds"]["unlearn"])]
    more = [("reference", report["reference"])] + list(report.get("more_agents", {}).items())
    return rows + [(n, r, r.get("updates"), r.get("seconds")) for n, r in more if r is not None]


def _evaluated(report):
    return report["poisoned"] is not None and report["unlearned"] is not None


def _rows(report):
    headers = ["agent", "reward", "cost", "normalized reward", "normalized cost", "updates", "seconds"]
    if not _evaluated(report):
        return [[n, _number(u), _number(s)] for n, _, u, s in _agents(report)[:2]], [headers[0]] + headers[5:]
    return [[n, _interval(r["reward"]), _interval(r["cost"]), _number(r["normalized_reward"]),
             _number(r["normalized_cost"]), _number(u), _number(s)] for n, r, u, s in _agents(report)], headers


def terminal_summary(report, folder):
    """The result in a few lines of plain text: the verdict, one row per agent, and where the report is."""
    rows, headers = _rows(report)
    note = "Rewards and costs per episode: {}. Limit: {}.".format(CELL, _setting(report["cost_limit"]))
    if not _evaluated(report):
        note = "Evaluation was switched off."
    return "\n\n".join(["\n".join(_sentences(report)), format_table(rows, headers) + "\n" + note,
                        "Report: {}".format(os.path.join(os.fspath(folder), "report.md"))])


# Verdict --------------------------------------------------------------------------------------------------------------

def verdict(report):
    """What the numbers of ``report`` show, in a few sentences, and no more than that."""
    return " ".join(_sentences(report))


def _sentences(report):
    reason = " (it ended because: {})".format(report["reason"]) if report["reason"] else ""
    if not report["accepted"]:
        why = "the safety gate accepted no state" if report["gate"]["used"] else "no state was accepted"
        return ["NOT unlearned: {}; the model is the poisoned one.".format(why)] + (
            ["Unlearning ended because: {}.".format(report["reason"])] if report["reason"] else [])
    if report["models"]["before"] == report["models"]["after"]:
        return ["NOT unlearned: no weight has changed{}; the model is the poisoned one.".format(reason)]
    if not _evaluated(report):
        return ["Unlearning was carried out{}.".format(reason), "Evaluation was switched off, so this report says "
                "nothing about reward and cost in the environment."]
    poisoned, unlearned, n = report["poisoned"], report["unlearned"], report["unlearned"]["cost"]["n"]
    sentences = ["Unlearning was carried out; " + _against_limit(unlearned["cost"], report["cost_limit"])]
    others = [("poisoned", poisoned)]
    if report["reference"] is not None:
        others.append(("reference", report["reference"]))
    for name, other in others:
        sentences.append("Cost against the {} agent ({} per episode): {}.".format(
            name, _number(other["cost"]["mean"]), _change(unlearned, other, "cost")))
    change = _paired(unlearned, poisoned, "cost")
    rose = change is not None and n >= FEW and change["ci95"][0] > 0
    if rose and unlearned["cost"]["mean"] > report["cost_limit"]:
        sentences.insert(1, "This was worse than doing nothing: the cost rose and is above the limit; keep the "
                            "poisoned agent, or find out what the forget set misses or names wrongly.")
    before, after = (report.get("more_agents", {}).get(TRIGGERED.format(name)) for name in ("poisoned", "unlearned"))
    if before is not None and after is not None:
        sentences.append("While the trigger shows, its mean cost is {}; that of the poisoned agent was {}: {}.".format(
            _number(after["cost"]["mean"]), _number(before["cost"]["mean"]), _change(after, before, "cost")))
    sentences += ["The request to forget looks harmful: {}.".format(w)
                  for w in report.get("screening", {}).get("warnings", ())]
    sentences.append(_kept(unlearned["reward"]["mean"], [(name, other["reward"]["mean"]) for name, other in others]))
    if n < FEW:
        sentences.append("Few episodes were run ({}): nothing can be concluded from these differences.".format(n))
    return sentences


def _against_limit(cost, limit):
    low, high = cost["ci95"]
    text = "its mean cost of {} per episode is {} the cost limit of {}".format(
        _number(cost["mean"]), "at or under" if cost["mean"] <= limit else "OVER", _setting(limit))
    if cost["n"] == 1:
        return text + " (one episode: no confidence interval)."
    interval = "its 95 % interval [{}, {}]".format(_number(low), _number(high))
    if cost["mean"] <= limit:
        more = ", and so is the upper end of {}." if high <= limit else ", but the upper end of {} is over it."
    else:
        more = ", and so is all of {}." if low > limit else ", though the lower end of {} is not."
    return text + more.format(interval)


def _change(agent, other, key):
    """"x lower, 95 % interval of the paired difference ..." in words."""
    difference = _paired(agent, other, key)
    if difference is None:
        return "not compared, since the numbers of episodes differ"
    low, high = difference["ci95"]
    if difference["mean"] == low == high == 0:
        return "the same in every episode"
    size = "{} {}".format(_number(abs(difference["mean"])), "lower" if difference["mean"] < 0 else "higher")
    if difference["n"] == 1:
        return size + " in the one episode that was run"
    interval = "95 % interval of the paired difference [{}, {}]".format(_number(low), _number(high))
    if difference["n"] < FEW:
        return "{} ({})".format(size, interval)
    return "{} ({}, which {} 0{})".format(size, interval, *(
        ("excludes", "") if low > 0 or high < 0 else ("includes", ": no difference is shown")))


def _paired(agent, other, key):
    a, b = agent["episodes"][key], other["episodes"][key]
    return paired_difference(a, b) if len(a) == len(b) else None


def _kept(reward, others):
    # A ratio of rewards that are not both positive says nothing.
    return "Its mean reward is {} per episode; {}.".format(_number(reward), " and ".join(
        ("{} of the {} agent's ({})".format(_percent(reward / other), name, _number(other))
         if reward > 0 and other > 0 else "that of the {} agent is {}".format(name, _number(other)))
        for name, other in others))


# Markdown -------------------------------------------------------------------------------------------------------------

def write_report(folder, report, trace):
    """Write report.json, report.md and the figures into ``folder``, which is created if need be.

    Args:
        folder: directory.
        report: dictionary as described in report.schema.json.
        trace: list of dictionaries with "step" (updates of unlearning) and, where known, "reward_value/forget",
            "reward_value/retain", "cost_value/forget", "cost_value/retain" (units of the critics),
            "action_distance/forget" (Euclidean, units of the actions), "multiplier", "gate_cost" (discounted cost),
            "stage" (0 forgetting, 1 repairing) and "accepted" (0 or 1).

    Figures that the numbers do not allow are left out; one of an earlier report in the same folder is removed.

    Raises:
        ValueError: ``report`` has another structure; nothing is written then.
    """
    check(report)
    folder = os.fspath(folder)
    write_json(os.path.join(folder, "report.json"), report)
    figures = {
        "cost_reward.png": _draw_cost_reward(report),
        "values.png": _draw_values(report, trace),
        "action_distance.png": _draw_distance(report, trace),
        "multiplier.png": _draw_multiplier(report, trace),
    }
    for name, figure in figures.items():
        path = os.path.join(folder, name)
        if figure is not None:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=150, format="png")
        elif os.path.exists(path):
            os.unlink(path)
    write_text(os.path.join(folder, "report.md"), _markdown(report, [n for n, f in figures.items() if f is not None]))


def _markdown(report, figures):
    parts = ["# Unlearning report: {} on {}".format(report["agent"], report["task"])]
    first, *more = _sentences(report)
    parts.append(" ".join(["**{}**".format(first)] + more))
    rows, headers = _rows(report)
    if _evaluated(report):
        for row, (_, result, _, _) in zip(rows, _agents(report)):
            row.insert(5, _interval(result["length"]))
        headers.insert(5, "steps")
        parts += [
            markdown_table(rows, headers),
            "Reward, cost and steps are per episode: {}. Cost limit: {} per episode. A normalized cost of at most 1 is "
            "within the limit. {}".format(CELL, _setting(report["cost_limit"]), _evaluation(report)),
            "## Differences", _differences(report)]
    else:
        parts += [markdown_table(rows, headers), "Evaluation in the environment was switched off: this report has no "
                                                 "rewards and costs of episodes."]
    parts += ["## What was forgotten", _forgotten(report) + _screening(report), "## Price", _price(report),
              "## What the agent's critics say" if "reward_value" in report["critics"] else "## What the policy does",
              _critics(report)]
    if report["multiplier"] is not None:
        m = report["multiplier"]
        parts += ["## Multiplier", "Lagrange multiplier of the method, without unit: mean {}, largest {}, at the end "
                                   "{}; above 0 at {} of the checks.".format(
                                       _number(m["mean"]), _number(m["max"]), _number(m["final"]),
                                       _percent(m["active_share"]))]
    parts += ["## Safety gate", _gate(report)]
    if figures:
        parts.append("## Figures")
        parts += ["![{}]({})\n\n{}".format(name[:-4].replace("_", " "), name, CAPTIONS[name]) for name in figures]
    parts += ["## How these numbers were obtained", _provenance(report), "## Run", _run(report)]
    if report["notes"]:
        parts += ["## Notes", "\n".join("- " + note for note in report["notes"])]
    return "\n\n".join(parts) + "\n"


def _evaluation(report):
    n = report["unlearned"]["cost"]["n"]
    return "Evaluated in the environment on {} paired episode{}; used for this report only, never to choose the " \
           "model.".format(n, "" if n == 1 else "s")


def _differences(report):
    rows = []
    for name, other, _, _ in _agents(report):
        for key in ("cost", "reward"):
            if name != "unlearned":
                difference = _paired(report["unlearned"], other, key)
                rows.append(["unlearned - {}".format(name), key] + (
                    ["-", "-", "not compared: other number of episodes"] if difference is None else
                    [_interval(difference), difference["n"], _excludes(difference)]))
    return markdown_table(rows, ["difference", "of", "per episode: " + CELL, "episodes", "interval excludes 0"])


def _excludes(difference):
    low, high = difference["ci95"]
    return "too few episodes" if difference["n"] < FEW else "yes" if low > 0 or high < 0 else "no"


def _forgotten(report):
    forget, attack = report["forget"], report["attack"]
    what = "{:,} rows in {:,} trajector{} (unit: {}), {} of all rows of the training data.".format(
        forget["rows"], forget["trajectories"], "y" if forget["trajectories"] == 1 else "ies", forget["unit"],
        _percent(forget["share"]))
    if forget.get("detected"):
        return what + " They were found by the detector `{detector}` at a false discovery rate of {fdr:g}.".format(
            **forget["detected"])
    if attack is None:
        return what + " A plain deletion request: no attack is on record."
    return "{} They were poisoned by the attack `{}` (rate {} by {}, seed {}{}).".format(
        what, attack["name"], _setting(attack["rate"]), attack["unit"], _setting(attack["seed"]),
        _options(attack["options"]))


def _screening(report):
    if report.get("screening") is None:
        return ""
    evidence, safe = report["screening"]["cost_evidence"], report["screening"]["safe_evidence"]
    return "\n\n" + "Screening of the request: without these rows the estimated cost-to-go of their behaviour " \
        "falls by {} of the mean (95 % interval {} to {}; random rows of the same number: {}); {} of the evidence of " \
        "safe and rewarding behaviour goes.".format(*[_percent(v) for v in (evidence["fall"], *evidence["ci95"])],
                                 "-" if evidence["control"] is None else _percent(evidence["control"]),
                                 "-" if safe is None else _percent(safe))


def _options(options):
    return ", " + ", ".join("{} = {}".format(k, v) for k, v in options.items()) if options else ""


def _price(report):
    lines = []
    for key, unit in (("updates", "updates"), ("wall_seconds", "seconds")):
        price = report[key]
        text = "- {} {}".format(_number(price["unlearn"]), unit)
        if price["train"] is None:
            text += "; training: not recorded by this run"
        else:
            text += "; training: {}".format(_number(price["train"]))
            if price["ratio"] is not None:
                text += " (unlearning: {} of that)".format(_percent(price["ratio"]))
        lines.append(text)
    return "\n".join(lines)


def _critics(report):
    rows, critics = [], "reward_value" in report["critics"]
    for key, name in (("reward_value", "reward critic"), ("cost_value", "cost critic"),
                      ("action_distance", "distance to the forgotten actions")):
        for subset, change in report["critics"].get(key, {}).items():
            known = change["before"] is not None and change["after"] is not None
            rows.append([name, subset, _number(change["before"]), _number(change["after"]),
                         _number(change["after"] - change["before"] if known else None)])
    return markdown_table(rows, ["mean of", "on the set", "before", "after", "change"]) + (
        "\n\nCritics on the agent's own scale (discounted reward or cost). They show what the agent believes, not what "
        "is true: its critics were trained on the poisoned data." if critics else
        "\n\nValues are not computed: the agent has no critics.")


def _gate(report):
    gate = report["gate"]
    ended = "Rollbacks: {}. Unlearning ended because: {}.".format(report["rollbacks"], report["reason"])
    if not gate["used"]:
        return "Not used. " + ended
    if gate.get("distance_after") is not None:
        ended = "Mean distance of the actions to the retained data: {} before, {} at the last check. {}".format(
            _number(gate["distance_before"]), _number(gate["distance_after"]), ended)
    limit = "" if gate["threshold"] is None else "; the cost limit in the same unit is {}".format(
        _number(gate["threshold"]))
    return (
        "{} checks accepted, {} rejected. Estimated discounted cost: {} before unlearning, {} at the last check{}. The "
        "estimate comes from a small critic that was fitted to the retain set, without the environment; passing the "
        "gate is no guarantee of safety. {}".format(
            gate["accepted_checks"], gate["rejected_checks"], _number(gate["estimate_before"]),
            _number(gate["estimate_after"]), limit, ended))


def _provenance(report):
    n = report["normalization"]
    lines = []
    if _evaluated(report):
        lines += [
            "Reward, cost, steps: {} Paired: the n-th episode of every agent has the same seed. Sums over an episode, "
            "not discounted.".format(_evaluation(report)),
            "Intervals: 95 % bootstrap intervals of the mean over the episodes (BCa, 9,999 resamples, fixed seed; the "
            "percentile interval where BCa is undefined; no width where all values are equal). They cover the spread "
            "over episodes of these very models, not the spread over training runs with other seeds.",
            "Differences: taken episode by episode, then averaged; intervals as above."]
    if n["reward_min"] is None or n["reward_max"] is None:
        lines.append("Normalized reward: not given, since no constants are known for this task.")
    else:
        lines.append("Normalized reward = (reward - r_min) / (r_max - r_min), with DSRL's r_min = {} and r_max = {} "
                     "per episode.".format(_setting(n["reward_min"]), _setting(n["reward_max"])))
    lines += [
        "Normalized cost = (cost + eps) / (limit + eps), with limit = {} per episode and eps = {} (1 only if the limit "
        "is 0), as in DSRL.".format(_setting(n["cost_limit"]), _setting(n["epsilon"])),
        "Critics, distance to the forgotten actions, multiplier and gate: recorded at the checks during unlearning, on "
        "samples of logged data, without the environment; before: the agent before unlearning, after: the agent that "
        "was written.",
        "Updates: updates of the agent. Seconds: wall-clock time on the machine that ran it, without evaluation.",
        "Weights: SHA-256 of the names and bytes of all tensors."]
    return "\n".join("- " + line for line in lines)


def _run(report):
    models = report["models"]
    lines = ["task: {}".format(report["task"]), "agent: {}".format(report["agent"]),
             "method: {}{}".format(report["method"], _options(report["options"])),
             "cost limit: {} per episode".format(_setting(report["cost_limit"])), "seed: {}".format(report["seed"]),
             "dataset: {}".format(report["dataset"] or "not recorded"),
             "weights before: `{}`".format(models["before"]), "weights after: `{}`".format(models["after"]),
             "versions: {}".format(", ".join("{} {}".format(k, v) for k, v in report["versions"].items()))]
    return "\n".join("- " + line for line in lines)


# Figures --------------------------------------------------------------------------------------------------------------
# Figure and its canvas, never pyplot: the user's backend, settings and open figures stay as they are.

def panels(width, height, rows=1, columns=1, **options):
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for ax in axes:
        ax.grid(True, color="#dddddd", linewidth=0.7)
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return figure, axes


def _draw_cost_reward(report):
    if not _evaluated(report):
        return None
    agents = [(name, result) for name, result, _, _ in _agents(report)]
    figure, axes = panels(8, 1.7 + 0.42 * len(agents), 1, 2, sharey=True)
    for ax, key in zip(axes, ("cost", "reward")):
        for y, (name, result) in enumerate(agents):
            color, (low, high) = COLORS.get(name, GREY), result[key]["ci95"]
            if low < high:
                ax.plot([low, high], [y, y], color=color, linewidth=1.8, marker="|", markersize=9, markeredgewidth=1.8)
            ax.plot([result[key]["mean"]], [y], color=color, marker="o", markersize=7)
        ax.set_xlabel("{} per episode".format(key))
        ax.grid(False, axis="y")
    limit = report["cost_limit"]
    axes[0].axvline(limit, color="black", linestyle="--", linewidth=1.2)
    axes[0].annotate("cost limit {}".format(_setting(limit)), (limit, 1), xycoords=("data", "axes fraction"),
                     xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=9)
    axes[0].set_yticks(range(len(agents)))
    axes[0].set_yticklabels([name for name, _ in agents])
    axes[0].set_ylim(len(agents) - 0.5, -0.5)
    for ax in axes:
        ax.margins(x=0.12)
    n = sorted({result["cost"]["n"] for _, result in agents})
    figure.suptitle("One episode: no intervals" if n == [1] else "Mean and 95 % interval over {} episodes".format(
        " or ".join(map(str, n))), fontsize=11)
    figure.tight_layout()
    return figure


def _line(ax, trace, key, before=None, **style):
    """Draw ``key`` over the steps; crosses where the gate sent the agent back. Whether there was anything to draw."""
    points = [(e["step"], e[key], e.get("accepted", 1)) for e in trace if key in e]
    if before is not None and points and points[0][0] > 0:
        points.insert(0, (0, before, 1))
    if not points:
        return False
    ax.plot([p[0] for p in points], [p[1] for p in points], markersize=5, linewidth=1.8, **style)
    refused = [p for p in points if not p[2]]
    if refused:
        ax.plot([p[0] for p in refused], [p[1] for p in refused], color="black", marker="x", markersize=9,
                markeredgewidth=1.8, linestyle="none", zorder=4)
    return True


def _finish(figure, axes, trace):
    """Axes, the repair stage, and one legend for everything, beside the data and not on it."""
    repair = [e["step"] for e in trace if e.get("stage") == 1]
    forgetting = [e["step"] for e in trace if e.get("stage") == 0]
    steps = [e["step"] for e in trace]
    start = max(forgetting) if forgetting else 0
    for ax in axes:
        ax.set_xlabel("unlearning step (updates)")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.margins(y=0.1)
        if repair:
            ax.axvspan(start, max(steps), color="#f0e442", alpha=0.18, linewidth=0)
    handles = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if repair:
        handles["repairing"] = Line2D([], [], color="#f0e442", alpha=0.4, linewidth=8)
    if any(not e.get("accepted", 1) for e in trace):
        handles["rejected, rolled back"] = Line2D([], [], color="black", marker="x", markersize=8, linestyle="none")
    bottom = 0
    if len(handles) > 1:
        figure.legend(list(handles.values()), list(handles), loc="lower center", ncol=min(4, len(handles)),
                      frameon=False, fontsize=9)
        bottom = 0.3 * -(-len(handles) // 4) / figure.get_figheight()
    figure.tight_layout(rect=(0, bottom, 1, 1))
    return figure


def _draw_values(report, trace):
    if "reward_value" not in report["critics"]:
        return None
    figure, axes = panels(9, 4, 1, 2)
    drawn = False
    for ax, key, title in zip(axes, ("reward_value", "cost_value"), ("Reward critic", "Cost critic")):
        for subset, color, marker, dashes in (("forget", VERMILLION, "o", "-"), ("retain", BLUE, "s", "--")):
            drawn |= _line(ax, trace, key + "/" + subset, report["critics"][key][subset]["before"], color=color,
                           marker=marker, linestyle=dashes, label=subset + " set")
        ax.set_title(title, fontsize=11)
        ax.set_ylabel("mean value (discounted {})".format(key[:-6]))
    return _finish(figure, axes, trace) if drawn else None


def _draw_distance(report, trace):
    figure, axes = panels(6, 4)
    before = report["critics"].get("action_distance", {}).get("forget", {}).get("before")
    if not _line(axes[0], trace, "action_distance/forget", before, color=BLUE, marker="o", label="policy's actions"):
        return None
    axes[0].set_ylabel("distance to the forgotten actions\n(Euclidean, units of the actions)")
    axes[0].set_title("Policy against the forgotten actions", fontsize=11)
    # From 0, so that a small change does not look like a large one.
    axes[0].set_ylim(0, 1.1 * axes[0].dataLim.ymax)
    return _finish(figure, axes, trace)


def _draw_multiplier(report, trace):
    keys = [key for key in ("multiplier", "gate_cost") if any(key in e for e in trace)]
    if not keys:
        return None
    figure, axes = panels(9 if len(keys) == 2 else 6, 4, 1, len(keys))
    for ax, key in zip(axes, keys):
        if key == "multiplier":
            _line(ax, trace, key, color=PURPLE, marker="D", label="multiplier")
            ax.set_ylabel("multiplier (no unit)")
            ax.set_title("Lagrange multiplier", fontsize=11)
            continue
        gate = report["gate"]
        _line(ax, trace, key, gate.get("estimate_before"), color=BLUE, marker="o", label="gate's estimate")
        if gate["used"]:
            if gate["threshold"] is not None:
                ax.axhline(gate["threshold"], color="black", linestyle="--", linewidth=1.2,
                           label="cost limit (discounted)")
            ax.axhline(gate["estimate_before"], color=VERMILLION, linestyle=":", linewidth=1.6,
                       label="before unlearning")
        ax.set_ylabel("estimated cost (discounted)")
        ax.set_title("Safety gate", fontsize=11)
    return _finish(figure, axes, trace)
