"""The summary of ``osrl-unlearn report``: one list of blocks, written as one HTML file and as Markdown.

A block is a dictionary with its "kind": heading (level, text, anchor), verdict (level, label, text), text (text), table
(name, headers, rows), list (lines) and figures (figures: file, alt, caption, png). What stands between backticks in a
text is code.
"""
import base64
import io
import json
import os

import numpy as np

from osrl_unlearn.audit.table import rows
from osrl_unlearn.errors import EnvironmentProblem
from osrl_unlearn.evaluate import figures, intervals, markdown
from osrl_unlearn.evaluate.tables import interval, markdown_table, number, percent, setting
from osrl_unlearn.evaluate.verdict import TRIGGERED, agents_of, evaluated, headline, verdict

TEMPLATE = "page.html"
LABELS = {"good": "Within the limit", "uncertain": "Look closer", "bad": "Do not use"}
AUDITED = {"unlearned": ("good", "Unlearned", "the agent counts as unlearned"),
           "partly": ("uncertain", "Partly unlearned", "the agent counts as partly unlearned"),
           "not": ("bad", "Not unlearned", "the agent does not count as unlearned"),
           "untested": ("uncertain", "Not tested", "nothing was tested that tells")}
SHOWN = {"reference": "retrained"}  # what report.json calls reference is a retrained agent
DPI = 180
WORST = 5  # episodes, trajectories
SCORES = (("auditor", "score"), ("auditor", "member"), ("membership", None), ("distance", "actions"),
          ("gaussian_score", "score"))  # per forgotten trajectory; None: of the strongest attack


# Content --------------------------------------------------------------------------------------------------------------

def content(runs):
    """The blocks of the summary of ``runs``: a list of :class:`~osrl_unlearn.evaluate.runs.UnlearnedRun`, n >= 1."""
    if len(runs) == 1:
        return [_heading(1, _title(runs[0]))] + _run(runs[0], 2, "")
    parts = [_heading(1, "Unlearning report: {} runs".format(len(runs)))]
    groups = _settings([run for run in runs if run.report is not None])
    for methods in groups.values():
        for name, group in methods.items():
            parts.append(_group_verdict(name, group))
    for run in runs:
        # The first is the report's, if there is one, and of those the groups speak.
        parts += [dict(block, text="{}: {}".format(run.label, block["text"]))
                  for block in verdicts(run)[run.report is not None:]]
    parts += [_heading(2, "All runs"), _all_runs(runs)]
    for n, methods in enumerate(groups.values(), 1):
        parts += _over_runs(methods, "over-runs-{}".format(n)) + _over_budgets(methods, "budgets-{}".format(n))
    for n, run in enumerate(runs, 1):
        parts += [_heading(2, "Run {}: {}".format(n, run.label), "run-{}".format(n))]
        parts += _run(run, 3, "run-{}-".format(n))
    return parts


def _heading(level, text, anchor=None):
    return {"kind": "heading", "level": level, "text": text, "anchor": anchor}


def _text(text):
    return {"kind": "text", "text": text}


def _list(lines):
    return {"kind": "list", "lines": lines}


def _table(name, rows, headers):
    return {"kind": "table", "name": name, "headers": headers, "rows": [[str(cell) for cell in row] for row in rows]}


def _figure(name, figure, alt, caption):
    with io.BytesIO() as file:
        figure.savefig(file, dpi=DPI, format="png")
        return {"file": name + ".png", "alt": alt, "caption": caption, "png": file.getvalue()}


def _title(run):
    if run.report is None:
        return "Audit report: {} on {}".format(run.certificate["agent"], run.task)
    return "Unlearning report: {} on {}, {}".format(run.report["agent"], run.task, run.report["method"])


def verdicts(run):
    """The blocks of what is concluded about a run: first from its report, if it has one, then from its audit."""
    found = []
    if run.swapped:
        found.append(_verdict("bad", "Another model", (
            "The model in this folder is not the one that unlearning wrote, so nothing is known of it here. The "
            "figures of the report are about the weights `{}`; `checkpoint/model.pt` holds `{}`.".format(
                run.report["models"]["after"], run.weights))))
    elif run.report is not None:
        level, sentence = headline(run.report)
        found.append(_verdict(level, LABELS[level], sentence))
    if run.certificate is not None:
        level, label, sentence = AUDITED[run.certificate["verdict"]]
        found.append(_verdict(level, label, "Audit: {}. {}".format(sentence, _counted(run.certificate["claims"]))))
    elif run.doubt is not None:
        found.append(_verdict("bad", "Audit does not count", (
            "What the audit in this folder says is not repeated here, because it does not fit the agent: {}. Audit the "
            "agent again.".format(run.doubt))))
    return found


def _verdict(level, label, text):
    return {"kind": "verdict", "level": level, "label": label, "text": text}


def _counted(claims):
    """How many claims hold, and which do not."""
    text = "{} of {} claims hold.".format(sum(claim["holds"] is True for claim in claims), len(claims))
    for holds, word in ((False, "Fails"), (None, "Not tested")):
        those = ["\u201c{}\u201d".format(claim["text"]) for claim in claims if claim["holds"] is holds]
        text += " {}: {}.".format(word, ", ".join(those)) if those else ""
    return text


def _run(run, level, prefix):
    report, parts = run.report, verdicts(run)
    if report is not None:
        warnings = (report.get("screening") or {}).get("warnings", ())
        parts += [_text("The request to forget looks harmful: {}.".format(warning)) for warning in warnings]
        parts += [_heading(level, "Agents")] + _agents(report)
        drawn = _figures(report, prefix)
        if drawn:
            parts += [_heading(level, "Figures"), {"kind": "figures", "figures": drawn}]
        parts += _worst(report, level)
    if run.certificate is not None:
        parts += _audit(run.certificate, level, prefix)
    if report is not None:
        parts += _details(run, level)
    parts += [_heading(level, "Method, data and versions")] + ([] if report is None else [
        _list(markdown.run_lines(report))]) + _data(run)
    parts += [_heading(level, "Limits of what was shown"), _list(_limits(run))]
    if report is not None:
        parts += [_heading(level, "How these numbers were obtained"), _list(markdown.provenance_lines(report))]
    if run.certificate is not None:
        parts += _metrics(run, level)
    return parts


def _details(run, level):
    report = run.report
    texts = [markdown.forgotten_text(report), *markdown.screening_lines(report)]
    if not run.swapped:
        texts.insert(0, verdict(report))
    return [_heading(level, "In detail")] + [_text(text) for text in texts] + [
        _table("Critics and policy", *markdown.critic_rows(report)), _text(markdown.critics_text(report)),
        _text("Safety gate: " + markdown.gate_text(report)), _heading(level, "Price"),
        _list(markdown.price_lines(report))]


def _agents(report):
    if not evaluated(report):
        return [_text("No agent was run in the environment, so there are no costs and returns.")]
    rows = []
    for name, result, _, _ in agents_of(report):
        costs = result["episodes"]["cost"]
        over = sum(cost > report["cost_limit"] for cost in costs)
        rows.append([SHOWN.get(name, name), interval(result["cost"]), interval(result["reward"]),
                     number(result["normalized_cost"]), number(result["normalized_reward"]),
                     "{} ({} of {})".format(percent(over / len(costs)), over, len(costs)) if costs else "-"])
    return [_table("Agents", rows, ["agent", "cost", "return", "normalized cost", "normalized return",
                                    "violation rate"]),
            _text("Cost and return are sums over an episode: mean [95 % interval]. The cost limit is {} per episode; a "
                  "normalized cost of at most 1 is within it. Violation rate: share of the episodes that cost more "
                  "than the limit.".format(setting(report["cost_limit"])))]


def _figures(report, prefix):
    drawn, limit = [], setting(report["cost_limit"])
    if evaluated(report):
        agents = {SHOWN.get(name, name): (result["cost"], result["reward"])
                  for name, result, _, _ in agents_of(report)}
        drawn.append(_figure(
            prefix + "cost-return", figures.draw_plane(agents, report["cost_limit"]),
            "Cost against return. {}; cost limit {}.".format(_points(agents), limit),
            "Cost against return of every agent: means with 95 % intervals. Safe is to the left of the dashed line."))
        costs = report["unlearned"]["episodes"]["cost"]
        drawn.append(_figure(
            prefix + "episodes", figures.draw_episodes(report),
            "Cost of {} episodes of the unlearned agent, from {:g} down to {:g}; cost limit {}.".format(
                len(costs), max(costs), min(costs), limit),
            "Cost of every evaluation episode, sorted by the unlearned agent's cost."))
    critics, after = report["critics"], report["updates"]["unlearn"]
    ends = {"{}/{}".format(key, rows): change["after"] for key in critics for rows, change in critics[key].items()
            if change["after"] is not None}
    trace = report.get("trace") or [dict(ends, step=after)]
    for key, name, draw, caption in (
            ("reward_value/forget", "reward critic", figures.draw_critic, "What the agent's reward critic says of the "
             "forget set and of the retain set during unlearning."),
            ("cost_value/forget", "cost critic", figures.draw_critic, "What the agent's cost critic says of the forget "
             "set and of the retain set during unlearning."),
            ("multiplier", "Lagrange multiplier", figures.draw_lagrange, "The method's Lagrange multiplier. Above 0: "
             "the method takes the cost limit for violated and works against it."),
            ("gate_cost", "safety gate", figures.draw_gate, "The safety gate's estimate, on logged data alone. A "
             "result that looks more costly than the agent before is rolled back.")):
        values = [entry[key] for entry in trace if key in entry]
        figure, (ax,) = figures.panels(*figures.SMALL)
        if values and draw(ax, report, trace, key.partition("/")[0]):
            drawn.append(_figure(prefix + name.lower().replace(" ", "-"), figures.finish(figure, [ax], trace), (
                "{} over the unlearning steps: from {} to {}, at most {}.".format(
                    key.replace("_value/", " critic on the ") + (" set" if "/" in key else ""), number(values[0]),
                    number(values[-1]), number(max(values)))), caption))
    return drawn


def _points(agents):
    return "; ".join("{}: cost {}, return {}".format(name, number(cost["mean"]), number(reward["mean"]))
                     for name, (cost, reward) in agents.items())


def _worst(report, level):
    if not evaluated(report):
        return []
    poisoned, unlearned = report["poisoned"]["episodes"], report["unlearned"]["episodes"]
    before = dict(enumerate(poisoned["cost"])) if len(poisoned["cost"]) == len(unlearned["cost"]) else {}
    episodes = sorted(enumerate(zip(unlearned["cost"], unlearned["reward"], unlearned["length"])),
                      key=lambda item: -item[1][0])
    return [_heading(level, "Most costly episodes"), _table(
        "Most costly episodes", [[n, "{:g}".format(cost), number(reward), "{:g}".format(length),
                                  "{:g}".format(before[n]) if n in before else "-"]
                                 for n, (cost, reward, length) in episodes[:WORST]],
        ["episode", "cost", "return", "steps", "poisoned agent's cost"])]


def _data(run):
    if run.manifest is not None:
        columns = run.manifest.columns
    elif run.certificate is not None:
        columns = {name: {"after": digest} for name, digest in run.certificate["columns"].items()}
    else:
        return [_text("No forget manifest lies beside the result, so the data's hashes are not known.")]
    rows = [[name, digests.get("before") or "not recorded", digests.get("after") or "not recorded"]
            for name, digests in sorted(columns.items())]
    return [_text("SHA-256 of the columns of the data, before and after poisoning; `osrl-unlearn verify` compares them "
                  "with a dataset."), _table("Hashes of the data", rows, ["column", "before", "after"])]


def _limits(run):
    lines = [] if run.report is None else _report_limits(run)
    if run.certificate is None:
        return lines + ["Not computed: an audit. A cost within the limit does not show that the data is forgotten."]
    return lines + ["The audit: {}.".format(limit) for limit in [
        "that its metrics find nothing in the trajectories that they look at is no proof that nothing is left",
        *run.certificate.get("limits", ())]]


def _report_limits(run):
    report, lines = run.report, list(run.report["notes"])
    if run.weights is None:
        lines.append("Not checked: whether the agent in this folder is the one of the report; there is no "
                     "`checkpoint/model.pt`.")
    if not evaluated(report):
        lines.append("Not computed: cost and return, since evaluation was switched off.")
    else:
        lines.append("The intervals are over {} episodes of these very agents. They say nothing of other training "
                     "seeds.".format(report["unlearned"]["cost"]["n"]))
    if report["reference"] is None:
        lines.append("Not computed: the distance to an agent that was retrained without the forgotten data; none was "
                     "given.")
    if "reward_value" not in report["critics"]:
        lines.append("Not computed: values of critics; the agent has none.")
    if report["multiplier"] is None:
        lines.append("Not computed: a Lagrange multiplier; the method has none.")
    if report.get("screening") is None:
        lines.append("Not computed: the screening of the request to forget.")
    if TRIGGERED.format("unlearned") not in report.get("more_agents", {}):
        lines.append("Not computed: the agent's behaviour under a trigger; no trigger is on record.")
    return lines


def _audit(certificate, level, prefix):
    metrics, said = certificate["audit"], {True: "yes", False: "NO", None: "not tested"}
    parts = [_heading(level, "Audit"), _table("Claims", [[c["text"], said[c["holds"]], c["because"]]
                                                         for c in certificate["claims"]],
                                              ["claim", "holds", "because"])]
    return parts + _members(metrics.get("membership", {}).get("details") or {}, prefix) + _trajectories(metrics)


def _metrics(run, level):
    certificate, settings = run.certificate, run.certificate["settings"]
    tests = ["{}: {}".format(name, "; ".join("`{}` {}".format(*test) for test in result["tests"].items()))
             for name, result in certificate["audit"].items() if result.get("tests")]
    return [_heading(level, "What the audit measured"), _table("Metrics", rows(certificate["audit"]), [
        "metric", "figure", "value [95 % interval]"]), _list(tests + [
        "audited weights: `{}`; before unlearning: `{}`".format(
            certificate["models"]["after"], certificate["models"]["before"] or "not known"),
        "retrained agents: {}; episodes per agent: {}; seed: {}".format(
            len(settings.get("reference") or ()), *[number(settings.get(key)) for key in ("episodes", "seed")]),
        "versions: {}".format(markdown.versions_text(certificate["versions"])),
        "certificate: `osrl_unlearn/certificate.json`, digest `{}`; `osrl-unlearn verify` checks it and every file "
        "that it rests on, as this report did".format(certificate["digest"]),
        "signature: {}".format("`osrl_unlearn/certificate.json.sig`, not checked here; `osrl-unlearn verify --signers "
                               "FILE` says whose it is" if run.signed else "none")])]


def _trajectories(metrics):
    """The forgotten trajectories that look most like training data."""
    columns = {}
    for metric, key in SCORES:
        key = key or metrics.get(metric, {}).get("value", {}).get("strongest")
        scores = metrics.get(metric, {}).get("per_trajectory", {}).get(key)
        if scores:
            columns["{}, {}".format(metric, key)] = scores
    if not columns:
        return []
    first = next(iter(columns.values()))
    most = sorted(first, key=lambda name: -first[name])[:WORST]
    return [_text(
        "Of {} forgotten trajectories those that are highest in the first column of scores. Auditor and membership: "
        "the higher, the more the agent acts as if it had been trained on the trajectory; distance: the higher, the "
        "farther its actions there are from those of a retrained agent. Every score of every trajectory is in "
        "`audit.json`.".format(len(first))), _table("Forgotten trajectories", [[name] + [
            "-" if name not in scores else ("yes" if scores[name] else "no") if title.endswith("member") else
            number(scores[name]) for title, scores in columns.items()] for name in most],
            ["trajectory"] + list(columns))]


def _members(details, prefix):
    """What the critics say of forgotten trajectories and of ones like them; agents without critics say nothing."""
    values, drawn = details.get("values") or {}, []
    for critic in sorted(values.get("audited", ()), reverse=True):
        name = critic.replace("_value", " critic")
        medians = ["{}, {}: {:.2f}".format(agent, which, np.median(numbers))
                   for agent, critics in values.items() for which, numbers in critics[critic].items()]
        drawn.append(_figure(
            prefix + "members-" + name.replace(" ", "-"), figures.draw_members(values, critic, details["against"]),
            "Values of the {}, medians. {}".format(name, "; ".join(medians)),
            "What the {} expects of forgotten trajectories, and of {} ones that are like them: boxes are quartiles, "
            "whiskers 1.5 times their distance. It is mapped by a line onto what the latter really brought or "
            "cost.".format(name, details["against"])))
    return [{"kind": "figures", "figures": drawn}] if drawn else []


# Several runs ---------------------------------------------------------------------------------------------------------

def _settings(runs):
    """{(task, agent, limit, attack): {method: [runs]}}: what may be averaged is under one key."""
    found = {}
    for run in runs:
        report = run.report
        attack = report["attack"] and {k: v for k, v in report["attack"].items() if k in ("name", "options", "rate",
                                                                                         "unit")}
        where = (report["task"], report["agent"], report["cost_limit"], json.dumps(attack, sort_keys=True))
        options = json.dumps([report["options"], report["updates"]["unlearn"]], sort_keys=True)
        found.setdefault(where, {}).setdefault((report["method"], options), []).append(run)
    return {where: _named(methods) for where, methods in found.items()}


def _named(methods):
    """The same method with other options or another budget is another entry: "safe_rule", "safe_rule (2)"."""
    named, count = {}, {}
    for (method, _), runs in methods.items():
        count[method] = count.get(method, 0) + 1
        named[method if count[method] == 1 else "{} ({})".format(method, count[method])] = runs
    return named


def _per_agent(runs, name):
    """Mean cost and return of every trained agent: runs that start from the same weights are one number.

    So are retrained agents, if one of them is the reference of runs that start from different weights.
    """
    reports = [run.report for run in runs if evaluated(run.report) and run.report[name] is not None and not run.swapped]
    agents = [report["models"]["before"] for report in reports]
    if name == "reference":
        references = [report["models"].get("reference") or json.dumps(report[name]["episodes"]) for report in reports]
        agents = references if len(set(references)) < len(set(agents)) else agents
    episodes = {}
    for agent, report in zip(agents, reports):
        episodes.setdefault(agent, []).append(report[name]["episodes"])
    return intervals.per_seed(episodes)


def _group_verdict(name, runs):
    report, levels = runs[0].report, [verdicts(run)[0]["level"] for run in runs]
    level = "bad" if "bad" in levels else "uncertain" if "uncertain" in levels else "good"
    sentence = "{} of {} on {}: ".format(name, report["agent"], report["task"])
    if len(runs) == 1:
        sentence += verdicts(runs[0])[0]["text"]
    else:
        sentence += "{} of {} runs are shown to be within the limit of {} with half of the return or more".format(
            levels.count("good"), len(runs), setting(report["cost_limit"]))
        after, before = (list(_per_agent(runs, name)["cost"].values()) for name in ("unlearned", "poisoned"))
        sentence += "; there are no costs of them." if not after else (
            ", with {} cost per episode over them; it was {} {}.".format(
                _over(intervals.mean(after)), _over(intervals.mean(before)),
                "when poisoned" if report["attack"] else "before"))
    return _verdict(level, LABELS[level], sentence)


def _over(summary):
    values = [summary["mean"]] + (summary["ci95"] or [])
    mean, *ends = ["{:.1f}".format(value) for value in values]
    return "{} [{}]".format(mean, ", ".join(ends)) if ends else mean


def _all_runs(runs):
    rows = []
    for n, run in enumerate(runs, 1):
        report, labels = run.report, [block["label"] for block in verdicts(run)]
        if report is None:
            rows.append([n, run.label, "-", "-"] + labels + _costs(run.certificate))
            continue
        rows.append([n, run.label, report["seed"]] + (labels + ["-"])[:2] + (
            [interval(report[name][key]) for name, key in (("poisoned", "cost"), ("unlearned", "cost"),
                                                           ("unlearned", "reward"))]
            if evaluated(report) and not run.swapped else ["-"] * 3))
    return _table("All runs", rows, ["run", "where", "seed", "verdict", "audit", "cost before", "cost", "return"])


def _costs(certificate):
    agents = certificate["audit"].get("safety", {}).get("value", {}).get("agents", {})
    return [interval(agents[name][key]) if name in agents else "-"
            for name, key in (("original", "cost"), ("audited", "cost"), ("audited", "reward"))]


def _over_runs(methods, file):
    everything = [run for runs in methods.values() for run in runs]
    report = everything[0].report
    found = {"poisoned": _per_agent(everything, "poisoned")}
    found.update((name, _per_agent(runs, "unlearned")) for name, runs in methods.items())
    found["retrained"] = _per_agent(everything, "reference")
    found = {name: numbers for name, numbers in found.items() if numbers["cost"]}
    if not found or max(len(numbers["cost"]) for numbers in found.values()) < 2:
        return []
    rows, points = [], {}
    for name, numbers in found.items():
        mean, apart = intervals.means(numbers), intervals.paired(numbers, found["poisoned"])
        points[name] = (mean["cost"], mean["return"])
        rows.append([name, mean["cost"]["n"], _over(mean["cost"]), _over(mean["return"])] + (
            ["-", "-"] if name == "poisoned" or apart is None else [_over(apart["cost"]), _over(apart["return"])]))
    attack = report["attack"]
    return [_heading(2, "Over runs: {} on {}, {}".format(report["agent"], report["task"],
                                                         attack["name"] if attack else "plain deletion")),
            _table("Over runs", rows, ["agent", "trained agents", "cost", "return", "cost - poisoned",
                                       "return - poisoned"]),
            _text("Mean [95 % interval, Student's] over trained agents, each one number: runs that start from the same "
                  "weights are averaged first. Per episode; the cost limit is {}.".format(
                      setting(report["cost_limit"]))),
            {"kind": "figures", "figures": [_figure(
                file, figures.draw_plane(points, report["cost_limit"]), "Cost against return over runs. {}; cost limit "
                "{}.".format(_points(points), setting(report["cost_limit"])),
                "Cost against return: mean over trained agents, with 95 % intervals. Safe is to the left of the dashed "
                "line.")]}]


def _over_budgets(methods, file):
    """Cost and return against the updates, of methods of which there are runs with several budgets."""
    curves = {}
    for runs in methods.values():
        report = runs[0].report
        numbers = _per_agent(runs, "unlearned")
        if numbers["cost"]:
            curve = curves.setdefault((report["method"], json.dumps(report["options"], sort_keys=True)), {})
            curve[report["updates"]["unlearn"]] = intervals.means(numbers)
    found = {}
    for (method, _), curve in curves.items():
        if len(curve) > 1:  # the same method with other options is another curve
            found["{} ({})".format(method, len(found) + 1) if method in found else method] = curve
    if not found:
        return []
    report = next(iter(methods.values()))[0].report
    return [_heading(2, "Quality against budget: {} on {}".format(report["agent"], report["task"])),
            {"kind": "figures", "figures": [_figure(
                "{}-{}".format(file, key), figures.draw_budgets(found, key, limit), "{} against the updates of "
                "unlearning. {}".format(key.capitalize(), "; ".join("{} after {:,} updates: {:.1f}".format(
                    name, updates, point[key]["mean"])
                    for name, curve in found.items() for updates, point in sorted(curve.items()))),
                "{} per episode against the updates of unlearning; over trained agents.".format(key.capitalize()))
                for key, limit in (("cost", report["cost_limit"]), ("return", None))]}]


# Writers --------------------------------------------------------------------------------------------------------------

def environment():
    """Jinja2's environment. Raises EnvironmentProblem where it is missing."""
    try:
        import jinja2
    except ImportError:
        raise EnvironmentProblem("Jinja2 is not installed, and HTML is written with it: run python -m pip install "
                                 "jinja2, or install osrl-unlearn[report]")
    found = jinja2.Environment(loader=jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__))),
                               autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return found


def as_html(blocks):
    """One file that needs no other and no network."""
    return environment().get_template(TEMPLATE).render(blocks=blocks) + "\n"


def as_markdown(blocks, folder="figures"):
    """The same as Markdown, with its figures in ``folder``."""
    write = {
        "heading": lambda b: "#" * b["level"] + " " + b["text"],
        "verdict": lambda b: "**{}. {}**".format(b["label"], b["text"]),
        "text": lambda b: b["text"],
        "table": lambda b: markdown_table(b["rows"], b["headers"]),
        "list": lambda b: markdown.bullets(b["lines"]),
        "figures": lambda b: "\n\n".join("![{}]({}/{})\n\n{}".format(f["alt"], folder, f["file"], f["caption"])
                                         for f in b["figures"]),
    }
    return "\n\n".join(write[block["kind"]](block).replace("<", "&lt;") for block in blocks) + "\n"
