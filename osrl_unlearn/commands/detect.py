"""``osrl-unlearn detect``: find a forget set when nobody names one, or look at one that was found."""
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from osrl_unlearn import environments, rundir, status
from osrl_unlearn.commands.unlearn import load_data, own_manifest
from osrl_unlearn.data.dataset import check_arrays, check_file, read_columns, task_of
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.stream import FLOATS
from osrl_unlearn.detection import check_fdr, describe, detect, make_detector
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.evaluate.report import GREY, VERMILLION, format_table
from osrl_unlearn.files import atomic_path, check_new, check_writable
from osrl_unlearn.options import assignments, check_seed


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("--task", help="search the task's dataset, found as in training")
    parser.add_argument("--dataset", help="search this DSRL file; without --task as it is, no environment is needed")
    parser.add_argument("--run", metavar="RUN_DIR", help="search what this agent was trained on, and ask it if need be")
    parser.add_argument("--detector", default="ensemble", help="default: ensemble")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="option of the detector")
    parser.add_argument("--fdr", type=float, default=0.05, help="share of false alarms to expect among those found")
    parser.add_argument("--seed", type=int, default=0, help="seed of the detector's models")
    parser.add_argument("--out", metavar="MANIFEST", help="where the forget manifest goes")
    parser.add_argument("--show", metavar="MANIFEST", help="list what was found before")
    parser.add_argument("--figure", metavar="FILE.png", help="with --show: plot cost against return")


def main(args):
    """Detect and write the manifest, or show one."""
    if args.show:
        if args.task or args.dataset or args.run or args.out:
            raise ConfigError("--show only looks at a manifest: leave --task, --dataset, --run and --out out")
        show(ForgetManifest.load(args.show), args.show, args.figure)
        return 0
    if args.figure:
        raise ConfigError("--figure needs --show MANIFEST: detect first, then show what was found")
    if not (args.task or args.dataset or args.run):
        raise ConfigError("nothing to search: give --task T, --dataset FILE or --run RUN_DIR")
    if not args.out or os.path.isdir(args.out):
        raise ConfigError("--out {}: give the file that the forget manifest goes to".format(args.out or "is missing"))
    check_new(args.out)
    check_fdr(args.fdr)
    check_seed(args.seed)
    detector = make_detector(args.detector, assignments(args.set))
    if "agent" in detector.needs and not args.run:
        raise ConfigError("the detector '{}' needs a trained agent: give --run RUN_DIR".format(detector.name))
    check_writable(os.path.dirname(os.path.abspath(args.out)))
    data, ids, about = load(args)
    manifest = detect(data, detector, fdr=args.fdr, seed=args.seed, ids=ids, progress=not status.quiet, **about)
    manifest.save(args.out)
    print("{}; {} has the scores{}".format(
        describe(manifest), args.out, "; to forget them: osrl-unlearn unlearn {} --forget {}".format(
            args.run or "RUN_DIR", args.out) if manifest.spans else ", and there is nothing to forget"))
    return 0


def load(args):
    """(data, trajectory ids, further arguments of detect) as the arguments say."""
    if args.run:
        run = rundir.load(args.run)
        if args.task and args.task != run.config["task"]:
            raise ConfigError("--task {}: the agent in {} was trained on {}".format(
                args.task, args.run, run.config["task"]))
        own, state = own_manifest(args.run), run.state or {}
        data, ids = load_data(run, own, args.dataset)
        return data, ids, {
            "adapter": run.adapter, "task": run.config["task"],
            "dataset": os.path.abspath(args.dataset) if args.dataset else rundir.recorded_dataset(state, own),
            "reward_scale": float(state.get("reward_scale", run.config.get("reward_scale", 1))),
            "cost_scale": float(state.get("cost_scale", run.config.get("cost_scale", 1)))}
    if args.task:
        env = environments.make(args.task, 0)
        path = environments.find_dataset(env, args.dataset)
        data, ids = environments.load(env, {"task": args.task}, path)
        return data, ids, {"task": args.task, "dataset": path}
    check_file(args.dataset)
    # As DSRL reads them, without the rows after the last end: the manifest hashes what agents are trained on.
    with np.errstate(over="ignore"):
        data = {name: column.astype(np.float32, copy=False) if name in FLOATS else column
                for name, column in read_columns(args.dataset).items()}
    check_arrays(data, args.dataset)
    rows = np.flatnonzero(data["terminals"].astype(bool) | data["timeouts"].astype(bool))[-1] + 1
    return {name: column[:rows] for name, column in data.items()}, None, {
        "dataset": os.path.abspath(args.dataset), "task": task_of(args.dataset)}


def show(manifest, path, figure=None):
    """Print the trajectories that ``manifest`` names, the most suspicious first; plot them if ``figure`` is a file."""
    try:
        found = {key: np.asarray(manifest.detection["trajectories"][key]) for key in ("id", "return", "cost", "score")}
        members = manifest.detection["detectors"]
        names, scores = list(members), np.array(list(members.values()))
        summary = describe(manifest)
    except (KeyError, TypeError):
        raise ConfigError("{} does not say how its forget set was found: expected a manifest from 'osrl-unlearn "
                          "detect'".format(path))
    named = np.isin(found["id"], [span[0] for span in manifest.spans])
    order = np.flatnonzero(named)[np.argsort(-found["score"][named], kind="stable")]
    print(format_table([[found["id"][i], "{:.1f}".format(found["return"][i]), "{:.1f}".format(found["cost"][i]),
                         "{:.2f}".format(found["score"][i]), names[int(np.argmax(scores[:, i]))]] for i in order],
                       ["trajectory", "return", "cost", "score", "suspected by"]) + "\n")
    if figure:
        plot(found["return"], found["cost"], named, figure)
        summary += "; figure: {}".format(figure)
    print(summary)


def plot(returns, costs, named, path):
    """Cost against return of every trajectory; those ``named`` in the manifest stand out by shape and colour."""
    drawing = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    for which, marker, color, size, label in ((~named, "o", GREY, 10, "not suspected"),
                                              (named, "^", VERMILLION, 24, "suspected")):
        axes.scatter(returns[which], costs[which], s=size, c=color, marker=marker, alpha=0.6, linewidths=0,
                     label="{} ({:,})".format(label, int(which.sum())))
    axes.set_xlabel("return (sum of rewards per trajectory)")
    axes.set_ylabel("cost (sum of costs per trajectory)")
    axes.legend()
    with atomic_path(path) as temporary:
        drawing.savefig(temporary, dpi=150, format="png")
