"""``osrl-unlearn bench detection``: which attack is found in the data when nobody names what is poisoned.

    OUT/detection.json                   a row per setting, attack and rate: means over seeds, the verdict
    OUT/detection.jsonl                  a line per cell
    OUT/detection.md, detection.png      the rows, to be read
"""
import dataclasses
import time
from typing import Optional

import numpy as np

from osrl_unlearn import __version__
from osrl_unlearn.bench import agents, output
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.detection import make_detector
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.evaluate.report import markdown_table, panels
from osrl_unlearn.registry import ATTACKS

FOUND, PARTLY, NOT_SEEN = "found", "partly found", "not seen"
CLEAN, FALSE_ALARMS = "clean", "false alarms"
MANY = 0.2  # above this rate the poison can be most of the evidence
SEEN, BLIND = 0.9, 0.6  # AUROC from which on a detector finds an attack, and below which it does not see it
NUMBERS = ("auroc", "precision", "recall", "flagged_share", "false_alarms_per_1000", "seconds",
           "seconds_per_million_rows")


@dataclasses.dataclass
class DetectionSetting(suites.DataSetting):
    """The dataset of a task, the detector that looks at it, and the agent of the suite that it asks, if it asks one."""
    detector: str = "ensemble"
    options: dict = dataclasses.field(default_factory=dict)
    agent: Optional[str] = None

    def __post_init__(self):
        if ("agent" in make_detector(self.detector, self.options).needs) != (self.agent is not None):
            raise ValueError("agent: {} {}".format(self.detector, "asks none" if self.agent else "asks one, name it"))


@dataclasses.dataclass
class DetectionSuite(suites.DataSuite):
    """Datasets with their detectors, and ``agents``: settings as in the suite of ``bench attacks``."""
    agents: dict = dataclasses.field(default_factory=dict)
    evaluation: dict = dataclasses.field(default_factory=dict)  # names the checkpoints that an agent keeps
    kind = DetectionSetting

    def __post_init__(self):
        super().__post_init__()
        self.agents = suites.each(suites.Setting, "agents", self.agents, lambda name: {"evaluation": self.evaluation})
        for name, setting in self.settings.items():
            if setting.agent is not None and suites.known(setting.agent, self.agents).task != setting.task:
                raise ConfigError("settings.{}: the agent '{}' is not one of {}".format(
                    name, setting.agent, setting.task))

    def everything(self):
        """Datasets, and the agents that are asked about them."""
        asked = {setting.agent for setting in self.settings.values()}
        return {**self.settings, **{name: agent for name, agent in self.agents.items() if name in asked}}


def run(path, args):
    """Compute what the suite at ``path`` asks for and make the tables; 1 if cells failed, else 0."""
    return output.run("detection", suites.read(path, args.only, args.seeds, DetectionSuite), args, plan=plan,
                      function="osrl_unlearn.bench.detection:detect_poison", aggregate=aggregate, text=text, draw=draw)


def plan(suite, files, hashes):
    """{(setting, attack or None, rate or None, seed): cell}; attack is a label."""
    cells = {}
    for seed in suite.seeds:
        for name, setting in suite.settings.items():
            for label, attack, rate in [(None, None, None)] + list(suite.attacked(name)):
                if setting.agent is None:
                    cell = {"version": __version__, "dataset": hashes[setting.task], "path": files[setting.task],
                            "seed": seed, "poison": attack and attack.spec(rate)}
                else:
                    cell = agents.description(suite.agents[setting.agent], files[setting.task], hashes[setting.task],
                                              attack, rate, seed)
                cells[name, label, rate, seed] = dict(
                    cell, kind="detection", task=setting.task, detector=setting.detector,
                    **({"options": setting.options} if setting.options else {}),
                    label="{}, {}, seed {}".format(
                        name, "clean" if attack is None else "{} {:g}".format(label, rate), seed))
    return cells


def detect_poison(cell, out):
    """Poison the dataset of a cell, look for the poison, and count what was found.

    Returns:
        :func:`~osrl_unlearn.detection.measure`'s numbers, "detectors": {name: its AUROC alone}, "flagged_share" and
        "poisoned_share" of the trajectories, "trajectories", "rows", "seconds" that detection took,
        "seconds_per_million_rows".
    """
    import torch

    from osrl_unlearn.detection import detect, measure
    torch.set_num_threads(1)
    asked = {"options": cell["options"]} if "options" in cell else {}
    if "agent" in cell:
        asked.update(adapter=agents.agent(cell, out)[0],
                     **{name: cell["agent"][name] for name in ("reward_scale", "cost_scale")})
    data, true, ids = attacked(cell, out)
    started = time.perf_counter()
    found = detect(data, cell["detector"], seed=cell["seed"], ids=ids, task=cell["task"], dataset=cell["path"],
                   progress=False, **asked)
    seconds = time.perf_counter() - started
    about = found.detection["trajectories"]

    def alone(score):
        return measure(dataclasses.replace(found, detection=dict(found.detection, trajectories=dict(
            about, score=score))), true)["auroc"]

    rows, trajectories = len(ids), len(about["id"])
    return dict(measure(found, true), detectors={name: alone(score) for name, score in
                                                 found.detection["detectors"].items()},
                flagged_share=float(np.mean(about["flagged"])), poisoned_share=true.trajectories / trajectories,
                trajectories=trajectories, rows=rows, seconds=seconds, seconds_per_million_rows=1e6 * seconds / rows)


def attacked(cell, out):
    """The data of a cell without an agent, poisoned if it says so: :class:`~osrl_unlearn.data.poison.Poisoned`."""
    from osrl_unlearn import environments
    from osrl_unlearn.data.manifest import ForgetManifest
    from osrl_unlearn.data.poison import Poisoned
    env = environments.make(cell["task"], 0)  # a cost limit changes no data
    clean, ids = environments.load(env, {"task": cell["task"]}, cell["path"])
    if cell["poison"] is None:
        return Poisoned(clean, ForgetManifest.of(clean, []), ids)
    return agents.poisoned(cell["poison"], clean, ids, cell["task"], cell, out)


# Numbers --------------------------------------------------------------------------------------------------------------

def aggregate(suite, results):
    """The report's "rows" (per setting, attack and rate; attack None is the clean data) from {key of plan(): result}.

    Means are over the seeds for which a number is defined: there is no precision without an alarm.
    """
    rows = []
    for name in suite.settings:
        attacks = sorted(suite.attacked(name), key=lambda item: list(suite.attacks).index(item[0]))
        for label, attack, rate in [(None, None, None)] + attacks:
            found = list(intervals.by_seed(results, suite.seeds, name, label, rate).values())
            if not found:
                continue  # not computed yet
            row = {"setting": name, "attack": label, "name": attack and attack.name, "unit": attack and attack.unit,
                   "rate": rate, "options": attack and attack.options, "task": suite.settings[name].task,
                   "detector": suite.settings[name].detector, "detector_options": suite.settings[name].options,
                   "agent": suite.settings[name].agent, "seeds": len(found),
                   "poisoned_share": float(np.mean([result["poisoned_share"] for result in found])),
                   "detectors": {part: defined(result["detectors"][part] for result in found)
                                 for part in found[0]["detectors"]},
                   **{key: defined(result[key] for result in found) for key in NUMBERS}}
            rows.append(dict(row, verdict=verdict(row)))
    return {"rows": rows}


def defined(values):
    """The mean over those of ``values`` that are not None, with its interval; None if all are."""
    values = [value for value in values if value is not None]
    return intervals.mean(values) if values else None


def verdict(row):
    """What detection is worth here, in a few words."""
    if row["attack"] is None:
        return CLEAN if row["flagged_share"]["mean"] <= 0.01 else FALSE_ALARMS
    recall, precision = (row[key]["mean"] if row[key] else 0 for key in ("recall", "precision"))
    if min(recall, precision) >= 0.9:
        return FOUND
    return PARTLY if recall >= 0.3 and precision >= 0.5 else NOT_SEEN


# Output ---------------------------------------------------------------------------------------------------------------

def text(report):
    """The tables as Markdown."""
    suite = report["suite"]
    ensemble = [row for row in report["rows"] if row["detector"] == "ensemble"]
    parts = ["# Which attack is found in the data",
             "Trajectories that the ensemble of detectors flags at its default threshold, without an agent and without "
             "labels; detectors that the ensemble does without are in sections of their own. A trajectory counts as "
             "poisoned if any of its rows is. Means over seeds ({}) [lowest, highest]; "
             "\"-\": not defined. Found: recall and precision are 0.9 or more; partly found: recall 0.3 or more at a "
             "precision of 0.5 or more; clean: at most 1 % is flagged.".format(", ".join(map(str, suite["seeds"])))]
    if ensemble:
        parts.append("Goals, set before anything was measured:\n\n" + markdown_table(
            _goals(ensemble), ["goal", "found", "verdict"]))
        parts.append("Precision / recall, the worst over the rates up to {:.0%}, and over those above it:\n\n{}".format(
            MANY, _summary(ensemble)))
    parts.append("What each detector sees when it is alone, by its lowest AUROC over tasks and rates up to {:.0%}:"
                 "\n\n{}".format(MANY, _seen(report["rows"])))
    compared = _models(report["rows"])
    if compared:
        parts.append("The same detectors with other models: AUROC, precision / recall (clean data: share that is "
                     "flagged), seconds.\n\n" + compared)
    for name, setting in suite["settings"].items():
        rows = [row for row in report["rows"] if row["setting"] == name]
        if not rows:
            continue
        members = list(rows[0]["detectors"])
        parts.append("## {}\n\n{}, {}{}{}".format(
            name, setting["task"], setting["detector"],
            "".join(", {} {}".format(*item) for item in setting["options"].items()),
            " of the agent {}".format(setting["agent"]) if setting["agent"] else ""))
        parts.append(markdown_table([
            [row["attack"] or "clean data", "" if row["rate"] is None else "{:g}".format(row["rate"]),
             "{:.0%}".format(row["poisoned_share"]), _over(row["auroc"], digits=2), _over(row["precision"], digits=2),
             _over(row["recall"], digits=2), _over(row["flagged_share"], digits=3),
             _over(row["false_alarms_per_1000"]), row["verdict"], _over(row["seconds"], digits=0),
             _over(row["seconds_per_million_rows"], digits=0)] for row in rows],
            ["attack", "rate", "poisoned trajectories", "AUROC", "precision", "recall", "flagged share",
             "false alarms per 1000 clean", "verdict", "seconds", "seconds per million rows"]))
        if len(members) > 1:
            parts.append("AUROC of each detector alone:\n\n" + markdown_table([
                [row["attack"], "{:g}".format(row["rate"])]
                + [_over(row["detectors"][part], digits=2) for part in members]
                for row in rows if row["attack"] is not None], ["attack", "rate"] + members))
    return "\n\n".join(parts)


def _goals(rows):
    """Lines of the table of goals: attacks on labels, by trajectory and at 5 % to MANY, and clean data."""
    label = [row for row in rows if row["attack"] is not None and row["unit"] == "trajectory"
             and 0.05 <= row["rate"] <= MANY and ATTACKS.load(row["name"]).kind == "label"]
    found = [("{} of attacks on labels, 5 to {:.0%}, the worst: at least 0.9".format(key, MANY),
              min(row[key]["mean"] if row[key] else 0 for row in label), "{:.2f}", 0.9) for key in
             (("recall", "precision") if label else ())]
    clean = [row["flagged_share"]["mean"] for row in rows if row["attack"] is None]
    lines = [[goal, form.format(value), "yes" if value >= bound else "NO"] for goal, value, form, bound in found]
    return lines + [["flagged share of clean data, the worst: at most 1 %", "{:.2%}".format(share),
                     "yes" if share <= 0.01 else "NO"] for share in sorted(clean)[-1:]]


def _seen(rows):
    """A line per detector: attacks that it finds, finds in part, and does not see."""
    rows = [row for row in rows if row["attack"] is not None and row["rate"] <= MANY and not row["detector_options"]]
    lines = []
    for part in dict.fromkeys(part for row in rows for part in row["detectors"]):
        worst = {}
        for row in rows:
            if row["detectors"].get(part):
                worst[row["attack"]] = min(worst.get(row["attack"], 1), row["detectors"][part]["mean"])
        lines.append([part] + [", ".join(attack for attack, value in worst.items() if low <= value < high) or "none"
                               for low, high in ((SEEN, 2), (BLIND, SEEN), (0, BLIND))])
    return markdown_table(lines, ["detector", "finds ({:g} or more)".format(SEEN), "in part",
                                  "does not see (below {:g})".format(BLIND)])


def _models(rows):
    """A line per task, attack and rate that a detector was tried on with several options, a column for each of them."""
    cells, columns = {}, {}
    for row in rows:
        model = ", ".join("{} {}".format(*item) for item in row["detector_options"].items()) or "default"
        columns[model] = None
        numbers = ["{:.2%} flagged".format(row["flagged_share"]["mean"])] if row["attack"] is None else [
            _over(row["auroc"], digits=2), "{} / {}".format(_over(row["precision"], digits=2),
                                                            _over(row["recall"], digits=2))]
        key = row["task"], row["detector"], row["attack"] or "clean data", row["rate"] or ""
        cells.setdefault(key, {})[model] = ", ".join(numbers + [_over(row["seconds"], digits=0) + " s"])
    lines = [list(map(str, key)) + [found.get(model, "") for model in columns] for key, found in cells.items()
             if len(found) > 1]
    return markdown_table(lines, ["task", "detector", "attack", "rate"] + list(columns)) if lines else None


def _summary(rows):
    attacks, settings = (list(dict.fromkeys(row[key] for row in rows)) for key in ("attack", "setting"))
    lines, shares = [], (("up to", lambda rate: rate <= MANY), ("above", lambda rate: rate > MANY))

    def worst(found, key):
        values = [row[key] and row[key]["mean"] for row in found]
        return "-" if None in values else "{:.2f}".format(min(values))

    for attack in attacks:
        line = [attack or "clean data"]
        for name in settings:
            here = [row for row in rows if (row["attack"], row["setting"]) == (attack, name)]
            if attack is None:
                line += ["{:.2%} flagged".format(here[0]["flagged_share"]["mean"]) if here else "", ""]
                continue
            for _, fits in shares:
                found = [row for row in here if fits(row["rate"])]
                line.append("{} / {}".format(worst(found, "precision"), worst(found, "recall")) if found else "")
        lines.append(line)
    return markdown_table(lines, ["attack"] + ["{}, {} {:.0%}".format(name, label, MANY)
                                               for name in settings for label, _ in shares])


def _over(summary, digits=1):
    """Mean [lowest, highest] over seeds: shares end at 1, which Student's interval does not know."""
    if summary is None:
        return "-"
    low, high = min(summary["values"]), max(summary["values"])
    mean, low, high = ("{:.{}f}".format(value, digits) for value in (summary["mean"], low, high))
    return mean if low == high else "{} [{}, {}]".format(mean, low, high)


def draw(report):
    """Recall of every attack (down) and rate (across), a panel per setting; precision below 0.9 is marked."""
    rows = [row for row in report["rows"] if row["attack"] is not None and row["detector"] == "ensemble"]
    if not rows:
        return None
    names = list(dict.fromkeys(row["setting"] for row in rows))
    labels = list(dict.fromkeys(row["attack"] for row in rows))
    rates = sorted({row["rate"] for row in rows})
    figure, axes = panels(2.6 + (1 + 0.75 * len(rates)) * len(names), 1.5 + 0.32 * len(labels), 1, len(names),
                          sharey=True)
    for ax, name in zip(axes, names):
        recall = np.full((len(labels), len(rates)), np.nan)
        for row in rows:
            if row["setting"] == name and row["recall"] is not None:
                y, x, value = labels.index(row["attack"]), rates.index(row["rate"]), row["recall"]["mean"]
                recall[y, x] = value
                sure = row["precision"] is not None and row["precision"]["mean"] >= 0.9
                ax.text(x, y, "{:.2f}{}".format(value, "" if sure else "*"), ha="center", va="center", fontsize=9,
                        color="black" if value > 0.6 else "white")
        ax.imshow(recall, cmap="cividis", vmin=0, vmax=1, aspect="auto")  # read alike with any colour vision
        ax.grid(False)
        ax.set_xticks(range(len(rates)))
        ax.set_xticklabels(["{:g}".format(rate) for rate in rates])
        ax.set_xlabel("rate of the attack")
        ax.set_title(name, fontsize=11)
    axes[0].set_yticks(range(len(labels)))
    axes[0].set_yticklabels(labels)
    figure.text(0.5, 0.02, "recall; * precision below 0.9, or no alarm", ha="center", fontsize=output.SMALL)
    figure.tight_layout(rect=(0, 0.3 / figure.get_figheight(), 1, 1))
    return figure
