"""``osrl-unlearn audit RUN_DIR``: what is left of the forget set in an agent, unlearned by us or not."""
import json
import os
import sys

from osrl_unlearn import environments, rundir, status
from osrl_unlearn.audit import certificate
from osrl_unlearn.audit.base import Context, compute
from osrl_unlearn.audit.signature import check_key, sign
from osrl_unlearn.audit.table import rows
from osrl_unlearn.commands.unlearn import load_data, own_manifest
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.errors import ConfigError, RunError
from osrl_unlearn.evaluate.report import markdown_table
from osrl_unlearn.files import check_writable, sha256_array
from osrl_unlearn.options import check_seed
from osrl_unlearn.status import say


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the agent: a run directory, or RUN_DIR/unlearned/METHOD")
    parser.add_argument("--reference", action="append", default=[], metavar="RUN_DIR",
                        help="an agent retrained without the forget set; twice to know their spread")
    parser.add_argument("--original", metavar="RUN_DIR",
                        help="the agent before unlearning (default: the run that RUN_DIR/unlearned/METHOD is in)")
    parser.add_argument("--dataset", help="the DSRL file of the run (default: the one it recorded)")
    parser.add_argument("--holdout", metavar="FILE", help="a DSRL file that no agent was trained on")
    parser.add_argument("--forget", metavar="MANIFEST", help="forget manifest (default: the run's own)")
    parser.add_argument("--episodes", type=int, default=20, help="paired episodes per agent; 0: no environment")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes and of what the metrics draw")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--sign", metavar="KEY", help="sign the certificate with this SSH key, by ssh-keygen")


def main(args):
    """Audit, write audit.json and certificate.json, print a table."""
    settings = {key: getattr(args, key) for key in ("reference", "original", "dataset", "holdout", "forget", "episodes",
                                                    "seed", "device")}
    if args.sign:
        check_key(args.sign)
    ctx, files, settings = load(args.run_dir, settings)
    check_writable(args.run_dir)
    figures = compute(ctx)
    made = certificate.write(args.run_dir, ctx, figures, files, settings)
    if args.sign:
        sign(certificate.certificate_path(args.run_dir), args.sign)
    print(table(made))
    print("\nVerdict: {} ({}). Certificate: {}\nLimits: {}.".format(
        made["verdict"], made["reason"], certificate.certificate_path(args.run_dir), "; ".join(made["limits"])))
    return 0


def load(run_dir, settings):
    """(:class:`Context`, files by role, settings with which the audit can be repeated) for a run directory."""
    check_seed(settings["seed"])
    if settings["episodes"] < 0:
        raise ConfigError("--episodes must not be negative, got {}".format(settings["episodes"]))
    rundir.read_config(run_dir)
    original = settings["original"] or (rundir.trained_in(run_dir) if rundir.origin(run_dir) else None)
    manifest = rundir.load_manifest(run_dir, settings["forget"])
    run = rundir.load(run_dir, settings["device"])
    for note in run.notes:
        say(note)
    others = [_agent(run, folder, settings["device"]) for folder in ([original] if original else [])
              + list(settings["reference"])]
    if original:
        run = run._replace(path=original if not os.path.isfile(rundir.attack_path(run_dir)) else run_dir)
    env, state, config = run.adapter.trainer.env, run.state or {}, run.config
    recorded = rundir.recorded_dataset(state, manifest, own_manifest(run.path))
    # Looked for once, so that the file that is read is the one whose hash goes into the certificate.
    dataset = environments.find_dataset(env, settings["dataset"] or recorded)
    settings = dict(settings, original=original, dataset=dataset)
    files = certificate.files_of(run_dir, settings)
    data, ids = load_data(run, manifest, dataset)
    holdout = settings["holdout"] and _holdout(env, config["task"], settings["holdout"], data, ids)
    source = run if not original else others[0][1]
    ctx = Context(
        run.adapter, data, ids, manifest, float(config["cost_limit"]),
        float(state.get("reward_scale", config.get("reward_scale", 1))),
        float(state.get("cost_scale", config.get("cost_scale", 1))),
        int(state.get("batch_size", config.get("batch_size", 256))),
        rundir.training_updates(source.state, config), others[0][0] if original else None,
        [adapter for adapter, _ in (others[1:] if original else others)], holdout, certificate.trigger_of(files),
        settings["episodes"], settings["seed"], sys.stderr.isatty() and not status.quiet)
    models = certificate.model_hashes(ctx)
    certificate.check_references(models, settings["reference"])
    certificate.unlearning(files, models)
    if ctx.adapter.constants and run.state is None:
        ctx.adapter.set_data_constants(ctx.store.view(ctx.store.rows))
    short = lambda path: path and certificate.short(path, run_dir)  # noqa: E731
    return ctx, files, dict(settings, reference=[short(r) for r in settings["reference"]],
                            **{key: short(settings[key]) for key in ("original", "holdout", "forget", "dataset")})


def _holdout(env, task, path, data, ids):
    """The data in the file ``path``. Raises ConfigError if trajectories of it are in the training data."""
    held, held_ids = environments.load(env, {"task": task}, path)
    shared = _trajectories(held, held_ids) & _trajectories(data, ids)
    if shared:
        raise ConfigError("--holdout {}: {} of its trajectories are in the data that the agent was trained on: "
                          "expected data that no agent was trained on".format(path, len(shared)))
    return held


def _trajectories(data, ids):
    """Hashes of the states and actions of each trajectory."""
    index = TrajectoryIndex(data, ids)
    return {(sha256_array(data["observations"][a:b]), sha256_array(data["actions"][a:b]))
            for a, b in zip(index.starts, index.stops)}


def _agent(run, folder, device):
    other = rundir.load(folder, device)
    if (other.config["task"], other.adapter.name) != (run.config["task"], run.adapter.name):
        raise RunError("{} holds {} on {}, the audited agent is {} on {}".format(
            folder, other.adapter.name, other.config["task"], run.adapter.name, run.config["task"]))
    return other.adapter, other


def repeat(made, run_dir, dataset=None):
    """Compute a certificate again, all but the hashes of files, and compare. Raises RunError for what differs first."""
    ctx, _, _ = load(run_dir, certificate.resolved(made["settings"], run_dir, dataset))
    found = certificate.about(ctx, json.loads(certificate.text_of(compute(ctx))))
    certificate.compare(made["audit"], found["audit"])
    certificate.compare({key: made[key] for key in found}, found, "certificate")


# Table ----------------------------------------------------------------------------------------------------------------

def table(made):
    """Markdown: the main figures and what was not computed, then the claims."""
    said = {True: "yes", False: "NO", None: "not tested"}
    return "\n\n".join([markdown_table(rows(made["audit"]), ["metric", "figure", "value"]), markdown_table(
        [[claim["text"], said[claim["holds"]], claim["because"]] for claim in made["claims"]],
        ["claim", "holds", "because"])])
