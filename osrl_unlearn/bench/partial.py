"""``osrl-unlearn bench partial``: what becomes of an agent if the list of what to forget is not right.

    OUT/partial.json                 a row per setting, attack, list and method: means over seeds, differences to doing
                                     nothing in pairs of seeds, the verdict
    OUT/partial.jsonl                a line per cell, with the sums of every episode
    OUT/partial.md, partial.png      the rows, to be read
"""
import dataclasses

from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from osrl_unlearn.bench import agents, output
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.bench.output import number
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.evaluate.report import markdown_table, panels
from osrl_unlearn.options import parse
from osrl_unlearn.registry import METHODS

BETTER, WORSE, NO_DIFFERENCE = "better", "worse than doing nothing", "no difference shown"
FEW = "not decided: one seed"


@dataclasses.dataclass
class MethodSetting:
    """A method with its options; ``budget`` is the share of the training's updates that it may spend."""
    name: str
    budget: float
    options: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        cls = METHODS.load(self.name)
        # All options, because defaults may change.
        self.options = dataclasses.asdict(parse(cls.Options, self.options, "options of '{}': ".format(self.name)))
        if not self.budget > 0:
            raise ValueError("budget must be positive, got {}".format(self.budget))


@dataclasses.dataclass
class PartialSuite(suites.Suite):
    """A suite with {label: :class:`MethodSetting`} and shares of lists.

    ``known``: shares of the poisoned trajectories that a list without mistakes holds. ``wrong``: shares of clean
    trajectories in a list that also holds all the poisoned ones.
    """
    methods: dict = dataclasses.field(default_factory=dict)
    known: list = dataclasses.field(default_factory=list)
    wrong: list = dataclasses.field(default_factory=list)

    def __post_init__(self):
        super().__post_init__()
        self.methods = suites.each(MethodSetting, "methods", self.methods, lambda label: {"name": label})
        if not self.methods or not self.known + self.wrong:
            raise ValueError("methods and lists (known, wrong): at least one of each is needed")
        if not all(0 < share <= 1 for share in self.known) or not all(0 < share < 1 for share in self.wrong):
            raise ValueError("known must be shares above 0 and at most 1, wrong shares between 0 and 1, got {} and "
                             "{}".format(self.known, self.wrong))

    @property
    def lists(self):
        """(known, wrong) of every list."""
        return [(float(share), 0.0) for share in self.known] + [(1.0, float(share)) for share in self.wrong]


def run(path, args):
    """Compute what the suite at ``path`` asks for and make the tables; 1 if cells failed, else 0."""
    return output.run("partial", suites.read(path, args.only, args.seeds, PartialSuite), args, plan=plan,
                      function="osrl_unlearn.bench.unlearning:unlearn_agent", aggregate=aggregate, text=text, draw=draw)


def plan(suite, files, hashes):
    """{(setting, attack, rate, method or None, known, wrong, seed): cell}; attack and method are labels."""
    idle, busy = {}, {}  # doing nothing comes first: it trains the agents that all others wait for
    for seed in suite.seeds:
        for name, setting in suite.settings.items():
            for label, attack, rate in suite.attacked(name):
                base = dict(agents.description(setting, files[setting.task], hashes[setting.task], attack, rate, seed),
                            kind="unlearning", method=None, forget=None)
                title = "{}, {} {:g}, {{}}, seed {}".format(name, label, rate, seed)
                idle[name, label, rate, None, None, None, seed] = dict(base, label=title.format("doing nothing"))
                for known, wrong in suite.lists:
                    for how, method in suite.methods.items():
                        if not suites.fits(method, setting):
                            continue
                        busy[name, label, rate, how, known, wrong, seed] = dict(
                            base, method=dataclasses.asdict(method), forget={"known": known, "wrong": wrong},
                            label=title.format("{} with {:.0%} known, {:.0%} wrong".format(how, known, wrong)))
    return {**idle, **busy}


# Numbers --------------------------------------------------------------------------------------------------------------

def aggregate(suite, results):
    """The report's "nothing" (the poisoned agents) and "rows" from {key of plan(): result}."""
    nothing, rows = [], []
    for name, setting in suite.settings.items():
        for label, attack, rate in suite.attacked(name):
            column = "triggered" if attack.triggered else "evaluations"
            about = {"setting": name, "attack": label, "rate": rate}
            here, limit = (results, suite.seeds, name, label, rate), setting.agent["cost_limit"]
            idle = intervals.by_seed(*here, None, None, None)
            if not idle:
                continue  # not computed yet
            nothing.append(dict(about, **compare(idle, {}, limit, column)))
            for known, wrong in suite.lists:
                for how in suite.methods:
                    row = compare(intervals.by_seed(*here, how, known, wrong), idle, limit, column)
                    if row is not None:
                        rows.append(dict(about, method=how, known=known, wrong=wrong, **row))
    return {"nothing": nothing, "rows": rows}


def compare(unlearned, idle, limit, column="evaluations"):
    """What unlearning did, compared with doing nothing to the same agents, seed by seed.

    Args:
        unlearned, idle: {seed: result of :func:`~osrl_unlearn.bench.unlearning.unlearn_agent`}.
        limit: of the cost of an episode.
        column: "evaluations" or "triggered".

    Returns:
        {"cost", "return": means over seeds, "difference": the same of the differences or None, "verdict", "within":
        whether the mean cost is within the limit, "seconds": mean, "accepted": seeds in which the method changed the
        agent, "seeds"}; None without results.
    """
    if not unlearned:
        return None
    numbers = intervals.per_seed({seed: result[column] for seed, result in unlearned.items()})
    apart = intervals.paired(numbers, intervals.per_seed({seed: result[column] for seed, result in idle.items()}))
    means = intervals.means(numbers)
    return dict(means, difference=apart, verdict=apart and verdict(apart["cost"]["ci95"]),
                within=means["cost"]["mean"] <= limit,
                seconds=sum(result["seconds"] for result in unlearned.values()) / len(unlearned),
                accepted=sum(bool(result["accepted"]) for result in unlearned.values()), seeds=len(unlearned))


def verdict(interval):
    """What the interval of a cost difference says."""
    if interval is None:
        return FEW
    return BETTER if interval[1] < 0 else WORSE if interval[0] > 0 else NO_DIFFERENCE


# Output ---------------------------------------------------------------------------------------------------------------

def text(report):
    """The tables as Markdown."""
    suite = report["suite"]
    parts = ["# When the list of what to forget is not right",
             "A list holds the share \"known\" of the poisoned trajectories; the share \"wrong\" of the list is clean "
             "trajectories. Costs and returns per episode: mean over training seeds ({}) [95 % interval]. \"+ cost\" "
             "and \"+ return\": minus those of doing nothing to the same agent, seed by seed [95 % interval of the "
             "mean difference]. The verdict is about the cost. Under an attack with a trigger they are those with the "
             "trigger.".format(", ".join(map(str, suite["seeds"])))]
    for idle, rows in groups(report):
        setting = suite["settings"][idle["setting"]]
        evaluation = setting["evaluation"]
        lines = [_line("doing nothing", idle)] + [_line(row["method"], row) for row in rows]
        parts.append("## {setting}, {attack} {rate:g}\n\n".format(**idle) + output.training(setting) + " The final "
                     "agents are evaluated in {} episodes.".format(evaluation["last"] * evaluation["episodes"]))
        parts.append(_costs(suite["methods"], rows))
        parts.append(markdown_table(lines, ["method", "known", "wrong", "cost", "return", "+ cost", "+ return",
                                            "verdict", "within the limit", "changed the agent", "seconds"]))
    return "\n\n".join(parts)


def _costs(methods, rows):
    """The costs alone: a line per list, a column per method."""
    lists = {}
    for row in rows:
        lists.setdefault((row["known"], row["wrong"]), {})[row["method"]] = number(row["cost"])
    return markdown_table([["{:.0%} of the poison{}".format(known, ", and {:.0%} of it is clean".format(wrong)
                                                            if wrong else "")]
                           + [costs.get(method, "") for method in methods] for (known, wrong), costs in lists.items()],
                          ["the list holds"] + ["cost with {}".format(method) for method in methods])


def _line(name, row):
    apart = row["difference"] or {"cost": None, "return": None}
    shares = ["{:.0%}".format(row[share]) if share in row else "" for share in ("known", "wrong")]
    return [name] + shares + [
        number(row["cost"]), number(row["return"]), number(apart["cost"], "+"), number(apart["return"], "+"),
        row["verdict"] or "", "yes" if row["within"] else "no",
        "{} of {}".format(row["accepted"], row["seeds"]) if "method" in row else "", "{:.0f}".format(row["seconds"])]


def groups(report):
    """(doing nothing, its rows) of every setting, attack and rate."""
    for idle in report["nothing"]:
        yield idle, [row for row in report["rows"]
                     if all(row[name] == idle[name] for name in ("setting", "attack", "rate"))]


# Okabe and Ito's colours; the markers and dashes differ too, for black and white.
STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", ":"), ("#CC79A7", "D", "-."),
          ("#E69F00", "v", "-"), ("#56B4E9", "P", "--"))


def draw(report):
    """Cost against the share known (left) and the share wrong (right); a line per method."""
    found = list(groups(report))
    if not found:
        return None
    figure, axes = panels(9, 1 + 3.2 * len(found), len(found), 2, sharey="row")
    methods = list(report["suite"]["methods"])
    for (idle, rows), left, right in zip(found, axes[::2], axes[1::2]):
        limit = report["suite"]["settings"][idle["setting"]]["agent"]["cost_limit"]
        for ax, share, other, fixed in ((left, "known", "wrong", 0), (right, "wrong", "known", 1)):
            for n, how in enumerate(methods):
                color, marker, dashes = STYLES[n % len(STYLES)]
                points = sorted((row[share], row["cost"]) for row in rows
                                if row["method"] == how and row[other] == fixed)
                shift = 0.008 * (n - (len(methods) - 1) / 2)  # intervals beside, not on each other
                ax.plot([x + shift for x, _ in points], [cost["mean"] for _, cost in points], color=color,
                        linestyle=dashes, linewidth=1.6)
                for x, cost in points:
                    output.errorbar(ax, x + shift, cost, color=color, marker=marker, markersize=6)
            ax.axhline(idle["cost"]["mean"], color="#555555", linestyle=(0, (6, 2, 1, 2)), linewidth=1.4)
            ax.axhline(limit, color="black", linestyle="--", linewidth=1.2)
            ax.xaxis.set_major_formatter(PercentFormatter(1))
        left.set_xlabel("share of the poisoned trajectories that the list holds")
        right.set_xlabel("share of the list that is clean trajectories")
        left.set_ylabel("cost per episode [95 %]")
        left.set_title("{setting}, {attack} {rate:g}".format(**idle), fontsize=11, loc="left")
    handles = [Line2D([], [], color=STYLES[n % len(STYLES)][0], marker=STYLES[n % len(STYLES)][1],
                      linestyle=STYLES[n % len(STYLES)][2], label=how) for n, how in enumerate(methods)]
    handles += [Line2D([], [], color="#555555", linestyle=(0, (6, 2, 1, 2)), label="doing nothing"),
                Line2D([], [], color="black", linestyle="--", label="cost limit")]
    output.legend_below(figure, handles, 5)
    return figure
