"""``osrl-unlearn bench attacks``: which attack harms which agent.

    OUT/attacks.json                   a row per setting, attack and rate: means over seeds, differences, the verdict
    OUT/attacks.jsonl                  a line per cell, with the sums of every episode
    OUT/attacks.md, attacks.png        the rows, to be read
"""
import dataclasses

from matplotlib.lines import Line2D

from osrl_unlearn.bench import agents, output
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.bench.output import number
from osrl_unlearn.bench.partial import FEW
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.evaluate.report import markdown_table, panels
from osrl_unlearn.options import check_seed
from osrl_unlearn.registry import ATTACKS

INVALID, DESTROYS, HARMS = "agent not valid when clean", "destroys the agent", "harms"
WITHIN, LESS, NOTHING = "costs more, within the limit", "earns less", "no effect measured"
MOST = 0.2  # an attacker who owns more of the data needs no attack


@dataclasses.dataclass
class AttacksSuite(suites.Suite):
    """A suite with {label of an attack: further seeds}, where ``seeds`` do not decide."""
    more_seeds: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        for label, seeds in self.more_seeds.items():
            if label not in self.attacks:
                raise ValueError("more_seeds names '{}', which is none of the attacks".format(label))
            for seed in seeds:
                check_seed(seed)

    @property
    def every_seed(self):
        """All seeds of any attack."""
        return sorted(set(self.seeds).union(*self.more_seeds.values()))

    def tried(self, name, seed):
        """As :meth:`attacked`, what there is for ``seed``."""
        return [found for found in self.attacked(name)
                if seed in self.seeds or seed in self.more_seeds.get(found[0], ())]


def run(path, args):
    """Compute what the suite at ``path`` asks for and make the tables; 1 if cells failed, else 0."""
    return output.run("attacks", suites.read(path, args.only, args.seeds, AttacksSuite), args, plan=plan, text=text,
                      aggregate=aggregate, draw=draw, function="osrl_unlearn.bench.agents:evaluate_agent")


# Cells ----------------------------------------------------------------------------------------------------------------

def plan(suite, files, hashes):
    """{(setting, attack or None, rate or None, trigger or None, seed): cell}; attack and trigger are labels.

    Every attacked agent, and the clean one of its setting and seed, is evaluated as it is and, if the attack has a
    trigger, once more under the trigger.
    """
    plain, triggered = {}, {}
    for seed in suite.every_seed:
        for name, setting in suite.settings.items():
            attacked = suite.tried(name, seed)
            if not attacked and seed not in suite.seeds:
                continue

            def cell(attack=None, rate=None, trigger=None):
                shown = suite.attacks.get(trigger)
                return dict(
                    agents.description(setting, files[setting.task], hashes[setting.task], suite.attacks.get(attack),
                                       rate, seed), kind="evaluation",
                    trigger=shown and {"name": shown.name, "options": shown.options},
                    label="{}, {}{}, seed {}".format(
                        name, "clean" if attack is None else "{} {:g}".format(attack, rate),
                        "" if shown is None else ", trigger of " + trigger, seed))

            plain[name, None, None, None, seed] = cell()
            for label, attack, _ in attacked:
                if attack.triggered:
                    triggered[name, None, None, label, seed] = cell(trigger=label)
            for label, attack, rate in attacked:
                plain[name, label, rate, None, seed] = cell(label, rate)
                if attack.triggered:
                    triggered[name, label, rate, label, seed] = cell(label, rate, label)
    return {**plain, **triggered}  # the second evaluation of an agent comes when the agent is there


# Numbers --------------------------------------------------------------------------------------------------------------

def aggregate(suite, results):
    """The report's "clean" (per setting) and "rows" (per setting, attack and rate) from {key of plan(): result}."""
    def measured(*where):
        found = intervals.by_seed(results, suite.every_seed, *where)
        return intervals.means(intervals.per_seed(
            {seed: result["evaluations"] for seed, result in found.items()})) if found else None

    def compare(poisoned, clean):
        if poisoned is None or clean is None:
            return None
        return {"clean": clean, "poisoned": poisoned, "difference": {
            name: intervals.difference(poisoned[name]["values"], clean[name]["values"]) for name in clean}}

    cleans = {name: measured(name, None, None, None) for name in suite.settings}
    rows = []
    for name, setting in suite.settings.items():
        for label, attack in suite.attacks.items():
            for rate in attack.on(name):
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
        clean: the clean agent without any trigger. It shows whether the setting can show anything, and a triggered
            agent has to be worse than it too: the mere sight of a trigger can put a clean agent off.
        limit, min_return: what a valid clean agent's cost does not exceed and its return does.
    """
    cost, earned = compared["difference"]["cost"]["ci95"], compared["difference"]["return"]["ci95"]
    if clean["cost"]["mean"] > limit or clean["return"]["mean"] < min_return:
        return INVALID
    if compared["poisoned"]["return"]["mean"] < clean["return"]["mean"] / 2 and clean["return"]["mean"] > 0:
        return DESTROYS
    if cost is None:
        return FEW
    untriggered = intervals.difference(compared["poisoned"]["cost"]["values"], clean["cost"]["values"])["ci95"]
    if min(cost[0], untriggered[0]) > 0:
        return HARMS if compared["poisoned"]["cost"]["mean"] > limit else WITHIN
    return LESS if earned[1] < 0 else NOTHING


# Output ---------------------------------------------------------------------------------------------------------------

def text(report):
    """The tables as Markdown."""
    suite, parts = report["suite"], ["# Which attack harms"]
    parts.append("Costs and returns per episode: mean over training seeds ({}{}) [95 % interval]. \"+ cost\" and "
                 "\"+ return\": poisoned minus clean [Welch's interval]. An attack with a trigger is judged by the "
                 "line \"with its trigger\"; the differences there are to the clean agent that is shown the trigger "
                 "too, and it harms only if it costs more than the clean agent without the trigger as well.".format(
                     ", ".join(map(str, suite["seeds"])), "".join("; of {} and the clean agents also {}".format(
                         label, ", ".join(map(str, seeds))) for label, seeds in suite["more_seeds"].items())))
    for name, setting in suite["settings"].items():
        clean, rows = report["clean"][name], [row for row in report["rows"] if row["setting"] == name]
        if clean is None:
            continue
        evaluation = setting["evaluation"]
        parts.append("## {}\n\n{} Evaluated at {} checkpoints, {:,} updates apart; episodes at each: {}.".format(
            name, output.training(setting), evaluation["last"], evaluation["every"], evaluation["episodes"]))
        lines = [["clean", "", number(clean["cost"]), number(clean["return"]), "", "", ""]]
        for row in rows:
            for shown in filter(None, ("plain", row["triggered"] and "triggered")):
                compared, counts = row[shown], shown == "triggered" or row["triggered"] is None
                lines.append([row["attack"] if shown == "plain" else row["attack"] + ", with its trigger",
                              "{:g}".format(row["rate"]), number(compared["poisoned"]["cost"]),
                              number(compared["poisoned"]["return"]), number(compared["difference"]["cost"], "+"),
                              number(compared["difference"]["return"], "+"), row["verdict"] if counts else ""])
        parts.append(markdown_table(lines, ["attack", "rate", "cost", "return", "+ cost", "+ return", "verdict"]))
    if report["rows"]:
        parts.append("## Valid attacks\n\nThat harm at a rate of at most {:.0%}, and the lowest rate at which they "
                     "do:\n\n{}".format(MOST, _valid(report)))
    return "\n\n".join(parts)


def _valid(report):
    """A line per agent, a column per kind of attack."""
    kinds, found = {row["name"]: ATTACKS.load(row["name"]).kind for row in report["rows"]}, {}
    for row in report["rows"]:
        setting = report["suite"]["settings"][row["setting"]]
        cell = found.setdefault(setting["agent"]["name"], {}).setdefault(kinds[row["name"]], {})
        if row["verdict"] == HARMS and row["rate"] <= MOST:
            where = row["name"], row["setting"].partition("/")[2] or row["setting"]
            cell[where] = min(row["rate"], cell.get(where, MOST))
    columns = list(dict.fromkeys(kinds.values()))
    return markdown_table([[agent] + [", ".join("{} from {:.0%} ({})".format(name, rate, task) for (name, task), rate
                                                in cells[kind].items()) or "none" if kind in cells else "not tried"
                                      for kind in columns] for agent, cells in found.items()], ["agent"] + columns)


# Okabe and Ito's colours; the markers differ too, for black and white.
STYLES = {HARMS: ("#D55E00", "o"), DESTROYS: ("#000000", "X"), WITHIN: ("#E69F00", "^"), LESS: ("#0072B2", "v"),
          NOTHING: ("#777777", "s"), INVALID: ("#CC79A7", "P"), FEW: ("#56B4E9", "D")}


def draw(report):
    """The difference in cost of every attack and rate, a panel per setting."""
    settings = {}
    for row in report["rows"]:
        settings.setdefault(row["setting"], []).append(row)
    if not settings:
        return None
    heights = [1 + 0.26 * len(rows) for rows in settings.values()]
    figure, axes = panels(8, 1.2 + sum(heights), len(settings), gridspec_kw={"height_ratios": heights})
    for ax, (name, rows) in zip(axes, settings.items()):
        limit = report["suite"]["settings"][name]["agent"]["cost_limit"]
        ax.axvline(0, color="#999999", linewidth=1)
        for y, row in enumerate(rows):
            color, marker = STYLES[row["verdict"]]
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
        ax.grid(False, axis="y")
        ax.set_yticks(range(len(rows)))
        ax.set_yticklabels(["{} {:g}".format(row["attack"], row["rate"]) for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
    used = [style for style in STYLES if any(row["verdict"] == style for row in report["rows"])]
    handles = [Line2D([], [], color=STYLES[style][0], marker=STYLES[style][1], linestyle="none", markersize=7,
                      label=style) for style in used]
    handles.append(Line2D([], [], color="black", linestyle="--", label="cost limit"))
    if any(row["triggered"] for row in report["rows"]):
        handles.append(Line2D([], [], color="#777777", marker="o", markerfacecolor="white", linestyle="none",
                              label="without the trigger"))
    output.legend_below(figure, handles, 4)
    return figure
