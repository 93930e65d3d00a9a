"""``osrl-unlearn bench requests``: which requests to forget the screening warns of, and what some of them do.

    OUT/requests.json      "screened": a row per setting and request; "carried_out": a row per agent, attack and request
    OUT/requests.jsonl     a line per cell
    OUT/requests.md        the rows, to be read
"""
import dataclasses

import numpy as np

from osrl_unlearn import __version__
from osrl_unlearn.bench import agents, output, partial, unlearning
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.bench.detection import attacked, defined
from osrl_unlearn.bench.output import number
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.evaluate import intervals
from osrl_unlearn.evaluate.report import markdown_table
from osrl_unlearn.registry import ATTACKS

HONEST = ("random", "most costly", "most of the safe")  # requests about clean data
SAFE = 0.75  # share of the trajectories within the cost limit that "most of the safe" names
REQUESTS = {"its camouflage": {"part": "camouflage"}, "its poison": {"part": "poison"},
            "as many clean": {"control": "camouflage"}}
CARRIED_OUT = ("its camouflage", "as many clean")
HARMS, NO_HARM = "harms", "no harm shown"


@dataclasses.dataclass
class RequestSetting(suites.DataSetting):
    """The dataset of a task; ``cost_limit`` is that of an episode."""
    cost_limit: float


@dataclasses.dataclass
class RequestSuite(suites.DataSuite):
    """Datasets, attacks whose rows are asked to be forgotten, and agents for which that is carried out.

    ``share``: of the trajectories that the honest requests about clean data name. ``agents`` are settings as in the
    suite of ``bench attacks``; they get the attacks that have a camouflage.
    """
    share: float = 0.075
    agents: dict = dataclasses.field(default_factory=dict)
    evaluation: dict = dataclasses.field(default_factory=dict)
    kind = RequestSetting

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.share < 1:
            raise ValueError("share must be between 0 and 1, got {}".format(self.share))
        self.agents = suites.each(suites.Setting, "agents", self.agents, lambda name: {"evaluation": self.evaluation})

    def select(self, names):
        """Keep only the settings and agents called ``names``. Raises ConfigError."""
        for name in names:
            suites.known(name, self.everything())
        self.settings, self.agents = ({name: setting for name, setting in group.items() if name in names}
                                      for group in (self.settings, self.agents))

    def everything(self):
        """Datasets and agents."""
        return {**self.settings, **self.agents}


def run(path, args):
    """Compute what the suite at ``path`` asks for and make the tables; 1 if cells failed, else 0."""
    return output.run("requests", suites.read(path, args.only, args.seeds, RequestSuite), args, plan=plan,
                      function="osrl_unlearn.bench.requests:compute", aggregate=aggregate, text=text)


# Cells ----------------------------------------------------------------------------------------------------------------

def asked(suite, name):
    """(label of the data, attack or None, rate or None, label of the request, forget) of every request to screen."""
    for request in HONEST:
        yield "clean data", None, None, request, {"honest": request, "share": suite.share}
    for label, attack, rate in suite.attacked(name):
        requests = REQUESTS if camouflaged(attack) else {"all of it": None}
        for request, forget in requests.items():
            yield label, attack, rate, request, forget


def camouflaged(attack):
    """Whether an attack (of a suite) labels a camouflage in its manifest."""
    return ATTACKS.load(attack.name).kind == "camouflage"


def carried_out(suite, name):
    """(label of the attack, attack, rate) of what the agents of a setting are given."""
    return [item for item in suite.attacked(name) if camouflaged(item[1])]


def plan(suite, files, hashes):
    """{key: cell}; the keys are ("screened", setting, label of the data, rate or None, request, seed) and
    ("carried out", agent, attack, rate, request or None, seed)."""
    idle, busy, screened = {}, {}, {}
    for seed in suite.seeds:
        for name, setting in suite.settings.items():
            for label, attack, rate, request, forget in asked(suite, name):
                screened["screened", name, label, rate, request, seed] = {
                    "kind": "screening", "version": __version__, "dataset": hashes[setting.task],
                    "path": files[setting.task], "task": setting.task, "cost_limit": setting.cost_limit, "seed": seed,
                    "poison": attack and attack.spec(rate), "forget": forget,
                    "label": "{}, {}, {}, seed {}".format(
                        name, label if rate is None else "{} {:g}".format(label, rate), request, seed)}
        for name, setting in suite.agents.items():
            for label, attack, rate in carried_out(suite, name):
                base = dict(agents.description(setting, files[setting.task], hashes[setting.task], attack, rate, seed),
                            kind="unlearning", method=None, forget=None)
                title = "{}, {} {:g}, {{}}, seed {}".format(name, label, rate, seed)
                idle["carried out", name, label, rate, None, seed] = dict(base, label=title.format("doing nothing"))
                for request in CARRIED_OUT:
                    busy["carried out", name, label, rate, request, seed] = dict(
                        base, method=unlearning.RETRAIN, forget=REQUESTS[request],
                        label=title.format("without " + request))
    return {**screened, **idle, **busy}


def compute(cell, out):
    """The result of either kind of cell."""
    return screen_request(cell, out) if cell["kind"] == "screening" else unlearning.unlearn_agent(cell, out)


def screen_request(cell, out):
    """What :func:`~osrl_unlearn.screening.screen` says of a request, and "forget": {"rows", "trajectories"}."""
    import torch

    from osrl_unlearn.screening import screen
    torch.set_num_threads(1)
    poisoned = attacked(cell, out)
    if cell["poison"] is None:
        manifest = honest(poisoned.data, poisoned.ids, cell["forget"], cell["cost_limit"], cell["seed"])
    else:
        manifest = unlearning.listed(poisoned, cell["forget"], cell["seed"])
    found = screen(poisoned.data, manifest.row_numbers(poisoned.data, poisoned.ids), cost_limit=cell["cost_limit"],
                   ids=poisoned.ids, seed=cell["seed"])
    return dict(found, forget={"rows": manifest.rows, "trajectories": manifest.trajectories})


def honest(data, ids, forget, cost_limit, seed):
    """The manifest of an honest request about clean ``data``.

    ``forget`` is {"honest": one of HONEST, "share": of the trajectories}; "most of the safe" are SAFE of those whose
    cost is within ``cost_limit``, at random.
    """
    units = TrajectoryIndex(data, ids).units("trajectory")
    count = int(round(forget["share"] * len(units.costs)))
    order = np.random.default_rng([unlearning.STREAM, seed]).permutation(len(units.costs))
    if forget["honest"] == "most costly":
        order = order[np.argsort(-units.costs[order], kind="stable")]
    if forget["honest"] == "most of the safe":
        order = order[units.costs[order] <= cost_limit]
        count = int(round(SAFE * len(order)))
    chosen = units.take(np.sort(order[:count]))
    return ForgetManifest.of(data, np.stack([chosen.trajectory, chosen.offsets, chosen.stops - chosen.starts], 1))


# Numbers --------------------------------------------------------------------------------------------------------------

def aggregate(suite, results):
    """The report's "screened" and "carried_out" from {key of plan(): result}."""
    def there(*where):
        return intervals.by_seed(results, suite.seeds, *where)

    screened, done = [], []
    for name in suite.settings:
        for label, _, rate, request, _ in asked(suite, name):
            found = list(there("screened", name, label, rate, request).values())
            if found:
                evidence = [result["cost_evidence"] for result in found]
                screened.append({
                    "setting": name, "data": label, "rate": rate, "request": request, "seeds": len(found),
                    "trajectories": float(np.mean([result["forget"]["trajectories"] for result in found])),
                    "warned": sum(bool(result["warnings"]) for result in found),
                    "fall": defined(e["fall"] for e in evidence), "ci95": [e["ci95"] for e in evidence],
                    "control": defined(e["control"] for e in evidence),
                    "safe_evidence": defined(result["safe_evidence"] for result in found)})
    for name, setting in suite.agents.items():
        for label, _, rate in carried_out(suite, name):
            idle, control = (there("carried out", name, label, rate, request) for request in (None, "as many clean"))
            for request in (None,) + CARRIED_OUT:
                found = there("carried out", name, label, rate, request)
                plain, shown = (partial.compare(found, idle if request else {}, setting.agent["cost_limit"], column)
                                for column in ("evaluations", "triggered"))
                if plain is not None:
                    against = partial.compare(found, control, setting.agent["cost_limit"], "triggered")["difference"]
                    row = {"setting": name, "attack": label, "rate": rate, "request": request, "plain": plain,
                           "triggered": shown, "control": against if request == "its camouflage" else None}
                    done.append(dict(row, verdict=row["control"] and verdict(shown["difference"], row["control"])))
    return {"screened": screened, "carried_out": done}


def verdict(idle, control):
    """Whether a deletion makes the agent worse, under the trigger: worse than before, and than another deletion.

    ``idle``, ``control``: differences in pairs, see :func:`~osrl_unlearn.evaluate.intervals.paired`.
    """
    found = [apart and apart["cost"]["ci95"] for apart in (idle, control)]
    if None in found:
        return partial.FEW
    return HARMS if all(low > 0 for low, _ in found) else NO_HARM


# Output ---------------------------------------------------------------------------------------------------------------

def text(report):
    """The tables as Markdown."""
    seeds = ", ".join(map(str, report["suite"]["seeds"]))
    parts = ["# Which requests to forget are warned of"]
    if report["screened"]:
        parts.append("By how much forgetting lowers the estimated cost-to-go of the forgotten transitions, as a share "
                     "of the mean (\"fall\"; \"control\": untouched trajectories of as many rows), and the share of "
                     "the evidence of safe and rewarding behaviour that would go: means over seeds ({}) [95 % "
                     "interval].".format(seeds))
    for name in report["suite"]["settings"]:
        rows = [row for row in report["screened"] if row["setting"] == name]
        if rows:
            parts.append("## {}".format(name))
            parts.append(markdown_table([
                [row["data"], "" if row["rate"] is None else "{:g}".format(row["rate"]), row["request"],
                 "{:.0f}".format(row["trajectories"])]
                + [number(row[key], digits=2) for key in ("fall", "control", "safe_evidence")]
                + ["{} of {} seeds".format(row["warned"], row["seeds"])] for row in rows],
                ["data", "rate", "request", "trajectories", "fall", "control", "safe evidence", "warned"]))
    if report["carried_out"]:
        parts.append("## What the requests do\n\nAgents trained on all the data (\"nothing forgotten\"), and retrained "
                     "without what a request names. Costs per episode: means over seeds ({}) [95 % interval]; "
                     "differences under the trigger, seed by seed. A request harms if both intervals are above "
                     "0.".format(seeds))
        parts.append(markdown_table([
            ["{}, {} {:g}".format(row["setting"], row["attack"], row["rate"]), row["request"] or "nothing forgotten",
             number(row["plain"]["cost"]), number(row["triggered"]["cost"]), number(row["triggered"]["return"]),
             _apart(row["triggered"]["difference"]), _apart(row["control"]), row["verdict"] or ""]
            for row in report["carried_out"]],
            ["agent", "request", "cost", "cost under the trigger", "return under the trigger",
             "+ cost, to nothing forgotten", "+ cost, to as many clean", "verdict"]))
    return "\n\n".join(parts)


def _apart(difference):
    return number(difference["cost"], "+") if difference else ""
