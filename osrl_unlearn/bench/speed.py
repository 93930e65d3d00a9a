"""``osrl-unlearn bench speed``: how fast training, unlearning and work on large files are, against OSRL as it is.

    OUT/speed.json                 every ratio with its repetitions, the goals, the machine
    OUT/speed.jsonl                a line per measurement
    OUT/speed.md, speed.png        the tables, to be read
"""
import dataclasses
import itertools
import os

import numpy as np

from osrl_unlearn import __version__, resources
from osrl_unlearn.bench import agents, output
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.bench.processes import OPERATIONS, SCRIPT_UPDATES, WAYS
from osrl_unlearn.bench.speed_tables import draw, text
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.registry import ADAPTERS, nearest, read_yaml

PARTS = ("loops", "agents", "script", "sizes")
MET, NOISE, MISSED = "met", "within noise", "not met"
LINEAR = 1.2  # times as long per row as at the next smaller size is still called linear
MILLION = 1_000_000


@dataclasses.dataclass
class SpeedSuite:
    """What is measured on the dataset of ``task``, ``repetitions`` times. A part that is not there is left out.

    ``loops``: {agent: changes of OSRL's own settings (configs/agents)}, ``updates`` at a time, with each number of
    torch's ``threads``, on ``device``. ``agents``: settings as in the suite of ``bench attacks``, retrained, and
    unlearned at the ``shares`` of the trajectories with ``budget`` of the updates. ``script``: rows of the dataset that
    a training script loads, with the plugin and without. ``sizes``: {rows of a file that is poisoned, split and
    searched: how often}.
    """
    task: str
    repetitions: int
    loops: dict = dataclasses.field(default_factory=dict)
    updates: int = 100
    threads: list = dataclasses.field(default_factory=lambda: [1])
    device: str = "cpu"
    agents: dict = dataclasses.field(default_factory=dict)
    evaluation: dict = dataclasses.field(default_factory=dict)
    shares: list = dataclasses.field(default_factory=lambda: [0.1])
    budget: float = 0.01
    script: int = 0
    sizes: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if min(self.repetitions, self.updates) < 1 or not self.budget > 0:
            raise ValueError("repetitions, updates and budget must be positive")
        if not self.threads or not all(type(number) is int and number > 0 for number in self.threads):
            raise ValueError("threads must be positive numbers, at least one, got {}".format(self.threads))
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError("shares must be between 0 and 1, at least one, got {}".format(self.shares))
        if not all(type(number) is int and number > 0 for item in self.sizes.items() for number in item):
            raise ValueError("sizes must be numbers of rows with numbers of repetitions, got {}".format(self.sizes))
        self.agents = suites.each(suites.Setting, "agents", self.agents, lambda name: {"evaluation": self.evaluation})
        self.configurations()

    def configurations(self):
        """{agent: its configuration in OSRL on the task, with the changes of ``loops``}. Raises ConfigError."""
        out = {}
        for name, changes in self.loops.items():
            ADAPTERS.load(name)
            shipped = [os.path.join(resources.folder("configs"), *where) + ".yaml"
                       for where in (("agents", name), ("tasks", self.task))]
            if not all(map(os.path.isfile, shipped)):
                raise ConfigError("loops.{}: OSRL's settings on {} are not known: choose agents and a task that "
                                  "configs/ has files of".format(name, self.task))
            config = dict(read_yaml(shipped[0]), **read_yaml(shipped[1]), device=self.device, name=name)
            unknown = sorted(set(changes or {}) - set(config))
            if unknown:
                raise ConfigError("loops.{}: unknown setting '{}': {}".format(name, unknown[0], nearest(
                    unknown[0], config)))
            out[name] = dict(config, **(changes or {}))
        return out

    def select(self, names):
        """Keep only the parts called ``names``. Raises ConfigError."""
        for name in names:
            if name not in PARTS:
                raise ConfigError("bench speed has no part '{}': {}".format(name, nearest(name, PARTS)))
        for part in set(PARTS) - set(names):
            setattr(self, part, type(getattr(self, part))())

    def everything(self):
        """The dataset's task and the agents."""
        return {"data": suites.DataSetting(self.task), **self.agents}


def run(path, args):
    """Compute what the suite at ``path`` asks for and make the tables; 1 if cells failed, else 0."""
    if args.jobs > 1:
        raise ConfigError("--jobs {}: what is timed has to run alone, leave --jobs out".format(args.jobs))
    if args.seeds:
        raise ConfigError("--seeds: bench speed repeats, it has no seeds; see 'repetitions' in the suite")
    return output.run("speed", suites.read(path, args.only, cls=SpeedSuite), args, plan=plan,
                      function="osrl_unlearn.bench.timings:compute", aggregate=aggregate, text=text, draw=draw)


def plan(suite, files, hashes):
    """{key: cell}.

    The keys are ("loop", agent, threads), ("unlearning", setting), ("script",) and ("size", operation, rows).
    """
    base = {"version": __version__, "dataset": hashes[suite.task], "path": files[suite.task], "task": suite.task,
            "repetitions": suite.repetitions, "threads": 1}
    cells = {}
    for (name, config), threads in itertools.product(suite.configurations().items(), suite.threads):
        cells["loop", name, threads] = dict(base, kind="loop", agent=config, updates=suite.updates, threads=threads,
                                            label="loop of {}, threads: {}".format(name, threads))
    for name, setting in suite.agents.items():
        about = agents.description(setting, files[setting.task], hashes[setting.task], None, None, 0)
        cells["unlearning", name] = dict(base, **dict(about, kind="unlearning", shares=suite.shares,
                                                      budget=suite.budget, label="unlearning of " + name))
    if suite.script:
        cells["script",] = dict(base, kind="script", rows=suite.script, updates=SCRIPT_UPDATES, label="script")
    for (rows, repetitions), operation in itertools.product(suite.sizes.items(), OPERATIONS):
        cells["size", operation, rows] = dict(base, kind="size", rows=rows, operation=operation,
                                              repetitions=repetitions, label="{} {:,} rows".format(operation, rows))
    return cells


# Numbers --------------------------------------------------------------------------------------------------------------

def aggregate(suite, results):
    """The report's "machines", "others", "loops", "unlearning", "script", "sizes" and "goals" from {key: result}.

    Numbers of several repetitions are {"median", "low", "high", "n", "values"}, with the lowest and the highest.
    A ratio is one of two neighbours in the order of measurement, and its median is that of these ratios.
    """
    done = {where: result for where, result in results.items() if result is not None}
    report = {"machines": [], "others": [result["others"] for result in done.values() if result["others"] is not None],
              "loops": [_loop(*where[1:], suite, result) for where, result in done.items() if where[0] == "loop"],
              "unlearning": [row for where, result in done.items() if where[0] == "unlearning"
                             for row in _unlearning(where[1], suite, result)],
              "script": [row for where, result in done.items() if where[0] == "script" for row in _script(result)],
              "sizes": _sizes(suite, done)}
    for result in done.values():
        if result["machine"] not in report["machines"]:
            report["machines"].append(result["machine"])
    report["others"] = max(report["others"]) if report["others"] else None
    return dict(report, goals=goals(report))


def spread(values):
    """Median, lowest and highest of ``values``, one per repetition."""
    values = np.asarray(values, np.float64)
    return {"median": float(np.median(values)), "low": float(values.min()), "high": float(values.max()),
            "n": len(values), "values": values.tolist()}


def ratio(above, below):
    """:func:`spread` of above / below, repetition by repetition."""
    return spread(np.asarray(above, np.float64) / np.asarray(below, np.float64))


def _loop(name, threads, suite, result):
    config, seconds = suite.configurations()[name], result["seconds"]
    row = {"agent": name, "device": config["device"], "batch_size": config["batch_size"],
           "workers": config["num_workers"], "threads": threads}
    for what, times in seconds.items():
        row[what] = {"osrl": spread(times["osrl"]), "ours": spread(times["ours"]),
                     "ratio": ratio(times["osrl"], times["ours"])}
    return row


def _unlearning(name, suite, result):
    for share, rows, seconds in zip(suite.shares, result["rows"], result["shares"]):
        yield {"agent": name, "share": share, "rows": rows, "updates": result["updates"], "seconds": spread(seconds),
               "retrain": spread(result["retrain"]), "ratio": ratio(seconds, result["retrain"]),
               "growth": ratio(seconds, result["shares"][0])}


def _script(result):
    plain = result["ways"]["python"]
    for way in WAYS:
        yield dict({"way": way}, **{what: dict(spread(values), ratio=ratio(values, plain[what]))
                                    for what, values in result["ways"][way].items()})


def _sizes(suite, results):
    """Rows per operation and size; "per_row" is the time per row against that of the next smaller size."""
    rows = []
    for operation in OPERATIONS:
        before = None
        for size in sorted(suite.sizes):
            found = results.get(("size", operation, size))
            if found is None:
                continue
            row = {"operation": operation, "rows": size, "file_bytes": found["file_bytes"],
                   "seconds": spread(found["seconds"]), "peak_bytes": spread(found["peak_bytes"]),
                   "per_million": spread(np.array(found["seconds"]) * MILLION / size), "per_row": None}
            if before is not None:
                row["per_row"] = row["per_million"]["median"] / before["per_million"]["median"]
            rows.append(row)
            before = row
    return rows


def goals(report):
    """[{"goal", "found": :func:`spread` or a number, "bound", "verdict"}] of all goals that the report has numbers for.

    Met: the median is on the right side of the bound. Otherwise within noise, if some repetition is.
    """
    out = []

    def add(goal, found, bound, most=False):
        found = found if isinstance(found, dict) else spread([found])
        sign = -1 if most else 1
        good = [sign * found[key] >= sign * bound for key in ("median", "low", "high")]
        out.append({"goal": goal, "found": found, "bound": bound, "most": most,
                    "verdict": MET if good[0] else NOISE if any(good) else MISSED})

    for row in report["loops"]:
        gpu, what = row["device"] != "cpu", "{agent}, {threads} thread{s}: ".format(s="s"[:row["threads"] > 1], **row)
        add(what + "batches, one process each, times as fast", row["batch_alone"]["ratio"], 30)
        add(what + "updates, times as fast", row["loop"]["ratio"],
            5 if gpu else 1.5 if row["agent"] == "coptidice" else 1)
    ways = {row["way"]: row for row in report["script"]}
    if ways:
        noise = max(ways["python again"]["seconds"]["ratio"]["high"], 1.0)
        add("plugin without flags: time of the script (bound: the worst of python again)",
            ways["plugin"]["seconds"]["ratio"], noise, most=True)
        add("plugin with --poison: loading time", ways["plugin --poison"]["load"]["ratio"], 1.2, most=True)
        add("plugin with --poison: peak memory", ways["plugin --poison"]["peak_bytes"]["ratio"], 1.1, most=True)
    for row in report["sizes"]:
        if row["per_row"] is not None:
            add("{}, {:,} rows: time per row, against the size before".format(row["operation"], row["rows"]),
                row["per_row"], LINEAR, most=True)
    return out
