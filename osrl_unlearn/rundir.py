"""OSRL's run directories: what we read from them, and what we put beside OSRL's own files.

    RUN_DIR/config.yaml, checkpoint/model.pt         OSRL's, never touched
    RUN_DIR/osrl_unlearn/forget.json                 the forget manifest
    RUN_DIR/osrl_unlearn/attack.pt                   what the attack learned (a surrogate, a trigger), if anything
    RUN_DIR/osrl_unlearn/state.pt                    the training state that OSRL's checkpoint leaves out
    RUN_DIR/unlearned/METHOD/                        a run directory of its own, which OSRL's eval scripts load
    RUN_DIR/unlearned/METHOD/report.json, report.md, figures
    RUN_DIR/unlearned/METHOD/progress.txt            the run's own, continued
    .complete in either                              with which settings this was done; written last
"""
import glob
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional

import torch
import yaml

from osrl_unlearn import environments, generators
from osrl_unlearn.adapters import build_for, candidates
from osrl_unlearn.adapters.base import Adapter
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import repeat_attack
from osrl_unlearn.errors import ConfigError, DataError, ManifestMismatch, RunError
from osrl_unlearn.files import load_tensors, save_tensors, sha256_state, write_json, write_text
from osrl_unlearn.registry import ADAPTERS

SCHEMA = 1
FOLDER = "osrl_unlearn"
# In the working directory, for scripts without a run directory: python must not take it for this package.
LOOSE_FOLDER = "osrl-unlearn"


def manifest_path(run_dir, folder=FOLDER):
    """Where a run's forget manifest is."""
    return os.path.join(run_dir, folder, "forget.json")


def attack_path(run_dir, folder=FOLDER):
    """Where the state of the attack that poisoned a run is; beside the manifest."""
    return os.path.join(run_dir, folder, "attack.pt")


def attack_file(run_dir):
    """The file at :func:`attack_path` of a run, or of the nearest that it was unlearned from; None without one."""
    return next((path for path in map(attack_path, lineage(run_dir)) if os.path.isfile(path)), None)


def state_path(run_dir, suffix=None):
    """Where a run's side state is; ``suffix`` as in OSRL's ``model_best.pt``."""
    return os.path.join(run_dir, FOLDER, "state{}.pt".format("" if suffix is None else "_{}".format(suffix)))


def model_path(run_dir):
    """Where OSRL puts and looks for a run's checkpoint."""
    return os.path.join(run_dir, "checkpoint", "model.pt")


def complete_path(folder):
    """Where the marker of what is done is: of a training in its run directory, of unlearning in its result's."""
    return os.path.join(folder, ".complete")


def completed(folder):
    """What :func:`complete` was given, or None if that was not called or its file cannot be read."""
    try:
        with open(complete_path(folder), encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def complete(folder, settings):
    """Mark ``folder`` as done with ``settings``, a value that JSON can hold; None takes the mark away."""
    if settings is not None:
        write_json(complete_path(folder), settings)
    elif os.path.exists(complete_path(folder)):
        os.unlink(complete_path(folder))


def clear(run_dir):
    """Remove what is about a run's checkpoint, to be called before another training's takes its place."""
    for path in [manifest_path(run_dir), attack_path(run_dir)] + glob.glob(
            os.path.join(glob.escape(run_dir), FOLDER, "state*.pt")):
        if os.path.exists(path):
            os.unlink(path)


def unlearned_dir(run_dir, method):
    """Where the result of a method goes."""
    return os.path.join(run_dir, "unlearned", method)


def origin(run_dir):
    """The run directory that RUN_DIR/unlearned/METHOD is in, or None."""
    parent = os.path.dirname(os.path.abspath(run_dir))
    folder = os.path.dirname(parent)
    return folder if os.path.basename(parent) == "unlearned" and os.path.isfile(
        os.path.join(folder, "config.yaml")) else None


def lineage(run_dir):
    """A run directory and those that its agent was unlearned from, the nearest first."""
    while run_dir is not None:
        yield run_dir
        run_dir = origin(run_dir)


def trained_in(run_dir):
    """The run directory that the agent of ``run_dir`` was trained in: the last of its lineage."""
    return list(lineage(run_dir))[-1]


def training_updates(state, config):
    """How many updates the training of a run took, without those of unlearning; None if it is not known."""
    if not state:
        return config.get("update_steps")
    return state["updates"] - state.get("unlearned", 0) or None


def side_state(adapter, *, updates, batch_size, train_seconds, reward_scale, cost_scale, dataset=None,
               python_random=None, unlearned=0):
    """What goes into state.pt: with it, and OSRL's checkpoint, training continues as if it had not stopped.

    ``unlearned`` of the ``updates`` are not of the training but of unlearning.

    The streams of DataLoader workers cannot be saved: with ``num_workers`` above 0 the batches differ after a restart.
    """
    return {"schema": SCHEMA, "agent": adapter.name, "model": sha256_state(adapter.model.state_dict()),
            "hidden": adapter.hidden_state(), "generators": generators.all_states(adapter.device), "updates": updates,
            "unlearned": unlearned, "batch_size": batch_size, "train_seconds": train_seconds,
            "reward_scale": float(reward_scale), "cost_scale": float(cost_scale), "dataset": dataset,
            "python_random": python_random}


class Run(NamedTuple):
    """A finished run, loaded."""
    path: str
    config: Dict[str, Any]
    adapter: Adapter
    state: Optional[Dict[str, Any]]
    notes: List[str]


def read_config(run_dir):
    """A run's config.yaml. Raises RunError."""
    path = os.path.join(run_dir, "config.yaml")
    if not os.path.isdir(run_dir):
        raise RunError("no run directory at {}: expected the folder that holds config.yaml and checkpoint/".format(
            run_dir))
    if not os.path.isfile(path):
        raise RunError("{} has no config.yaml: give the run directory itself (OSRL nests it as "
                       "logs/GROUP/NAME/NAME)".format(run_dir))
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.load(file, Loader=_ConfigLoader)
    except yaml.YAMLError as error:
        raise RunError("{} cannot be read: {}".format(path, " ".join(str(error).split())))
    missing = [key for key in ("task", "cost_limit", "episode_len") if key not in (config or {})]
    if missing:
        raise RunError("{} lacks {}: expected the file that OSRL's logger saves".format(path, ", ".join(missing)))
    for key, kind, what in (("cost_limit", (int, float), "a number"), ("episode_len", int, "a whole number")):
        if not isinstance(config[key], kind) or isinstance(config[key], bool):
            raise RunError("{}: {} must be {}, got {!r}".format(path, key, what, config[key]))
    return config


class _ConfigLoader(yaml.SafeLoader):
    """Safe, and reads the tuples that OSRL's configurations hold."""


_ConfigLoader.add_constructor("tag:yaml.org,2002:python/tuple",
                              lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))


def load(run_dir, device="cpu"):
    """Load the agent of a run directory as :class:`Run`; ``notes`` say what could not be restored and what replaced it.

    Raises RunError for a missing, foreign or unsafe file, EnvironmentProblem when the task cannot be made, ConfigError
    for a device that cannot be used.
    """
    config = read_config(run_dir)
    _check_device(device)
    weights = read_weights(run_dir, device)
    state = _read_state(run_dir, device)
    env = environments.make(config["task"], config["cost_limit"], config.get("reward_scale", 1.0))
    with environments.stdout_to_stderr():
        adapter = build_for(config, weights, env, device, state and state.get("agent"))
    if adapter is None and state is not None:
        missing = ADAPTERS.load(state["agent"]).missing_settings(config)
        raise RunError("{} belongs to the agent '{}', but {}".format(
            state_path(run_dir), state["agent"], "config.yaml lacks its " + ", ".join(missing) if missing else
            "the checkpoint to another one"))
    if adapter is None:
        raise RunError("no adapter knows the agent in {} (its networks: {}): supported are {}".format(
            run_dir, ", ".join(sorted({n.split(".")[0] for n in weights})), ", ".join(ADAPTERS.names())))
    notes = []
    if state is not None and state.get("model") not in (None, sha256_state(weights)):
        notes.append("{} belongs to other weights than the checkpoint, which was written without our flags since: if "
                     "another agent was trained there, delete it and the forget manifest beside it".format(
                         state_path(run_dir)))
    if state is not None:
        adapter.restore(state["hidden"])
    else:
        notes.append("no {}: the optimisers' moments start from zero".format(state_path(run_dir)))
        known = adapter.advance(config.get("update_steps") or 0)
        for name in [name for name in adapter.tensors + adapter.scalars if name not in known]:
            notes.append("'{}' is not in OSRL's checkpoint: it starts from its initial value".format(name))
        for name in adapter.constants:
            notes.append("'{}' is not in OSRL's checkpoint: it is computed from the dataset".format(name))
    return Run(run_dir, config, adapter, state, notes)


def agents(run_dir):
    """Names of the adapters for the agent of a run directory; several, if only :func:`load` can tell which is right.

    Raises RunError for a missing, foreign or unsafe file.
    """
    state = _read_state(run_dir)
    return [cls.name for cls in candidates(read_config(run_dir), read_weights(run_dir), state and state.get("agent"))]


def _read_state(run_dir, device="cpu"):
    return load_tensors(state_path(run_dir), device) if os.path.isfile(state_path(run_dir)) else None


def _check_device(device):
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:  # the second: torch was built without CUDA
        raise ConfigError("--device {} cannot be used here ({}): expected cpu, or cuda where there is a GPU".format(
            device, str(error).splitlines()[0][:120]))


def read_weights(run_dir, device="cpu"):
    """The networks in a run's checkpoint: its 'model_state', or what is alone in it under another key.

    Raises RunError.
    """
    checkpoint = load_tensors(model_path(run_dir), device)
    if isinstance(checkpoint, dict):
        weights = checkpoint.get("model_state", next(iter(checkpoint.values())) if len(checkpoint) == 1 else None)
        if isinstance(weights, dict):
            return weights
    raise RunError("{} holds no 'model_state': expected a checkpoint of OSRL".format(model_path(run_dir)))


def recorded_dataset(state, *manifests):
    """Absolute path of the first file that is there of those that ``manifests`` and a run's ``state`` record, or None.
    """
    recorded = [manifest.dataset for manifest in manifests] + [(state or {}).get("dataset")]
    return next((os.path.abspath(path) for path in recorded if path and os.path.isfile(path)), None)


def load_data(run, manifest, dataset=None):
    """The data that the run's agent was trained on: (data, trajectory ids).

    ``dataset`` is the file that holds them, by default the one that ``manifest`` or the run records. Raises
    ManifestMismatch, and DataError, also if the file is gone and ``manifest`` has nothing to know another by.
    """
    state = run.state or {}
    dataset = dataset or recorded_dataset(state, manifest)
    if dataset is None and state.get("dataset") and not manifest.columns:
        raise DataError("the run was trained on {}, which is not there: give it with --dataset FILE".format(
            state["dataset"]))
    python_random = state.get("python_random")
    if python_random is not None:
        python_random = (python_random[0], tuple(python_random[1]), python_random[2])
    data, ids = environments.load(run.adapter.trainer.env, run.config, dataset, python_random)
    if manifest.task and manifest.task != run.config["task"]:
        raise ManifestMismatch("the forget manifest is for {}, the run for {}".format(
            manifest.task, run.config["task"]))
    if manifest.attack is not None and any(c["before"] is not None for c in manifest.columns.values()):
        try:
            manifest.verify(data)  # a file that is poisoned already
        except ManifestMismatch:
            path = attack_file(run.path)
            again = repeat_attack(data, manifest, ids, path and load_tensors(path))
            return again.data, again.ids
        return data, ids
    manifest.verify(data)
    return data, ids


def save_unlearned(folder, config, about, adapter, state):
    """Write config.yaml, checkpoint/model.pt and state.pt of an unlearned agent, each atomically."""
    weights = {name: tensor.detach().cpu().clone() for name, tensor in adapter.model.state_dict().items()}
    save_tensors(model_path(folder), {"model_state": weights})
    save_tensors(state_path(folder), state)
    if config is not None:
        # yaml.dump writes tuples with a tag that both OSRL's FullLoader and ours read.
        write_text(os.path.join(folder, "config.yaml"), yaml.dump(dict(config, osrl_unlearn=about), sort_keys=False))


def load_manifest(run_dir, path=None):
    """The manifest at ``path``, or the run's own (also of the run that an unlearned agent came from)."""
    if path is None:
        path = manifest_path(run_dir)
        if not os.path.isfile(path):
            raise ManifestMismatch("{} has no forget manifest of its own: name one with --forget MANIFEST".format(
                run_dir))
    return ForgetManifest.load(path)
