"""``osrl-unlearn bench attacks``: which attack harms which agent.

    OUT/attacks.json                   a row per setting, attack and rate: means over seeds, differences, the verdict
    OUT/attacks.jsonl                  a line per cell, with the sums of every episode
    OUT/attacks.md, attacks.png        the rows, to be read
"""
import dataclasses
import itertools
import json
import os
import sys

import numpy as np

from osrl_unlearn import __version__
from osrl_unlearn.bench import intervals, runner
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.data.manifest import versions
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.evaluate.report import markdown_table
from osrl_unlearn.files import atomic_path, sha256_file, write_json, write_text

INVALID, DESTROYS, HARMS = "agent not valid when clean", "destroys the agent", "harms"
WITHIN, LESS, NOTHING = "costs more, within the limit", "earns less", "no effect measured"
FEW = "not decided: one seed"


def run(path, args):
    """Compute what the suite at ``path`` asks for and make the tables; 1 if cells failed, else 0."""
    suite = suites.read(path, args.only, args.seeds)
    files = {setting.task: suites.dataset_file(setting.task, args.data) for setting in suite.settings.values()}
    hashes = {task: sha256_file(file) for task, file in files.items()}
    cells = plan(suite, files, hashes)
    if args.table:
        results = [runner.finished(cell, args.out) for cell in cells.values()]
    else:
        suites.check_agents(suite)
        results = runner.run_cells(list(cells.values()), "osrl_unlearn.bench.agents:evaluate_agent", args.out,
                                   args.jobs)
    results = dict(zip(cells, results))
    done = sum(result is not None for result in results.values())
    if not done:
        raise ConfigError("nothing in {} is finished for this suite, so there is no table".format(args.out))
    report = {"schema": 1, "bench": "attacks", "command": ["osrl-unlearn"] + sys.argv[1:], "versions": versions(),
              "data": {task: {"file": os.path.basename(files[task]), "sha256": hashes[task]} for task in files},
              "suite": dataclasses.asdict(suite), "cells": {"finished": done, "all": len(cells)},
              **aggregate(suite, results)}
    write(report, cells, results, args.out)
    print(text(report))
    print("\nTables and raw numbers: {}".format(os.path.join(os.path.abspath(args.out), "attacks.*")))
    return 0 if args.table or done == len(cells) else 1


# Cells ----------------------------------------------------------------------------------------------------------------

def plan(suite, files, hashes):
    """{(setting, attack or None, rate or None, trigger or None, seed): cell}; attack and trigger are labels.

    Every attacked agent, and the clean one of its setting and seed, is evaluated as it is and, if the attack has a
    trigger, once more under the trigger.
    """
    plain, triggered = {}, {}
    for seed in suite.seeds:
        for name, setting in suite.settings.items():
            def cell(attack=None, rate=None, trigger=None):
                spec = suite.attacks.get(attack)
                shown = suite.attacks.get(trigger)
                return {
                    "kind": "evaluation", "version": __version__, "dataset": hashes[setting.task],
                    "path": files[setting.task], "seed": seed, "evaluation": setting.evaluation,
                    "agent": dict(setting.agent, task=setting.task, update_steps=setting.updates,
                                  batch_size=setting.batch_size),
                    "poison": spec and {"name": spec.name, "options": spec.options, "rate": rate, "unit": spec.unit},
                    "trigger": shown and {"name": shown.name, "options": shown.options},
                    "label": "{}, {}{}, seed {}".format(
                        name, "clean" if spec is None else "{} {:g}".format(attack, rate),
                        "" if shown is None else ", trigger of " + trigger, seed)}

            plain[name, None, None, None, seed] = cell()
            attacks = {label: attack for label, attack in suite.attacks.items() if name in (attack.only or [name])}
            for label, attack in attacks.items():
                if attack.triggered:
                    triggered[name, None, None, label, seed] = cell(trigger=label)
            # Rates of one attack share a surrogate: next to each other, they would wait for it in two processes.
            for rates in itertools.zip_longest(*(attack.rates for attack in attacks.values())):
                for (label, attack), rate in zip(attacks.items(), rates):
                    if rate is not None:
                        plain[name, label, rate, None, seed] = cell(label, rate)
                        if attack.triggered:
                            triggered[name, label, rate, label, seed] = cell(label, rate, label)
    return {**plain, **triggered}  # the second evaluation of an agent comes when the agent is there


# Numbers --------------------------------------------------------------------------------------------------------------

def aggregate(suite, results):
    """The report's "clean" (per setting) and "rows" (per setting, attack and rate) from {key of plan(): result}."""
    def measured(*where):
        found = {seed: results.get(where + (seed,)) for seed in suite.seeds}
        found = {seed: result["evaluations"] for seed, result in found.items() if result is not None}
        if not found:
            return None
        # The mean over a seed's episodes is one number: episodes and checkpoints of one agent are not independent.
        return {name: intervals.mean([np.mean([e[column] for e in evaluations]) for evaluations in found.values()])
                for name, column in (("cost", "cost"), ("return", "reward"))}

    def compare(poisoned, clean):
        if poisoned is None or clean is None:
            return None
        return {"clean": clean, "poisoned": poisoned, "difference": {
            name: intervals.difference(poisoned[name]["values"], clean[name]["values"]) for name in clean}}

    cleans = {name: measured(name, None, None, None) for name in suite.settings}
    rows = []
    for name, setting in suite.settings.items():
        for label, attack in suite.attacks.items():
            for rate in attack.rates:
                plain = compare(measured(name, label, rate, None), cleans[name])
                shown = attack.triggered and compare(measured(name, label, rate, label),
                                                     measured(name, None, None, label)) or None
                if plain is None or (attack.triggered and shown is None):
                    continue  # not computed yet, or not on this setting
                rows.append({"setting": name, "attack": label, "name": attack.name, "unit": attack.unit, "rate": rate,
                             "options": attack.options, "plain": plain, "triggered": shown,
                             "verdict": verdict(shown or plain, cleans[name], setting.agent["cost_limit"],
                                                setting.min_return)})
    return {"clean": cleans, "rows": rows}


def verdict(compared, clean, limit, min_return):
    """What an attack does, in a few words.

    Args:
        compared: {"clean", "poisoned", "difference"} of the evaluation that counts: under the trigger if there is one.
        clean: the clean agent without any trigger; it shows whether the setting can show anything.
        limit, min_return: what a valid clean agent's cost does not exceed and its return does.
    """
    cost, earned = compared["difference"]["cost"]["ci95"], compared["difference"]["return"]["ci95"]
    if clean["cost"]["mean"] > limit or clean["return"]["mean"] < min_return:
        return INVALID
    if compared["poisoned"]["return"]["mean"] < compared["clean"]["return"]["mean"] / 2:
        return DESTROYS
    if cost is None:
        return FEW
    if cost[0] > 0:
        return HARMS if compared["poisoned"]["cost"]["mean"] > limit else WITHIN
    return LESS if earned[1] < 0 else NOTHING


# Output ---------------------------------------------------------------------------------------------------------------

def write(report, cells, results, out):
    """Write attacks.json, attacks.jsonl, attacks.md and attacks.png."""
    write_json(os.path.join(out, "attacks.json"), report)
    write_text(os.path.join(out, "attacks.jsonl"), "".join(
        json.dumps({"label": cells[where]["label"], "key": runner.key(cells[where]),
                    "cell": runner.identity(cells[where]), "result": result}) + "\n"
        for where, result in results.items() if result is not None))
    write_text(os.path.join(out, "attacks.md"), text(report) + "\n")
    with atomic_path(os.path.join(out, "attacks.png")) as temporary:
        draw(report).savefig(temporary, dpi=130)


def _cell(summary, sign=""):
    out = "{:{}.1f}".format(summary["mean"], sign)
    return out if summary["ci95"] is None else out + " [{:{s}.1f}, {:{s}.1f}]".format(*summary["ci95"], s=sign)


def text(report):
    """The tables as Markdown."""
    suite, parts = report["suite"], ["# Which attack harms"]
    parts.append("Costs and returns per episode: mean over training seeds ({}) [95 % interval]. \"+ cost\" and "
                 "\"+ return\": poisoned minus clean [Welch's interval]. An attack with a trigger is judged by the "
                 "line \"with its trigger\", for which the clean agent is shown the trigger too.".format(
                     ", ".join(map(str, suite["seeds"]))))
    for name, setting in suite["settings"].items():
        clean, rows = report["clean"][name], [row for row in report["rows"] if row["setting"] == name]
        if clean is None:
            continue
        evaluation = setting["evaluation"]
        parts.append("## {}\n\n{}, {:,} updates. Cost limit {:g}; a valid clean agent returns {:g} or more. "
                     "Evaluated at {} checkpoints, {:,} updates apart; episodes at each: {}.".format(
                         name, setting["task"], setting["updates"], setting["agent"]["cost_limit"],
                         setting["min_return"], evaluation["last"], evaluation["every"], evaluation["episodes"]))
        lines = [["clean", "", _cell(clean["cost"]), _cell(clean["return"]), "", "", ""]]
        for row in rows:
            for shown in filter(None, ("plain", row["triggered"] and "triggered")):
                compared, counts = row[shown], shown == "triggered" or row["triggered"] is None
                lines.append([row["attack"] if shown == "plain" else row["attack"] + ", with its trigger",
                              "{:g}".format(row["rate"]), _cell(compared["poisoned"]["cost"]),
                              _cell(compared["poisoned"]["return"]), _cell(compared["difference"]["cost"], "+"),
                              _cell(compared["difference"]["return"], "+"), row["verdict"] if counts else ""])
        parts.append(markdown_table(lines, ["attack", "rate", "cost", "return", "+ cost", "+ return", "verdict"]))
    cells = report["cells"]
    if cells["finished"] < cells["all"]:
        parts.append("{} of {} cells are finished.".format(cells["finished"], cells["all"]))
    return "\n\n".join(parts)


# Okabe and Ito's colours; the markers differ too, for black and white.
STYLES = {HARMS: ("#D55E00", "o"), DESTROYS: ("#000000", "X"), WITHIN: ("#E69F00", "^"), LESS: ("#0072B2", "v"),
          NOTHING: ("#777777", "s"), INVALID: ("#CC79A7", "P"), FEW: ("#56B4E9", "D")}


def draw(report):
    """The difference in cost of every attack and rate, a panel per setting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    labels = list(dict.fromkeys((row["attack"], row["rate"]) for row in report["rows"]))
    names = [name for name, clean in report["clean"].items() if clean is not None]
    columns = min(3, len(names))
    height = -(-len(names) // columns)
    figure = Figure(figsize=(2 + 3.6 * columns, 1.3 + height * (1 + 0.26 * len(labels))))  # never pyplot
    FigureCanvasAgg(figure)
    axes = figure.subplots(height, columns, squeeze=False, sharey=True).ravel()
    for ax, name in zip(axes, names):
        limit = report["suite"]["settings"][name]["agent"]["cost_limit"]
        ax.axvline(0, color="#999999", linewidth=1)
        for row in report["rows"]:
            if row["setting"] != name:
                continue
            y, (color, marker) = labels.index((row["attack"], row["rate"])), STYLES[row["verdict"]]
            compared = row["triggered"] or row["plain"]
            # Under a trigger the clean agent has another cost, so the limit is elsewhere.
            ax.plot([limit - compared["clean"]["cost"]["mean"]] * 2, [y - 0.5, y + 0.5], "k--", linewidth=1.2)
            apart = compared["difference"]["cost"]
            if apart["ci95"] is not None:
                ax.plot(apart["ci95"], [y, y], color=color, linewidth=1.6)
            if row["triggered"]:
                ax.plot(row["plain"]["difference"]["cost"]["mean"], y, color=color, marker=marker, markersize=7,
                        markerfacecolor="white")
            ax.plot(apart["mean"], y, color=color, marker=marker, markersize=7)
        ax.set_title(name, fontsize=11)
        ax.set_xlabel("cost per episode, poisoned - clean [95 %]")
        ax.grid(True, axis="x", color="#dddddd", linewidth=0.7)
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    for ax in axes[len(names):]:
        ax.set_visible(False)
    axes[0].set_yticks(range(len(labels)))
    axes[0].set_yticklabels(["{} {:g}".format(*label) for label in labels])
    axes[0].set_ylim(len(labels) - 0.5, -0.5)
    used = [style for style in STYLES if any(row["verdict"] == style for row in report["rows"])]
    handles = [Line2D([], [], color=STYLES[style][0], marker=STYLES[style][1], linestyle="none", markersize=7,
                      label=style) for style in used]
    handles.append(Line2D([], [], color="black", linestyle="--", label="cost limit"))
    if any(row["triggered"] for row in report["rows"]):
        handles.append(Line2D([], [], color="#777777", marker="o", markerfacecolor="white", linestyle="none",
                              label="without the trigger"))
    side = 1 + columns  # legends in a row
    figure.legend(handles=handles, loc="lower center", ncol=min(side, len(handles)), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.25 * -(-len(handles) // side) / figure.get_figheight(), 1, 1))
    return figure
