"""``osrl-unlearn unlearn RUN_DIR --method M [--forget MANIFEST]``: unlearn from a finished run, no script needed."""
import sys

from osrl_unlearn import rundir
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.options import parse
from osrl_unlearn.registry import METHODS, load_named
from osrl_unlearn.unlearning import Trained, UnlearnConfig, run_unlearning


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the folder that holds config.yaml and checkpoint/")
    parser.add_argument("--method", default="safe_rule", help="NAME or FILE.yaml (default: safe_rule)")
    parser.add_argument("--forget", help="forget manifest (default: the run's own)")
    parser.add_argument("--dataset", help="the DSRL file of the run (default: the one it recorded)")
    parser.add_argument("--steps", help="updates to spend")
    parser.add_argument("--budget", help="updates to spend, as a share of the training's")
    parser.add_argument("--reference", help="run directory of a retrained agent to compare with")
    parser.add_argument("--seed", default="0", help="seed of batches and of torch during unlearning")
    parser.add_argument("--eval-episodes", default="20", help="episodes per agent for the report; 0 for none")
    parser.add_argument("--strict", action="store_true", help="refuse a request to forget that looks harmful")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="option of the method")


def main(args):
    """Unlearn and print the summary."""
    cls, values = load_named(METHODS, args.method, "method")
    for item in args.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError("--set {}: expected OPTION=VALUE".format(item))
        values[name] = value
    parse(cls.Options, values, "--set ")
    given = {name: getattr(args, name) for name in ("steps", "budget", "forget", "reference", "seed", "eval_episodes",
                                                  "strict")}
    config = parse(UnlearnConfig, dict({k: v for k, v in given.items() if v is not None}, method=cls.name), "--")
    config.options = values
    print(unlearn_run(args.run_dir, (config, args.dataset), args.device))
    return 0


def unlearn_run(run_dir, config_and_dataset, device="cpu"):
    """Unlearn the agent of ``run_dir``; returns the summary text."""
    config, dataset = config_and_dataset
    rundir.read_config(run_dir)
    manifest = rundir.load_manifest(run_dir, config.forget)
    run = rundir.load(run_dir, device)
    data, ids = rundir.load_data(run, manifest, dataset)
    state = run.state or {}
    if run.adapter.constants and run.state is None:
        from osrl_unlearn.data.views import DatasetView, TransitionStore
        store = TransitionStore(data, device=device)
        run.adapter.set_data_constants(DatasetView(store, range(len(store))).everything())
    for note in run.notes:
        print("osrl-unlearn: " + note, file=sys.stderr)
    settings = run.config
    trained = Trained(
        run.adapter, data, ids, manifest, run_dir, settings, settings["task"], settings["cost_limit"],
        state.get("reward_scale", settings["reward_scale"]), state.get("cost_scale", settings.get("cost_scale", 1)),
        state.get("updates", settings.get("update_steps")), state.get("train_seconds"),
        state.get("batch_size", settings.get("batch_size", 256)), run.notes, state.get("python_random"))
    return run_unlearning(trained, config)[1]
