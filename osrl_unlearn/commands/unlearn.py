"""``osrl-unlearn unlearn RUN_DIR --method M [--forget MANIFEST|detect]``: unlearn from a finished run, no script."""
import dataclasses
import os
import re

from osrl_unlearn import rundir, status
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.detection import find_forget_set
from osrl_unlearn.errors import ConfigError, ManifestMismatch
from osrl_unlearn.files import check_writable
from osrl_unlearn.options import assignments, parse
from osrl_unlearn.registry import METHODS, load_named
from osrl_unlearn.status import say
from osrl_unlearn.unlearning import Trained, UnlearnConfig, check_request, run_unlearning


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the folder that holds config.yaml and checkpoint/")
    parser.add_argument("--method", default="safe_rule", help="NAME or FILE.yaml (default: safe_rule)")
    parser.add_argument("--forget", help="forget manifest (default: the run's own), a file of trajectory "
                                         "numbers, or: detect")
    parser.add_argument("--withdrawn", action="store_true",
                        help="nothing is wrong with what is forgotten: it is not treated as unsafe")
    parser.add_argument("--detector", default="ensemble", help="with --forget detect: what finds the forget set")
    parser.add_argument("--fdr", default="0.05", help="with --forget detect: share of false alarms among those found")
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
    values.update(assignments(args.set))
    parse(cls.Options, values, "--set ")
    given = {name: getattr(args, name) for name in ("steps", "budget", "forget", "reference", "seed", "eval_episodes",
                                                  "strict", "detector", "fdr", "withdrawn")}
    config = parse(UnlearnConfig, dict({k: v for k, v in given.items() if v is not None}, method=cls.name), "--")
    config.options = values
    print(unlearn_run(args.run_dir, (config, args.dataset), args.device))
    return 0


def unlearn_run(run_dir, config_and_dataset, device="cpu"):
    """Unlearn the agent of ``run_dir``; returns the summary text."""
    config, dataset = config_and_dataset
    rundir.read_config(run_dir)
    check_writable(run_dir)
    detecting = config.detecting
    numbers = None if detecting or not config.forget else listed(config.forget)
    manifest = own_manifest(run_dir) if detecting or numbers else rundir.load_manifest(run_dir, config.forget)
    run = rundir.load(run_dir, device)
    check_request(run.adapter, config, run.config["task"])
    data, ids = load_data(run, manifest, dataset)
    dataset = os.path.abspath(dataset) if dataset else rundir.recorded_dataset(run.state, manifest)
    if numbers:
        manifest = ForgetManifest.of_trajectories(data, numbers, ids, task=run.config["task"])
    manifest = dataclasses.replace(manifest, dataset=dataset or manifest.dataset)
    state, settings = run.state or {}, run.config
    reward_scale = float(state.get("reward_scale", settings.get("reward_scale", 1)))
    cost_scale = float(state.get("cost_scale", settings.get("cost_scale", 1)))
    if run.adapter.constants and run.state is None:
        store = run.adapter.store(data, reward_scale, cost_scale)
        run.adapter.set_data_constants(store.view(store.rows))
    found = []
    if detecting:
        manifest, sentence = find_forget_set(
            config, run_dir, data, ids, run.adapter, true=manifest if manifest.attack else None, task=settings["task"],
            dataset=dataset, reward_scale=reward_scale, cost_scale=cost_scale, progress=not status.quiet)
        found = [sentence]
    if config.withdrawn:
        manifest = dataclasses.replace(manifest, withdrawn=True)
    manifest, earlier = after_earlier(manifest, run_dir)
    for note in run.notes + earlier:
        say(note)
    trained = Trained(
        run.adapter, data, ids, manifest, run_dir, settings, settings["task"], settings["cost_limit"], reward_scale,
        cost_scale, rundir.training_updates(state, settings), state.get("train_seconds"),
        state.get("batch_size", settings.get("batch_size", 256)), run.notes + found + earlier,
        state.get("python_random"), trigger_of(run_dir),
        state.get("unlearned", 0))
    return "\n".join(found + [run_unlearning(trained, config, not status.quiet)[1]])


def listed(path):
    """The trajectory numbers in a file that is a list of them and no forget manifest, else None."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return None if text.startswith("{") else numbers_in(text, path)


def numbers_in(text, path):
    """Trajectory numbers separated by commas or white space, perhaps in brackets, sorted. Raises ConfigError."""
    text = text.strip()
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    words = re.split(r"[\s,]+", inner.strip(" \n,"))
    if words == [""]:
        raise ConfigError("{} names no trajectory".format(path))
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        raise ConfigError("{}: expected a forget manifest, or trajectory numbers, 0 or more; found {!r}".format(
            path, wrong[:50]))
    return sorted({int(word) for word in words})


def own_manifest(run_dir):
    """The run's own forget manifest; one that names nothing if it has none."""
    if os.path.isfile(rundir.manifest_path(run_dir)):
        return rundir.load_manifest(run_dir)
    return ForgetManifest(unit="trajectory", spans=[], rows=0, columns={})


def after_earlier(manifest, run_dir):
    """(``manifest`` with what the agent of ``run_dir`` has forgotten before, [a sentence that says so] or [])."""
    wanted = manifest
    for folder in rundir.lineage(run_dir):
        if rundir.origin(folder) is not None:
            manifest = manifest.after(own_manifest(folder))
    count = manifest.count() - wanted.count()
    return manifest, ["{:,} more rows, which earlier requests named, stay forgotten: nothing of them is "
                      "retained".format(count)] * bool(count)


def trigger_of(run_dir):
    """The trigger on record of a run, or of the nearest that it was unlearned from; None without one."""
    triggers = (own_manifest(folder).trigger() for folder in rundir.lineage(run_dir))
    return next((trigger for trigger in triggers if trigger is not None), None)


def load_data(run, manifest, dataset=None):
    """The data that the agent was trained on, (data, ids), checked against ``manifest``.

    A manifest that does not know how they were poisoned, such as a detected one, leaves that to the run's own, or to
    that of the run that an unlearned agent came from.
    """
    try:
        return rundir.load_data(run, manifest, dataset)
    except ManifestMismatch:
        attacked = (own for own in map(own_manifest, rundir.lineage(run.path)) if own.attack is not None)
        own = next(attacked, None) if manifest.attack is None else None
        if own is None:
            raise
    data, ids = rundir.load_data(run, own, dataset)
    manifest.verify(data)
    return data, ids
