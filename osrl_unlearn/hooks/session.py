"""One run of an unedited script with --poison, --unlearn or --dataset: what is wrapped, and what happens after it."""
import ast
import dataclasses
import functools
import random
import sys
import time
from typing import Any, List, Optional

from osrl_unlearn import environments, rundir
from osrl_unlearn.data.dataset import check_arrays, check_file
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import poison
from osrl_unlearn.detection import DETECT, find_forget_set
from osrl_unlearn.engine import check_seen
from osrl_unlearn.errors import IncompatibleAgent, RunError
from osrl_unlearn.hooks.patching import Patch, PatchSet
from osrl_unlearn.hooks.seams import SEAMS
from osrl_unlearn.registry import ADAPTERS


@dataclasses.dataclass
class Record:
    """One data dictionary that a script got from ``pre_process_data``."""
    given: Any  # what the script has, and may filter in place
    data: Any   # the same columns, as they were
    ids: Any
    manifest: Optional[ForgetManifest]
    task: str
    cost_limit: Optional[float]
    python_random: Any
    dataset: Optional[str] = None
    reward_scale: Optional[float] = None
    cost_scale: Optional[float] = None
    rows: Optional[int] = None  # how many it gave to one of OSRL's datasets


class Session:
    """Wraps the seams while a script runs, and unlearns when it is done.

    Args:
        attack: an Attack or None, with ``poison_settings`` = {"rate", "unit", "seed"}.
        unlearn: an UnlearnConfig or None.
        dataset: file given with --dataset, or None.
    """

    def __init__(self, attack=None, poison_settings=None, unlearn=None, dataset=None):
        self.attack, self.poison_settings = attack, poison_settings or {}
        self.unlearn = unlearn
        self.dataset = dataset
        self.detecting = unlearn is not None and unlearn.forget == DETECT
        self.forget = ForgetManifest.load(unlearn.forget) if unlearn and unlearn.forget and not self.detecting else None
        self.records: List[Record] = []
        self.trainer = None
        self.updates, self.seconds, self.batch_size = 0, 0.0, None
        self._path = None
        self._poisoning = False  # an attack may train agents of its own: they are not the script's
        self._updating = False
        if dataset is not None:
            check_file(dataset)
        if unlearn and unlearn.reference:
            rundir.read_config(unlearn.reference)

    # Seams ------------------------------------------------------------------------------------------------------------

    def patches(self):
        """A PatchSet that wraps each seam as soon as the script imports its module."""
        around = {"get_dataset": self._get_dataset, "pre_process_data": self._pre_process_data,
                  "save_checkpoint": self._save_checkpoint, "train_one_step": self._train_one_step}
        patches = PatchSet()
        modules = {}
        for seam in SEAMS:
            owner, _, name = seam.target.partition(":")[2].rpartition(".")
            call = around.get(name) or (self._new_dataset if owner.endswith("Dataset") else self._new_trainer)
            modules.setdefault(seam.target.partition(":")[0], []).append(Patch(seam.target, call, seam.parameters))
        try:
            for module, wanted in modules.items():
                patches.when_imported(module, wanted)
        except BaseException:
            patches.undo()
            raise
        return patches

    def _get_dataset(self, original, env, h5path=None):
        path = h5path if h5path is not None and self.dataset is None else environments.find_dataset(env, self.dataset)
        data = original(env, path)
        check_arrays(data, path)
        from osrl_unlearn.data.trajectories import TrajectoryIndex
        data[environments.TRAJECTORY] = TrajectoryIndex(data).row_ids()
        self._path = path
        return data

    def _pre_process_data(self, original, env, data_dict, *args, **kwargs):
        state = random.getstate()
        data = original(env, data_dict, *args, **kwargs)
        ids = data.pop(environments.TRAJECTORY, None)
        task = env.spec.id if env.spec else type(env).__name__
        manifest = self.forget
        if self.attack is not None:
            self._poisoning = True
            try:
                data, manifest, ids = poison(data, self.attack, ids=ids, task=task, dataset=self._path,
                                             **self.poison_settings)
            finally:
                self._poisoning = False
            if manifest.removed is not None:
                _say("{} removed {:,} trajectories; nothing of it is in the data, so there is nothing to forget".format(
                    self.attack.name, len(manifest.removed)))
            else:
                _say("poisoned {:,} of {:,} rows in {:,} trajectories with {}".format(
                    manifest.rows, len(data["rewards"]), manifest.trajectories, self.attack.name))
        if self.forget is not None:
            # What is to be forgotten need not be all that was poisoned.
            self.forget.verify(data)
            self.forget = dataclasses.replace(self.forget, dataset=self._path)
            manifest = manifest if self.attack is not None else self.forget
        self.records.append(Record(data, dict(data), ids, manifest, task, getattr(env, "target_cost", None),
                                   [state[0], list(state[1]), state[2]], self._path))
        return data

    def _new_dataset(self, original, dataset, data, *args, **kwargs):
        original(dataset, data, *args, **kwargs)
        for record in self.records:
            if record.given is data:
                record.reward_scale, record.cost_scale = float(dataset.reward_scale), float(dataset.cost_scale)
                record.rows = len(data["rewards"])

    def _new_trainer(self, original, trainer, *args, **kwargs):
        original(trainer, *args, **kwargs)
        if self._poisoning:
            return
        self.trainer = trainer
        owner = next(cls for cls in type(trainer).__mro__ if "train_one_step" in vars(cls))
        if "{}:{}.train_one_step".format(owner.__module__, owner.__qualname__) not in {s.target for s in SEAMS}:
            # A subclass has an update of its own, which need not come by the seam of OSRL's class.
            step = trainer.train_one_step
            trainer.train_one_step = functools.wraps(step)(
                lambda *batch: self._train_one_step(lambda _, *given: step(*given), trainer, *batch))

    def _train_one_step(self, original, trainer, *batch):
        if self._poisoning or self._updating:
            return original(trainer, *batch)
        if self.batch_size is None:
            self._check_seen(trainer)
            self.batch_size = len(batch[0][0] if isinstance(batch[0], (list, tuple)) else batch[0])
        started, self._updating = time.perf_counter(), True
        try:
            original(trainer, *batch)
        finally:
            self._updating = False
        self.seconds += time.perf_counter() - started
        self.updates += 1

    def _check_seen(self, trainer):
        """Say before the training, not after it, that the agent sees nothing of what is to be forgotten."""
        record = self._record()
        manifest = self.forget if self.forget is not None or record is None else record.manifest
        if self.unlearn is None or self.detecting or record is None or manifest is None:
            return
        adapter = self._adapter(trainer)
        seen = adapter.training_rows(record.data)
        check_seen(adapter, seen, manifest.row_numbers(record.data, record.ids), len(record.data["rewards"]))
        if len(seen) != record.rows:
            raise RunError("the script gave {:,} rows to OSRL's dataset, but '{}' in this configuration is trained on "
                           "{:,}: it is not known which rows the script left out".format(
                               record.rows, adapter.name, len(seen)))

    def _adapter(self, trainer):
        from osrl_unlearn.adapters import adapt
        folder = getattr(trainer.logger, "log_dir", None)
        return adapt(trainer, rundir.read_config(folder) if folder else None)

    def _save_checkpoint(self, original, logger, suffix=None):
        original(logger, suffix)
        record = self._record()
        if record is None or not logger.log_dir:
            return
        from osrl_unlearn.files import save_tensors
        if record.manifest is not None:
            self._complete(record).save(rundir.manifest_path(logger.log_dir))
            if self.attack is not None and self.attack.state():
                save_tensors(rundir.attack_path(logger.log_dir), self.attack.state())
        if self.trainer is not None and self.trainer.logger is logger:
            suffix = "{:d}".format(suffix) if isinstance(suffix, int) else suffix
            save_tensors(rundir.state_path(logger.log_dir, suffix),
                         self._side_state(self._adapter(self.trainer), record))

    # After the script -------------------------------------------------------------------------------------------------

    def finish(self, progress=True):
        """Check that the poison reached the trainer; unlearn if asked to. Returns the text to print, or None."""
        record = self._record()
        if self.attack is not None and record is None:
            raise RunError("the script never gave the poisoned data to one of OSRL's datasets (TransitionDataset, "
                           "SequenceDataset): what it trained is not known to be poisoned")
        if self.unlearn is None:
            return None
        from osrl_unlearn.unlearning import Trained, run_unlearning
        if self.trainer is None or not self.updates:
            raise RunError("the script trained no agent that can be unlearned ({})".format(
                ", ".join(ADAPTERS.names())))
        if record is None:
            raise RunError("the script trained on data that did not come from pre_process_data(), so it is not known "
                           "which rows the forget manifest names")
        adapter = self._adapter(self.trainer)
        folder = getattr(self.trainer.logger, "log_dir", None)
        if not folder:
            raise RunError("the script's logger writes no files, so there is no run directory to put the result in: "
                           "set its logdir")
        config = rundir.read_config(folder)
        limit = record.cost_limit if record.cost_limit is not None else config["cost_limit"]
        found = []
        if self.forget is not None:
            record = dataclasses.replace(record, manifest=self.forget)
        if self.detecting:
            manifest, sentence = find_forget_set(
                self.unlearn, folder, record.data, record.ids, adapter, true=record.manifest, task=record.task,
                dataset=record.dataset, reward_scale=record.reward_scale, cost_scale=record.cost_scale)
            record, found = dataclasses.replace(record, manifest=manifest), [sentence]
        trained = Trained(adapter, record.data, record.ids, self._complete(record), folder, config, record.task,
                          limit, record.reward_scale, record.cost_scale, self.updates, self.seconds, self.batch_size,
                          found, record.python_random, self.attack.trigger() if self.attack is not None else None)
        return "\n".join(found + [run_unlearning(trained, self.unlearn, progress)[1]])

    def _record(self):
        return next((record for record in reversed(self.records) if record.rows is not None), None)

    def _complete(self, record):
        return dataclasses.replace(record.manifest, reward_scale=record.reward_scale, cost_scale=record.cost_scale,
                                   cost_limit=None if record.cost_limit is None else float(record.cost_limit))

    def _side_state(self, adapter, record):
        return rundir.side_state(adapter, updates=self.updates, batch_size=self.batch_size,
                                 train_seconds=self.seconds, reward_scale=record.reward_scale,
                                 cost_scale=record.cost_scale, dataset=record.dataset,
                                 python_random=record.python_random)


def refuse_unsupported(source, path):
    """Raise IncompatibleAgent if a script imports trainers of OSRL, but none that can be unlearned.

    Looking at the imports finds this before the script has written anything.
    """
    supported = {seam.target.partition(":")[2].split(".")[0] for seam in SEAMS}
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return  # running the script will say it better
    trainers = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("osrl.algorithms")
                for alias in node.names if alias.name.endswith("Trainer")}
    if trainers and not trainers & supported:
        raise IncompatibleAgent("the agent of {}".format(path), [
            "it is trained by {}; --unlearn works with {}".format(
                ", ".join(sorted(trainers)), ", ".join(sorted(t for t in supported if t.endswith("Trainer"))))])


def _say(message):
    print("osrl-unlearn: " + message, file=sys.stderr)


