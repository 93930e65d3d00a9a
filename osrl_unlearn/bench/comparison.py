"""``osrl-unlearn bench unlearning``: unlearning methods against retraining.

    OUT/unlearning.json       "tasks": what retraining and doing nothing give; "rows": a row per task, method, budget;
                              "overall": over all tasks that the attack harmed; and a list per measurement
    OUT/unlearning.jsonl      a line per cell, with the sums of every episode
    OUT/unlearning.md, .png   the rows, to be read

A *task* is a setting (an agent and its data) with an attack at a rate. See :mod:`~osrl_unlearn.bench.tables` for what
becomes of the rows.
"""
import dataclasses
from typing import Optional

import numpy as np

from osrl_unlearn.bench import agents, goals, output, partial, tables
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.bench.measures import RELEARNING
from osrl_unlearn.bench.unlearning import FULL_PRICE, RETRAIN
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.registry import nearest

AGAIN = 1000  # added to the seed of the second retrained agent
REQUESTS = 5  # one after another, each with the whole budget
MEASUREMENTS = ("curve", "distance", "relearning", "checkpoints", "sequential", "clean_deletion", "ablations")
CHEAP = ("curve", "checkpoints", "sequential")  # of methods that do not cost as much as training
COMES_BACK, STAYS_AWAY = "comes back", "not shown to come back"


@dataclasses.dataclass
class Ablation(partial.MethodSetting):
    """A variant of a method; with ``gate`` false, what the safety gate would reject is accepted."""
    gate: bool = True


@dataclasses.dataclass
class Measurement:
    """The ``methods`` (labels; default all) and settings (``only``; default all) of a measurement."""
    methods: Optional[list] = None
    only: Optional[list] = None


@dataclasses.dataclass
class ComparisonSuite(suites.Suite):
    """A suite with methods {label: :class:`~osrl_unlearn.bench.partial.MethodSetting`}, the first one under test.

    ``budget`` is of methods that have none of their own, ``curve`` holds other ones. ``ablations`` are
    {label: :class:`Ablation`}; ``measure`` is {one of MEASUREMENTS: :class:`Measurement`}: what is not there is not
    measured.
    """
    methods: dict = dataclasses.field(default_factory=dict)
    budget: float = 0.05
    curve: list = dataclasses.field(default_factory=list)
    ablations: dict = dataclasses.field(default_factory=dict)
    measure: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        defaults = lambda label: {"name": label, "budget": self.budget}  # noqa: E731
        self.methods = suites.each(partial.MethodSetting, "methods", self.methods, defaults)
        self.ablations = suites.each(Ablation, "ablations", self.ablations, defaults)
        unknown = sorted(set(self.measure) - set(MEASUREMENTS))
        if unknown:
            raise ValueError("unknown measurement '{}': {}".format(unknown[0], nearest(unknown[0], MEASUREMENTS)))
        self.measure = suites.each(Measurement, "measure", {k: v or {} for k, v in self.measure.items()})
        if not self.methods:
            raise ValueError("methods: at least one is needed")
        if not all(isinstance(share, (int, float)) and 0 < share < FULL_PRICE for share in self.curve):
            raise ValueError("curve must be shares of the training's updates between 0 and 1, got {}".format(
                self.curve))
        for part, measurement in self.measure.items():
            known = self.ablations if part == "ablations" else {
                label: method for label, method in self.methods.items()
                if part not in CHEAP or method.budget < FULL_PRICE}
            if measurement.methods is None:
                measurement.methods = list(known)
            for label in measurement.methods:
                if label not in known:
                    raise ValueError("measure.{}: no method '{}' {}: {}".format(
                        part, label, "that costs less than training" if part in CHEAP else "in this suite",
                        nearest(label, known)))
            for name in measurement.only or ():
                suites.known(name, self.settings)
        if "sequential" in self.measure and any(attack.unit != "trajectory" for attack in self.attacks.values()):
            raise ValueError("measure.sequential deletes whole trajectories: the unit of every attack must be "
                             "trajectory")

    def measured(self, part, name):
        """Labels of the methods of which ``part`` of MEASUREMENTS is measured in the setting ``name``."""
        measurement = self.measure.get(part, Measurement([]))
        return [label for label in measurement.methods if name in (measurement.only or [name])
                and suites.fits((self.ablations if part == "ablations" else self.methods)[label], self.settings[name])]


def run(path, args):
    """Compute what the suite at ``path`` asks for and make the tables; 1 if cells failed, else 0."""
    intervals.check_rliable()
    return output.run("unlearning", suites.read(path, args.only, args.seeds, ComparisonSuite), args, plan=plan,
                      function="osrl_unlearn.bench.measures:compute", aggregate=aggregate, text=tables.text,
                      draw=tables.draw)


# Cells ----------------------------------------------------------------------------------------------------------------

def plan(suite, files, hashes):
    """{(part, setting, attack, rate, label, budget, seed): cell}; what does not apply is None.

    The parts are "clean", "poisoned", "retrained", "again" (retrained with another seed), "method", and those of
    MEASUREMENTS but the curve, which is more budgets of "method".
    """
    cells = {}
    for seed in suite.seeds:
        first, rest = {}, {}  # agents that others start from, and that others are compared with, come first
        for name, setting in suite.settings.items():
            def base(attack=None, rate=None):
                return dict(agents.description(setting, files[setting.task], hashes[setting.task], attack, rate, seed),
                            kind="unlearning", method=None, forget=None)

            first["clean", name, None, None, None, None, seed] = dict(
                base(), label="{}, clean, seed {}".format(name, seed))
            for label, attack, rate in suite.attacked(name):
                for (part, how, budget), more in asked(suite, name, seed).items():
                    group = first if part in ("poisoned", "retrained", "again") else rest
                    title = [part] if how is None else [how] if part == "method" else [part, "of", how]
                    title += [] if budget is None else ["with {:g}".format(budget)]
                    group[part, name, label, rate, how, budget, seed] = dict(
                        base(attack, rate), **more, label="{}, {} {:g}, {}, seed {}".format(
                            name, label, rate, " ".join(title), seed))
        cells.update(first)
        cells.update(rest)
    return cells


def asked(suite, name, seed):
    """{(part, label, budget): what its cell has beside the description of the agent} for the setting ``name``."""
    retrain = {"method": RETRAIN, "screen": False}
    out = {("poisoned", None, None): {}, ("retrained", None, None): retrain}
    if suite.measured("distance", name):
        again = dict(retrain, unlearning_seed=seed + AGAIN)
        out["again", None, None] = again
        out["distance", "doing nothing", None] = {"kind": "distance"}
        out["distance", "retrained again", None] = {"kind": "distance", "method": RETRAIN,
                                                    "unlearning_seed": seed + AGAIN}
    for label, method in suite.methods.items():
        if suites.fits(method, suite.settings[name]):
            out["method", label, method.budget] = {"method": dataclasses.asdict(method), "screen": False}
    for label in suite.measured("curve", name):
        for budget in suite.curve:
            out["method", label, float(budget)] = {
                "method": dict(dataclasses.asdict(suite.methods[label]), budget=float(budget)), "screen": False}
    for label in suite.measured("ablations", name):
        spec = dataclasses.asdict(suite.ablations[label])
        if spec.pop("gate") is False:
            spec["gate"] = False
        out["ablations", label, spec["budget"]] = {"method": spec, "screen": False}
    for part, more in (("sequential", {"forget": {"requests": REQUESTS}, "screen": False}),
                       ("clean_deletion", {"forget": {"control": None}, "screen": False}),
                       ("distance", {"kind": "distance"}), ("checkpoints", {"kind": "checkpoints"})):
        for label in suite.measured(part, name):
            out[part, label, None] = dict(more, method=dataclasses.asdict(suite.methods[label]))
    updates = int(round(RELEARNING * suite.budget * suite.settings[name].updates))
    relearned = suite.measured("relearning", name)
    for label, spec in [("retrained", RETRAIN)] * bool(relearned) + [
            (label, dataclasses.asdict(suite.methods[label])) for label in relearned]:
        out["relearning", label, None] = {"kind": "relearning", "method": spec, "relearning": updates}
    return out


# Numbers --------------------------------------------------------------------------------------------------------------

class Task:
    """The results of one task: an agent, an attack at a rate, all seeds.

    An attack with a trigger is judged under the trigger: costs and returns are those under it, "plain" those without.
    """

    def __init__(self, suite, results, name, label, rate):
        self.about = {"setting": name, "attack": label, "rate": rate}
        self.limit = suite.settings[name].agent["cost_limit"]
        self._results, self._seeds, self._where = results, suite.seeds, (name, label, rate)
        self.column = "triggered" if suite.attacks[label].triggered else "evaluations"
        self.poisoned, self.retrained = self.found("poisoned"), self.found("retrained")
        self.nothing, self.reference = self.numbers(self.poisoned), self.numbers(self.retrained)
        apart = intervals.paired(self.nothing, self.reference)
        self.gap = apart and apart["cost"]
        self.harmed = bool(self.gap and self.gap["ci95"] and self.gap["ci95"][0] > 0)

    def found(self, part, label=None, budget=None):
        """{seed: result}."""
        return intervals.by_seed(self._results, self._seeds, part, *self._where, label, budget)

    def numbers(self, found, column=None):
        """{"cost": {seed: mean per episode}, "return": {seed: mean}} of {seed: result}."""
        return intervals.per_seed({seed: result[column or self.column] for seed, result in found.items()})

    def scores(self, found):
        """{"recovery": {seed: share}, "return_ratio": {seed: ratio}} of {seed: result}.

        The denominators are means over seeds, so that no single seed divides by almost nothing: recovery is (cost of
        the seed's poisoned agent - cost) / mean difference of the poisoned and retrained agents, empty unless the
        attack harmed; the ratio is the return / mean return of the retrained agents, empty unless that is positive.
        Returns are those without a trigger: a retrained agent that has never seen it may earn nothing under it.
        """
        earned = np.mean(list(self.numbers(self.retrained, "evaluations")["return"].values()) or [0])
        return {"recovery": {seed: (self.nothing["cost"][seed] - cost) / self.gap["mean"]
                             for seed, cost in self.numbers(found)["cost"].items() if seed in self.nothing["cost"]}
                if self.harmed else {},
                "return_ratio": {seed: value / earned
                                 for seed, value in self.numbers(found, "evaluations")["return"].items()}
                if earned > 0 else {}}

    def row(self, found, **about):
        """A row of the report, or None without results."""
        if not found:
            return None
        numbers, both = self.numbers(found), [seed for seed in found if seed in self.retrained]
        scores = {name: intervals.mean(list(values.values())) if values else None
                  for name, values in self.scores(found).items()}
        ratio = {"{}_ratio".format(price): float(np.mean([found[s][price] / self.retrained[s][price] for s in both]))
                 if both else None for price in ("updates", "seconds")}
        plain = intervals.means(self.numbers(found, "evaluations")) if self.column == "triggered" else None
        return dict(self.about, **about, **intervals.means(numbers), plain=plain, **scores, **ratio,
                    accepted=sum(bool(result["accepted"]) for result in found.values()), seeds=len(found))


def aggregate(suite, results):
    """The report's own parts from {key of plan(): result}."""
    tasks = [Task(suite, results, name, label, rate)
             for name in suite.settings for label, _, rate in suite.attacked(name)]
    cleans = {name: intervals.by_seed(results, suite.seeds, "clean", name, None, None, None, None)
              for name in suite.settings}
    report = {"clean": {name: intervals.means(intervals.per_seed(
        {seed: result["evaluations"] for seed, result in found.items()})) if found else None
        for name, found in cleans.items()}, "tasks": [], "rows": []}
    for task in tasks:
        report["tasks"].append(dict(
            task.about, gap=task.gap, harmed=task.harmed, triggered=task.column == "triggered",
            **{part: task.row(task.found(part)) for part in ("poisoned", "retrained", "again")}))
        report["rows"] += filter(None, (
            task.row(task.found("method", label, budget), method=label, budget=budget)
            for label, method in suite.methods.items() for budget in sorted({method.budget, *map(float, suite.curve)})))
    report["overall"], report["curve"] = overall(suite, tasks), curve(suite, tasks)
    for part, function in (("distance", distances), ("relearning", relearned), ("checkpoints", judged),
                           ("sequential", sequences), ("clean_deletion", deletions), ("ablations", ablated)):
        report[part] = [dict(task.about, **row) for task in tasks for row in function(suite, task)]
    report["goals"] = goals.judge(suite, report)
    return report


def matrix(suite, tasks, label, budget, score):
    """The ``score`` of a method in every task that was harmed: shape [seeds, tasks], of the seeds that all tasks have.

    None without tasks, or with fewer than two seeds.
    """
    found = [task.scores(task.found("method", label, budget))[score] for task in tasks if task.harmed]
    found = [scores for scores in found if scores]
    seeds = [seed for seed in suite.seeds if all(seed in scores for scores in found)]
    return np.array([[scores[seed] for scores in found] for seed in seeds]) if found and len(seeds) > 1 else None


def overall(suite, tasks):
    """Aggregates of every method at its main budget, and the probability that the first one is better."""
    rows, (first, *_) = [], suite.methods.items()
    for label, method in suite.methods.items():
        row = {"method": label, "budget": method.budget}
        pair = (first[0], first[1].budget), (label, method.budget)
        for score in ("recovery", "return_ratio"):
            shared = [task for task in tasks if all(task.scores(task.found("method", *one))[score] for one in pair)]
            own = matrix(suite, [task for task in tasks if task.found("method", label, method.budget)], label,
                         method.budget, score)
            row[score] = None if own is None else intervals.interquartile_mean(own)
            mine, theirs = (matrix(suite, shared, *one, score) for one in pair)
            row["better_" + score] = None if label == first[0] or mine is None or theirs is None else (
                intervals.improvement(mine, theirs))
        rows += [row] if row["return_ratio"] else []
    return rows


def curve(suite, tasks):
    """Aggregates of the methods of the curve at every budget: over the tasks of each setting, and of all of them."""
    groups = [name for name in suite.settings if suite.measured("curve", name)]
    rows = []
    for group in ([None] if len(groups) > 1 else []) + groups:
        for label in suite.methods:
            chosen = [task for task in tasks if task.harmed and group in (None, task.about["setting"])
                      and label in suite.measured("curve", task.about["setting"])]
            for budget in sorted({suite.methods[label].budget, *map(float, suite.curve)}):
                if not all(task.found("method", label, budget) for task in chosen):
                    continue  # over other tasks, this budget could not be compared with the others
                found = {score: matrix(suite, chosen, label, budget, score) for score in ("recovery", "return_ratio")}
                if all(scores is not None for scores in found.values()):
                    rows.append(dict({score: intervals.interquartile_mean(scores) for score, scores in found.items()},
                                     setting=group, method=label, budget=budget))
    return rows


def distances(suite, task):
    """Means over seeds of the distances to the retrained agent."""
    for label in ["doing nothing", "retrained again"] + list(suite.methods):
        found = task.found("distance", label)
        if found:
            yield {"method": label, "seeds": len(found), **{
                what: {where: intervals.mean([result[what][where] for result in found.values()])
                       for where in ("forget", "retain", "fresh")}
                for what in ("actions", "reward_value", "cost_value")}}


def relearned(suite, task):
    """Costs before and after further training on the retain set, and their rise beyond that of the retrained agent."""
    def rise(found, before):
        after = task.numbers(found)["cost"]
        return {"cost": {seed: cost - before[seed] for seed, cost in after.items() if seed in before}}

    control = rise(task.found("relearning", "retrained"), task.reference["cost"])
    for label, method in [("retrained", None)] + list(suite.methods.items()):
        found = task.found("relearning", label)
        before = task.reference["cost"] if method is None else task.numbers(
            task.found("method", label, method.budget))["cost"]
        own = rise(found, before)
        if own["cost"]:
            more = intervals.paired(own, control) if method is not None else None
            yield {"method": label, "seeds": len(own["cost"]), "after": intervals.mean(
                [task.numbers(found)["cost"][seed] for seed in own["cost"]]),
                "before": intervals.mean([before[seed] for seed in own["cost"]]),
                "rise": intervals.mean(list(own["cost"].values())), "beyond": more and more["cost"],
                "verdict": more and comes_back(more["cost"]["ci95"])}


def comes_back(interval):
    """What the interval of the rise of the cost beyond that of the retrained agent says."""
    return partial.FEW if interval is None else COMES_BACK if interval[0] > 0 else STAYS_AWAY


def judged(suite, task):
    """True costs of the checkpoints that the method accepted, and the regret of its choice of the last one."""
    for label in suite.methods:
        rises, beyond, regret = {}, 0, {"cost": [], "return": []}
        for seed, result in task.found("checkpoints", label).items():
            if seed not in task.poisoned:
                continue
            start, found = task.poisoned[seed][task.column][0], result["evaluations"]
            apart = [np.subtract(one["cost"], start["cost"]) for one in found]
            rises[seed] = [float(difference.mean()) for difference in apart]
            # The episodes are pairs: the interval is over the episodes of one agent.
            ends = [intervals.mean(difference)["ci95"] for difference in apart]
            beyond += sum(bool(end and end[0] > 0) for end in ends)
            if found:
                means = [(float(np.mean(one["cost"])), float(np.mean(one["reward"]))) for one in found]
                best = oracle(means, task.limit)
                regret["cost"].append(means[-1][0] - best[0])
                regret["return"].append(best[1] - means[-1][1])
        every = [value for values in rises.values() for value in values]
        if rises:
            yield {"method": label, "seeds": len(rises), "accepted": len(every), "beyond": beyond,
                   "higher": sum(value > 0 for value in every), "worst": max(every) if every else None,
                   "regret": {name: intervals.mean(values) if values else None for name, values in regret.items()}}


def oracle(means, limit):
    """The (cost, return) that somebody with the environment would choose: most return within the limit, else least
    cost."""
    within = [pair for pair in means if pair[0] <= limit]
    return max(within, key=lambda pair: pair[1]) if within else min(means)


def sequences(suite, task):
    """Requests that come one after another against one request for all of it."""
    for label, method in suite.methods.items():
        row = task.row(task.found("sequential", label), method=label, budget=method.budget)
        if row:
            at_once = task.found("method", label, method.budget)
            apart = intervals.paired(task.numbers(task.found("sequential", label)), task.numbers(at_once))
            yield dict(row, at_once=task.row(at_once), difference=apart)


def deletions(suite, task):
    """What forgetting as many clean trajectories as are poisoned does to the agent."""
    for label in suite.methods:
        row = partial.compare(task.found("clean_deletion", label), task.poisoned, task.limit, task.column)
        if row:
            yield dict(row, method=label)


def ablated(suite, task):
    """Variants of methods, and the methods themselves."""
    rows = [task.row(task.found("ablations", label, method.budget), method=label, variant_of=method.name)
            for label, method in suite.ablations.items()]
    if any(rows):
        names = {method.name for method in suite.ablations.values()}
        rows = [task.row(task.found("method", label, method.budget), method=label, variant_of=None)
                for label, method in suite.methods.items() if method.name in names] + rows
    yield from filter(None, rows)
