"""``osrl-unlearn sweep``: agents x tasks x attacks x rates x methods x seeds, and one table and figure over all.

    OUT/sweep.json            "rows": a row per setting, attack, rate and method; "overall": a row per method
    OUT/sweep.jsonl           a line per cell, with the sums of every episode
    OUT/sweep.md, sweep.png   the rows, to be read

A *setting* is an agent on a task. Its agents are those of the benches, trained here, or what an OSRL script trains,
see :mod:`~osrl_unlearn.bench.scripts`.
"""
import dataclasses
import re
from typing import ClassVar

import numpy as np

from osrl_unlearn import environments
from osrl_unlearn.bench import agents, output, partial, scripts, unlearning
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.bench.output import number
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.evaluate.report import markdown_table, panels
from osrl_unlearn.evaluate.rollouts import normalization, normalize

GRID = ("agents", "tasks", "attacks", "rates", "methods", "seeds")
NOTHING = "doing nothing"


@dataclasses.dataclass
class SweepSuite(suites.Suite):
    """The agents of the benches, and methods {label: :class:`~osrl_unlearn.bench.partial.MethodSetting`}.

    ``budget`` is of methods that have none of their own.
    """
    methods: dict = dataclasses.field(default_factory=dict)
    budget: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        self.methods = suites.each(partial.MethodSetting, "methods", self.methods,
                                   lambda label: {"name": label, "budget": self.budget})


@dataclasses.dataclass
class ScriptSweep(SweepSuite):
    """The same with agents that scripts train; ``episodes`` of each are evaluated."""
    episodes: int = 20
    kind: ClassVar[type] = scripts.ScriptSetting

    def defaults(self, name):
        """The episodes of the sweep."""
        return {"episodes": self.episodes}


def run(values, args):
    """Compute what ``values`` (the content of SWEEP.yaml) ask for and make the table; 1 if cells failed, else 0."""
    intervals.check_rliable()
    suite = suites.read(expand(values), args.only, args.seeds, ScriptSweep if "script" in values else SweepSuite)
    return output.run("sweep", suite, args, plan=plan, function="osrl_unlearn.bench.sweep:compute",
                      aggregate=aggregate, text=text, draw=draw)


def expand(values):
    """A suite's mapping from that of a SWEEP.yaml: settings from agents and tasks, attacks with rates.

    ``agents`` and ``methods`` and ``attacks`` are lists of names, or {label: mapping of what is different from the
    defaults}. Agents without "agent" of their own are those of configs/bench/agents.yaml; with ``script`` their mapping
    is the script's arguments, added to the ``arguments`` of all. Raises ConfigError.
    """
    missing = [name for name in GRID if not values.get(name)]
    if missing:
        raise ConfigError("{} is missing: a sweep needs {}, or a bench".format(missing[0], ", ".join(GRID)))
    values = dict(values, **{name: named(name, values[name]) for name in ("agents", "attacks", "methods")})
    who, tasks, rates = values.pop("agents"), values.pop("tasks"), values.pop("rates")
    script, arguments = values.pop("script", None), values.pop("arguments", None) or {}
    for name, value, kind, what in (("tasks", tasks, list, "a list"), ("arguments", arguments, dict, "a mapping"),
                                    ("script", script, (str, type(None)), "a path")):
        if not isinstance(value, kind) or name == "tasks" and not all(isinstance(task, str) for task in value):
            raise ConfigError("{}: expected {}, got {!r}".format(name, what, value))
    settings = {}
    for label, own in who.items():
        for task in tasks:
            name = "{}/{}".format(label, re.sub(r"^Offline|-v\d+$", "", task))
            if script is not None:
                settings[name] = {"task": task, "script": script.replace("{agent}", label),
                                  "arguments": dict(arguments, **own)}
            else:
                base = {} if "agent" in own else suites.known(name, suites.shared_agents())
                settings[name] = {"min_return": 0.0, **base, **own, "task": task}
    values["attacks"] = {label: dict({"rates": rates}, **own) for label, own in values["attacks"].items()}
    return dict(values, settings=settings)


def named(part, value):
    """{label: mapping} of a list of names, or of such a mapping. Raises ConfigError."""
    if isinstance(value, list) and all(isinstance(label, str) for label in value):
        value = dict.fromkeys(value)
    if not isinstance(value, dict) or not all(isinstance(label, str) and isinstance(own, (dict, type(None)))
                                              for label, own in value.items()):
        raise ConfigError("{}: expected a list of names or a mapping of mappings, got {!r}".format(part, value))
    return {label: own or {} for label, own in value.items()}


# Cells ----------------------------------------------------------------------------------------------------------------

def plan(suite, files, hashes):
    """{(setting, attack, rate, method or None, seed): cell}; attack and method are labels, None is doing nothing."""
    first, rest = {}, {}  # doing nothing trains the agents that the others wait for
    for seed in suite.seeds:
        for name, setting in suite.settings.items():
            scripted = isinstance(setting, scripts.ScriptSetting)
            describe = scripts.description if scripted else agents.description
            for label, attack, rate in suite.attacked(name):
                base = dict(describe(setting, files[setting.task], hashes[setting.task], attack, rate, seed),
                            kind="script" if scripted else "unlearning", method=None, forget=None)
                title = "{}, {} {:g}, {{}}, seed {}".format(name, label, rate, seed)
                first[name, label, rate, None, seed] = dict(base, label=title.format(NOTHING))
                for how, method in suite.methods.items():
                    if scripted or suites.fits(method, setting):
                        rest[name, label, rate, how, seed] = dict(
                            base, label=title.format(how), method=dataclasses.asdict(method), screen=False)
    return {**first, **rest}


def compute(cell, out):
    """The result of a cell, whatever its "kind" is."""
    return {"unlearning": unlearning.unlearn_agent, "script": scripts.unlearn_agent}[cell["kind"]](cell, out)


# Numbers --------------------------------------------------------------------------------------------------------------

def aggregate(suite, results):
    """The report's "rows" and "overall" from {key of plan(): result}.

    An attack with a trigger is judged under the trigger. Costs and returns are normalised as DSRL does; returns are
    None for tasks for which it knows no bounds.
    """
    rows, scores = [], {}
    for name, setting in suite.settings.items():
        constants = None
        for label, attack, rate in suite.attacked(name):
            for how in [None] + list(suite.methods):
                found = intervals.by_seed(results, suite.seeds, name, label, rate, how)
                if not found:
                    continue
                if constants is None:
                    about = setting.agent if isinstance(setting, suites.Setting) else next(iter(found.values()))
                    limit = about["cost_limit"]
                    constants = normalization(environments.make(setting.task, limit), limit)
                column = "triggered" if attack.triggered else "evaluations"
                numbers = normalized(intervals.per_seed(
                    {seed: result[column] for seed, result in found.items()}), constants)
                scores.setdefault(how, []).append(numbers)
                rows.append(dict(
                    intervals.means(numbers), setting=name, attack=label, rate=rate, method=how or NOTHING,
                    cost_limit=limit, seeds=len(found), triggered=attack.triggered,
                    accepted=None if how is None else sum(bool(result["accepted"]) for result in found.values())))
    return {"rows": rows, "overall": [overall(suite, how or NOTHING, found) for how, found in scores.items()]}


def normalized(numbers, constants):
    """``numbers`` {"cost", "return": {seed: number}} with DSRL's "normalized_cost" and "normalized_return".

    ``constants`` are those of :func:`~osrl_unlearn.evaluate.rollouts.normalization`.
    """
    pairs = {seed: normalize(value, numbers["cost"][seed], constants) for seed, value in numbers["return"].items()}
    more = {"normalized_cost": {seed: cost for seed, (_, cost) in pairs.items()},
            "normalized_return": {seed: value for seed, (value, _) in pairs.items() if value is not None}}
    return dict(numbers, **{name: found for name, found in more.items() if found})


def overall(suite, method, tasks):
    """Interquartile means of a method over seeds and tasks, of the seeds that all its tasks have."""
    row = {"method": method, "tasks": len(tasks)}
    for score in ("normalized_cost", "normalized_return"):
        found = [numbers[score] for numbers in tasks if score in numbers]
        seeds = [seed for seed in suite.seeds if all(seed in numbers for numbers in found)]
        row[score] = intervals.interquartile_mean([[numbers[seed] for numbers in found] for seed in seeds]) if (
            found and len(seeds) > 1) else None
    return row


# Output ---------------------------------------------------------------------------------------------------------------

def text(report):
    """The tables as Markdown."""
    parts = ["# Sweep", "Seeds: {}. Costs and returns per episode; under an attack with a trigger, with the "
             "trigger.".format(", ".join(map(str, report["suite"]["seeds"]))),
             "## All together\n\nInterquartile means over seeds and tasks (a task: setting, attack and rate) of DSRL's "
             "normalised cost (1 is the limit) and return [95 % bootstrap interval, stratified by task; rliable]. "
             "\"-\": fewer than two seeds that all tasks have, or no bounds for the return.",
             markdown_table([[row["method"], row["tasks"]] + [number(row[score], digits=2) for score in (
                 "normalized_cost", "normalized_return")] for row in report["overall"]],
                            ["method", "tasks", "normalised cost", "normalised return"])]
    for name in dict.fromkeys(row["setting"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["setting"] == name]
        parts.append("## {}\n\nCost limit {:g}. Means over seeds [95 % interval].".format(name, rows[0]["cost_limit"]))
        parts.append(markdown_table(
            [[row["attack"], "{:g}".format(row["rate"]), row["method"], number(row["cost"]), number(row["return"]),
              row["seeds"], "" if row["accepted"] is None else "{} of {}".format(row["accepted"], row["seeds"])]
             for row in rows], ["attack", "rate", "method", "cost", "return", "seeds", "changed the agent"]))
    return "\n\n".join(parts)


def draw(report):
    """Interquartile means of every method: cost (left) and return (right); None without two seeds."""
    shown = {"normalized_cost": "normalised cost, IQM [95 %]", "normalized_return": "normalised return, IQM [95 %]"}
    rows = [row for row in report["overall"] if row["normalized_cost"] is not None]
    if not rows:
        return None
    figure, axes = panels(8, 1.6 + 0.4 * len(rows), 1, len(shown), sharey=True)
    for ax, (score, label) in zip(axes, shown.items()):
        for n, row in enumerate(rows):
            color, marker, _ = partial.STYLES[n % len(partial.STYLES)]
            if row[score] is not None:
                ax.plot(row[score]["ci95"], [n, n], color=color, linewidth=1.6)
                ax.plot(row[score]["mean"], n, color=color, marker=marker, markersize=7)
        ax.set_xlabel(label)
        ax.grid(False, axis="y")
    axes[0].axvline(1, color="black", linestyle="--", linewidth=1.2)
    axes[0].set_yticks(np.arange(len(rows)))
    axes[0].set_yticklabels([row["method"] for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.tight_layout()
    return figure
