"""The report of an unlearning run as Markdown."""
from osrl_unlearn.evaluate.figures import CAPTIONS
from osrl_unlearn.evaluate.tables import interval, markdown_table, number, percent, setting
from osrl_unlearn.evaluate.verdict import FEW, agents_of, evaluated, paired, sentences_of

CELL = "mean [95 % interval]"


def agent_rows(report):
    headers = ["agent", "reward", "cost", "normalized reward", "normalized cost", "updates", "seconds"]
    if not evaluated(report):
        return [[n, number(u), number(s)] for n, _, u, s in agents_of(report)[:2]], [headers[0]] + headers[5:]
    return [[n, interval(r["reward"]), interval(r["cost"]), number(r["normalized_reward"]),
             number(r["normalized_cost"]), number(u), number(s)] for n, r, u, s in agents_of(report)], headers


def markdown(report, figures):
    parts = ["# Unlearning report: {} on {}".format(report["agent"], report["task"])]
    first, *more = sentences_of(report)
    parts.append(" ".join(["**{}**".format(first)] + more))
    rows, headers = agent_rows(report)
    if evaluated(report):
        for row, (_, result, _, _) in zip(rows, agents_of(report)):
            row.insert(5, interval(result["length"]))
        headers.insert(5, "steps")
        parts += [
            markdown_table(rows, headers),
            "Reward, cost and steps are per episode: {}. Cost limit: {} per episode. A normalized cost of at most 1 is "
            "within the limit. {}".format(CELL, setting(report["cost_limit"]), _evaluation(report)),
            "## Differences", _differences(report)]
    else:
        parts += [markdown_table(rows, headers), "Evaluation in the environment was switched off: this report has no "
                                                 "rewards and costs of episodes."]
    parts += ["## What was forgotten", forgotten_text(report), *screening_lines(report), "## Price",
              bullets(price_lines(report)),
              "## What the agent's critics say" if "reward_value" in report["critics"] else "## What the policy does",
              _critics(report)]
    if report["multiplier"] is not None:
        m = report["multiplier"]
        parts += ["## Multiplier", "Lagrange multiplier of the method, without unit: mean {}, largest {}, at the end "
                                   "{}; above 0 at {} of the checks.".format(
                                       number(m["mean"]), number(m["max"]), number(m["final"]),
                                       percent(m["active_share"]))]
    parts += ["## Safety gate", gate_text(report)]
    if figures:
        parts.append("## Figures")
        parts += ["![{}]({})\n\n{}".format(name[:-4].replace("_", " "), name, CAPTIONS[name]) for name in figures]
    parts += ["## How these numbers were obtained", bullets(provenance_lines(report)), "## Run",
              bullets(run_lines(report))]
    if report["notes"]:
        parts += ["## Notes", bullets(report["notes"])]
    return "\n\n".join(parts) + "\n"


def bullets(lines):
    """A Markdown list."""
    return "\n".join("- " + line for line in lines)


def _evaluation(report):
    n = report["unlearned"]["cost"]["n"]
    return "Evaluated in the environment on {} paired episode{}; used for this report only, never to choose the " \
           "model.".format(n, "" if n == 1 else "s")


def _differences(report):
    rows = []
    for name, other, _, _ in agents_of(report):
        for key in ("cost", "reward"):
            if name != "unlearned":
                difference = paired(report["unlearned"], other, key)
                rows.append(["unlearned - {}".format(name), key] + (
                    ["-", "-", "not compared: other number of episodes"] if difference is None else
                    [interval(difference), difference["n"], _excludes(difference)]))
    return markdown_table(rows, ["difference", "of", "per episode: " + CELL, "episodes", "interval excludes 0"])


def _excludes(difference):
    low, high = difference["ci95"]
    return "too few episodes" if difference["n"] < FEW else "yes" if low > 0 or high < 0 else "no"


def forgotten_text(report):
    """What was forgotten, and how it came to be named."""
    forget, attack = report["forget"], report["attack"]
    what = "{:,} rows in {:,} trajector{} (unit: {}), {} of all rows of the training data.".format(
        forget["rows"], forget["trajectories"], "y" if forget["trajectories"] == 1 else "ies", forget["unit"],
        percent(forget["share"]))
    if forget.get("detected"):
        return what + " They were found by the detector `{detector}` at a false discovery rate of {fdr:g}.".format(
            **forget["detected"])
    if attack is None:
        return what + " A plain deletion request: no attack is on record."
    return "{} They were poisoned by the attack `{}` (rate {} by {}, seed {}{}).".format(
        what, attack["name"], setting(attack["rate"]), attack["unit"], setting(attack["seed"]),
        _options(attack["options"]))


def screening_lines(report):
    """What the screening of the request says: a list of one paragraph, or none."""
    if report.get("screening") is None:
        return []
    evidence, safe = report["screening"]["cost_evidence"], report["screening"]["safe_evidence"]
    sign = 1 if evidence["fall"] >= 0 else -1
    low, high = sorted(sign * end for end in evidence["ci95"])
    return ["Screening of the request: without these rows the estimated cost-to-go of their behaviour {} by {} of the "
            "mean (95 % interval {} to {}; untouched trajectories of as many rows: {}); a large fall would be "
            "alarming, since the rows then say what is unsafe. {} of the evidence of safe and rewarding behaviour goes."
            .format(
                "falls" if sign > 0 else "rises", percent(sign * evidence["fall"]), percent(low), percent(high),
                "-" if evidence["control"] is None else percent(sign * evidence["control"]),
                "-" if safe is None else percent(safe))]


def _options(options):
    return ", " + ", ".join("{} = {}".format(k, v) for k, v in options.items()) if options else ""


def price_lines(report):
    """Updates and seconds, and what training took."""
    lines = []
    for key, unit in (("updates", "updates"), ("wall_seconds", "seconds")):
        price = report[key]
        text = "{} {}".format(number(price["unlearn"]), unit)
        if price["train"] is None:
            text += "; training: not recorded by this run"
        else:
            text += "; training: {}".format(number(price["train"]))
            if price["ratio"] is not None:
                text += " (unlearning: {} of that)".format(percent(price["ratio"]))
        lines.append(text)
    return lines


def _critics(report):
    return markdown_table(*critic_rows(report)) + "\n\n" + critics_text(report)


def critics_text(report):
    """What the agent's critics can say."""
    if "reward_value" not in report["critics"]:
        return "Values are not computed: the agent has no critics."
    return ("Critics on the agent's own scale (discounted reward or cost). They show what the agent believes, not what "
            "is true: its critics were trained on the poisoned data.")


def critic_rows(report):
    """(rows, headers): means of the critics, and the distance to the forgotten actions, before and after."""
    rows = []
    for key, name in (("reward_value", "reward critic"), ("cost_value", "cost critic"),
                      ("action_distance", "distance to the forgotten actions")):
        for subset, change in report["critics"].get(key, {}).items():
            known = change["before"] is not None and change["after"] is not None
            rows.append([name, subset, number(change["before"]), number(change["after"]),
                         number(change["after"] - change["before"] if known else None)])
    return rows, ["mean of", "on the set", "before", "after", "change"]


def gate_text(report):
    """What the safety gate did, and why unlearning ended."""
    gate = report["gate"]
    ended = "Rollbacks: {}. Unlearning ended because: {}.".format(report["rollbacks"], report["reason"])
    if not gate["used"]:
        return "Not used. " + ended
    if gate.get("distance_after") is not None:
        ended = "Mean distance of the actions to the retained data: {} before, {} at the last check. {}".format(
            number(gate["distance_before"]), number(gate["distance_after"]), ended)
    limit = "" if gate["threshold"] is None else "; the cost limit in the same unit is {}".format(
        number(gate["threshold"]))
    return (
        "{} checks accepted, {} rejected. Estimated discounted cost: {} before unlearning, {} at the last check{}. The "
        "estimate comes from a small critic that was fitted to the retain set, without the environment; passing the "
        "gate is no guarantee of safety. {}".format(
            gate["accepted_checks"], gate["rejected_checks"], number(gate["estimate_before"]),
            number(gate["estimate_after"]), limit, ended))


def provenance_lines(report):
    """How the numbers were obtained, and what they do not cover."""
    n = report["normalization"]
    lines = []
    if evaluated(report):
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
                     "per episode.".format(setting(n["reward_min"]), setting(n["reward_max"])))
    lines += [
        "Normalized cost = (cost + eps) / (limit + eps), with limit = {} per episode and eps = {} (1 only if the limit "
        "is 0), as in DSRL.".format(setting(n["cost_limit"]), setting(n["epsilon"])),
        "Critics, distance to the forgotten actions, multiplier and gate: recorded at the checks during unlearning, on "
        "samples of logged data, without the environment; before: the agent before unlearning, after: the agent that "
        "was written.",
        "Updates: updates of the agent. Seconds: wall-clock time on the machine that ran it, without evaluation.",
        "Weights: SHA-256 of the names and bytes of all tensors."]
    return lines


def run_lines(report):
    """What was run, with which settings, weights and versions."""
    models = report["models"]
    return ["task: {}".format(report["task"]), "agent: {}".format(report["agent"]),
            "method: {}{}".format(report["method"], _options(report["options"])),
            "cost limit: {} per episode".format(setting(report["cost_limit"])), "seed: {}".format(report["seed"]),
            "dataset: {}".format(report["dataset"] or "not recorded"),
            "weights before: `{}`".format(models["before"]), "weights after: `{}`".format(models["after"]),
            "versions: {}".format(versions_text(report["versions"]))]


def versions_text(versions):
    """Packages and their versions, in one line."""
    return ", ".join("{} {}".format(name, version) for name, version in versions.items())
