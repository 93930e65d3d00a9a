"""One run of an unedited script with --poison, --unlearn or --dataset: what is wrapped, and what happens after it."""
import dataclasses
import functools
import inspect
import json
import os
import random
import time
from typing import List

from osrl_unlearn import environments, rundir
from osrl_unlearn.data.dataset import check_arrays, check_file
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import poison
from osrl_unlearn.engine import check_seen
from osrl_unlearn.errors import IncompatibleAgent, OsrlUnlearnError, RunError
from osrl_unlearn.files import sha256_file
from osrl_unlearn.hooks.patching import Patch, PatchSet
from osrl_unlearn.hooks.reach import ENOUGH, columns_of
from osrl_unlearn.hooks.records import Record, Training, equal
from osrl_unlearn.hooks.refusals import untrained, without_trainer
from osrl_unlearn.hooks.repeat import Skipped, file_hashes, fingerprint
from osrl_unlearn.hooks.seams import SEAMS
from osrl_unlearn.registry import ADAPTERS
from osrl_unlearn.status import say, warn


class Session:
    """Wraps the seams while a script runs, and unlearns every agent that it trained when it is done.

    Args:
        attack: an Attack or None, with ``poison_settings`` = {"rate", "unit", "seed"}.
        unlearn: an UnlearnConfig or None.
        dataset: file given with --dataset, or None.
    """

    def __init__(self, attack=None, poison_settings=None, unlearn=None, dataset=None):
        self.attack, self.poison_settings = attack, poison_settings or {}
        self.unlearn = unlearn
        self.dataset = dataset and os.path.abspath(dataset)
        self.detecting = unlearn is not None and unlearn.detecting
        self.forget = ForgetManifest.load(unlearn.forget) if unlearn and unlearn.forget and not self.detecting else None
        if self.forget is not None:
            self.forget.check_not_empty()
        self.records: List[Record] = []
        self.trainings: List[Training] = []
        self.patch_set = PatchSet()
        self._started = os.getcwd()
        self._path = self._env = self._error = None
        self._watched, self._warned, self._replaced = set(), set(), set()
        self._command = None  # see hooks/repeat.py
        self._skipped: List[str] = []
        self._inside = self._building = False  # a subclass calls what it overrides
        self._off = False  # an attack and unlearning update agents too: that is not the script's training
        if dataset is not None:
            check_file(dataset)
        if unlearn and unlearn.reference:
            rundir.read_config(unlearn.reference)

    # Seams ------------------------------------------------------------------------------------------------------------

    def patches(self):
        """The PatchSet, in which each seam is wrapped as soon as the script imports its module."""
        around = {"get_dataset": self._get_dataset, "pre_process_data": self._pre_process_data,
                  "save_checkpoint": self._save_checkpoint, "setup_optimizers": self._setup_optimizers,
                  "store": self._store, "forward": self._forward, "backward": self._backward}
        modules = {}
        for seam in SEAMS:
            owner, _, name = seam.target.partition(":")[2].rpartition(".")
            # The first is wrapped where a trainer's class has it, when there is one.
            if name == "train_one_step" or name == "backward" and self.unlearn is None:
                continue
            call = around.get(name) or (self._new_dataset if owner.endswith("Dataset") else self._new_logger
                                        if owner.endswith("Logger") else self._new_trainer)
            modules.setdefault(seam.target.partition(":")[0], []).append(
                Patch(seam.target, self._remembering(call), seam.parameters))
        try:
            for module, wanted in modules.items():
                self.patch_set.when_imported(module, wanted)
            for target in self._trainers_of_third_parties():
                module, _, name = target.partition(":")
                self.patch_set.when_imported(module, functools.partial(self._constructor, target, name))
        except BaseException:
            self.patch_set.undo()
            raise
        return self.patch_set

    def _trainers_of_third_parties(self):
        if self.unlearn is None:
            return []
        from osrl_unlearn.adapters import third_party
        return [cls.trainer_class for cls in third_party()[0]]

    def _constructor(self, target, name, module):
        trainer = getattr(module, name, object)
        owner = next(cls for cls in trainer.__mro__ if "__init__" in vars(cls))
        return [] if owner is object else [Patch(target + ".__init__", self._remembering(self._new_trainer),
                                                 owner=owner)]

    def _remembering(self, call):
        """``call``, whose errors are kept: a script that catches them must not end as if nothing had happened."""
        def remember(*args, **kwargs):
            try:
                return call(*args, **kwargs)
            except OsrlUnlearnError as error:
                self._error = self._error or error
                raise
        return remember

    def _new_logger(self, original, logger, log_dir=None, log_txt=True, name=None):
        # Absolute, because a script may work in another folder than it started in, and we write after its end.
        log_dir = log_dir and os.path.abspath(log_dir)
        if log_dir is not None and name is not None and not self._off:
            self._skip_if_complete(os.path.join(log_dir, name))
        original(logger, log_dir, log_txt, name)

    def _skip_if_complete(self, folder):
        """Raise Skipped if this very command has trained ``folder`` before, and every other agent of its script."""
        if self._command is None:
            attack = self.attack and dict(self.poison_settings, name=self.attack.name,
                                          options=dataclasses.asdict(self.attack.options))
            self._command = json.loads(json.dumps(dict(
                fingerprint(self._started), attack=attack, dataset=self.dataset)))
        marked = rundir.completed(folder) or {}
        folders = [os.path.normpath(os.path.join(folder, run)) for run in marked.get("runs", ())]
        if (folders and all(self._completed(run) for run in folders)
                and marked.get("data", {}) == file_hashes(marked.get("data", {}))):
            say("{} is complete (.complete): it is not trained again; delete the folder to start anew".format(
                ", ".join(folders)))
            self._skipped = folders
            raise Skipped
        rundir.complete(folder, None)

    def _completed(self, folder):
        """Whether this very command trained the agent that is in ``folder`` now: without our flags, any other can."""
        marked, path = rundir.completed(folder) or {}, rundir.model_path(folder)
        return (marked.get("command") == self._command and os.path.isfile(path)
                and marked.get("model") == sha256_file(path))

    def _store(self, original, logger, tab=None, **values):
        original(logger, tab, **values)
        limit = getattr(self._env, "target_cost", None)
        if limit is None or self._off:
            return
        from osrl_unlearn import logs
        from osrl_unlearn.evaluate.rollouts import normalization
        for name, more in logs.normalized(tab, values, normalization(self._env, limit)).items():
            original(logger, name, **more)

    def _get_dataset(self, original, env, h5path=None):
        path = h5path if h5path is not None and self.dataset is None else environments.find_dataset(env, self.dataset)
        data = original(env, path)
        check_arrays(data, path)
        from osrl_unlearn.data.trajectories import TrajectoryIndex
        data[environments.TRAJECTORY] = TrajectoryIndex(data).row_ids()
        self._path, self._env = os.path.abspath(path), env
        return data

    def _pre_process_data(self, original, env, data_dict, *args, **kwargs):
        state = random.getstate()
        data = original(env, data_dict, *args, **kwargs)
        return self._prepare(env, data, state)

    def _prepare(self, env, data, state):
        """Poison ``data`` if that is asked for, and remember them; returns what the script is to have."""
        ids = data.pop(environments.TRAJECTORY, None)
        task = env.spec.id if env.spec else type(env).__name__
        manifest = self.forget
        if self.attack is not None:
            self._off = True
            try:
                data, manifest, ids = poison(data, self.attack, ids=ids, task=task, dataset=self._path,
                                             **self.poison_settings)
            finally:
                self._off = False
            if manifest.removed is not None:
                say("{} removed {:,} trajectories; nothing of it is in the data, so there is nothing to forget".format(
                    self.attack.name, len(manifest.removed)))
            else:
                say("poisoned {:,} of {:,} rows in {:,} trajectories with {}".format(
                    manifest.rows, len(data["rewards"]), manifest.trajectories, self.attack.name))
        if self.forget is not None:
            # What is to be forgotten need not be all that was poisoned.
            self.forget.verify(data)
            self.forget = dataclasses.replace(self.forget, dataset=self._path)
            manifest = manifest if self.attack is not None else self.forget
        self.records.append(Record(data, dict(data), ids, manifest, task, getattr(env, "target_cost", None),
                                   [state[0], list(state[1]), state[2]], self._path,
                                   hashes=None if self.attack is not None or self.unlearn is not None else {}))
        return data

    def _new_dataset(self, original, dataset, data, *args, **kwargs):
        if not self._off and isinstance(data, dict) and environments.TRAJECTORY in data:
            # The script left pre_process_data out.
            data = self._prepare(self._env, dict(data), random.getstate())
        original(dataset, data, *args, **kwargs)
        given = inspect.signature(original).bind(dataset, data, *args, **kwargs).arguments
        for record in self.records:
            if record.given is data or equal(record.data, data):
                record.reward_scale, record.cost_scale = float(dataset.reward_scale), float(dataset.cost_scale)
                record.rows = len(data["rewards"])
                record.datasets.append((dataset, given.get("cost_reverse", False)))

    def _new_trainer(self, original, trainer, *args, **kwargs):
        before, self._building = self._building, True
        try:
            original(trainer, *args, **kwargs)
        finally:
            self._building = before
        if not self._off:
            self._watch(trainer, "train_one_step")

    def _setup_optimizers(self, original, model, *args, **kwargs):
        original(model, *args, **kwargs)
        if self._off or self._building or any(training.trainer is model for training in self.trainings):
            return
        if self.unlearn is not None:
            raise without_trainer(model)
        self._watch(model, next(name for name in ("update", "critic_loss", "actor_loss") if hasattr(model, name)))

    def _forward(self, original, model, *args, **kwargs):
        # CDT has no setup_optimizers(): what shows that a script updates it itself is that gradients are wanted.
        import torch
        if (self._off or self._inside or not model.training or not torch.is_grad_enabled()
                or self.attack is None and self.unlearn is None
                or any(getattr(training.trainer, "model", None) is model for training in self.trainings)):
            return original(model, *args, **kwargs)
        if self.unlearn is not None:
            raise without_trainer(model)
        if not any(training.trainer is model for training in self.trainings):
            self.trainings.append(Training(model))
        return self._train_one_step(original, model, *args, **kwargs)

    def _backward(self, original, loss, *args, **kwargs):
        self._check_trainer()
        return original(loss, *args, **kwargs)

    def _check_trainer(self):
        """Say at the first update, not after the training, that there is no trainer whose agent can be unlearned."""
        if self.unlearn is not None and self.records and not self.trainings and not self._off:
            raise untrained()

    def _watch(self, trainer, name):
        """See what ``trainer`` is given, also if its class has a method of its own for that."""
        if not any(training.trainer is trainer for training in self.trainings):
            self.trainings.append(Training(trainer))
        owner = next(cls for cls in type(trainer).__mro__ if name in vars(cls))
        if owner not in self._watched:
            self._watched.add(owner)
            self.patch_set.add(Patch("{}:{}.{}".format(owner.__module__, owner.__name__, name),
                                     self._remembering(self._train_one_step), owner=owner))

    def _train_one_step(self, original, trainer, *args, **kwargs):
        training = next((t for t in self.trainings if t.trainer is trainer), None)
        if self._off or self._inside or training is None:
            return original(trainer, *args, **kwargs)
        columns = columns_of(original, trainer, args, kwargs)
        if self.attack is not None or self.unlearn is not None:
            self._look(training, columns)
        if training.batch_size is None:
            training.batch_size = next((len(value) for value in columns.values() if hasattr(value, "__len__")), 1)
            if self.unlearn is not None:
                from osrl_unlearn.unlearning import check_request
                self._check_folder(training)
                adapter = self._adapter(training)
                check_request(adapter, self.unlearn, training.record.task)
                self._check_seen(adapter, training.record)
        self._inside, started = True, time.perf_counter()
        try:
            return original(trainer, *args, **kwargs)
        finally:
            self._inside = False
            training.seconds += time.perf_counter() - started
            training.updates += 1

    def _look(self, training, columns):
        """Compare a batch with the data: every one until a row of the forget set is among them, then ever fewer."""
        updates, reach = training.updates, training.reach
        if reach is not None and reach.reached and updates & (updates - 1):
            return
        if reach is None:
            for record in reversed(self.records):
                reach = record.reach()
                known = reach.known(columns)
                if known is None or known > 0 or not self._at_stake(record):
                    if self._at_stake(record):
                        record.check_intact()
                    training.record, training.reach = record, reach
                    break
            else:
                raise RunError("{} is trained on data that did not come from get_dataset() and pre_process_data() as "
                               "they are, so it is not known what of it is {}".format(
                                   training.name, "poisoned" if self.attack is not None else "to be forgotten"))
            if record.reward_scale is None:  # none of OSRL's datasets was used
                record.reward_scale = float(getattr(training.trainer, "reward_scale", 1.0))
                record.cost_scale = float(getattr(training.trainer, "cost_scale", 1.0))
        known, record = training.reach.known(columns), training.record
        if known is None or not self._at_stake(record):
            return
        manifest = record.manifest
        if not known or (known < 1 and manifest is not None and manifest.removed is not None):
            raise RunError("after {:,} updates {} is trained on rows that are not in the data any more: the script "
                           "replaced the dataset".format(updates, training.name))
        reach = training.reach
        reach.look(columns, record.reward_scale, record.cost_scale, getattr(training.trainer, "cost_reverse", False))
        if record.datasets:
            for same in (other for other in self.records if other.hashes == record.hashes):
                same.datasets = []  # nothing but the batches counts, and they need memory
        if not reach.reached and reach.otherwise >= ENOUGH:
            raise RunError("{} is given the observations of the forget set, but with other actions, rewards or costs "
                           "than the data have: the script changed or scaled them after OSRL's dataset".format(
                               training.name))

    def _at_stake(self, record):
        """Whether it matters that the data reach the trainer as they are: not after an attack with a rate of 0."""
        return self.unlearn is not None or record.manifest.rows > 0 or record.manifest.removed is not None

    def _check_folder(self, training):
        """Say before the training, not after it, that its result has no place."""
        if not training.folder:
            raise RunError("the logger of {} writes no files, so there is no run directory to put the result in: give "
                           "it one of fsrl's loggers with a logdir".format(training.name))
        if any(other is not training and other.updates and other.folder == training.folder
               for other in self.trainings):
            raise RunError("two agents have the run directory {}: give each a logger with a logdir of its own".format(
                training.folder))

    def _check_seen(self, adapter, record):
        """Say before the training, not after it, that the agent sees nothing of what is to be forgotten."""
        manifest = self.forget if self.forget is not None else record.manifest
        if self.detecting or manifest is None:
            return
        store = adapter.store(record.data, record.reward_scale, record.cost_scale)
        check_seen(adapter, store.rows, manifest.row_numbers(record.data, record.ids), len(store))
        given = len(adapter.training_rows(record.data))
        if record.rows is not None and given != record.rows:
            raise RunError("the script gave {:,} rows to OSRL's dataset, but '{}' in this configuration is trained on "
                           "{:,}: it is not known which rows the script left out".format(
                               record.rows, adapter.name, given))

    def _adapter(self, training):
        from osrl_unlearn.adapters import adapt
        try:
            config = rundir.read_config(training.folder)
        except RunError:
            if self.unlearn is not None:
                raise
            config = None  # --poison alone needs none
        return adapt(training.trainer, config)

    def _save_checkpoint(self, original, logger, suffix=None):
        self._check_trainer()
        if logger.log_dir and logger.log_dir not in self._replaced:
            self._replaced.add(logger.log_dir)
            rundir.clear(logger.log_dir)
        original(logger, suffix)
        training = next((t for t in reversed(self.trainings) if getattr(t.trainer, "logger", None) is logger), None)
        record = training.record if training is not None and training.record is not None else self._record()
        if record is None or not logger.log_dir:
            return
        self._save_manifest(record, logger.log_dir)
        if training is not None and hasattr(training.trainer, "train_one_step"):
            self._save_state(training, record, suffix)

    def _save_state(self, training, record, suffix):
        from osrl_unlearn.files import save_tensors
        try:
            state = self._side_state(training, self._adapter(training), record)
        except IncompatibleAgent as error:
            if self.unlearn is not None:
                raise
            if id(training.trainer) not in self._warned:
                self._warned.add(id(training.trainer))
                warn("{}; its checkpoints are saved without state.pt".format(error))
            return
        suffix = "{:d}".format(suffix) if isinstance(suffix, int) else suffix
        save_tensors(rundir.state_path(training.folder, suffix), state)
        if suffix is None:
            training.saved = training.updates

    def _save_manifest(self, record, *folder):
        from osrl_unlearn.files import save_tensors
        if record.manifest is not None:
            self._complete(record).save(rundir.manifest_path(*folder))
            record.saved = True
            if self.attack is not None and self.attack.state():
                save_tensors(rundir.attack_path(*folder), self.attack.state())

    # After the script -------------------------------------------------------------------------------------------------

    def finish(self, progress=True):
        """Check that the poison reached every trainer; unlearn if asked to. Returns the text to print, or None."""
        if self._error is not None:
            raise self._error
        self._off = True
        if self._skipped:
            return self._finish_skipped()
        trained = [training for training in self.trainings if training.updates]
        for record in self.records:
            if any(training.record is record for training in trained) and self._at_stake(record):
                record.check_intact()
        for training in trained:
            self._check_reached(training)
        if self.attack is not None:
            self._check_unseen(trained)
            if not trained and self._record() is None:
                raise RunError("the script never gave the poisoned data to one of OSRL's datasets (TransitionDataset, "
                               "SequenceDataset): what it trained is not known to be poisoned")
            if not any(record.saved for record in self.records):
                here = os.getcwd(), rundir.LOOSE_FOLDER
                self._save_manifest(self._record() or trained[-1].record, *here)
                say("no checkpoint was saved with a logger of fsrl's, so the forget manifest is {}".format(
                    rundir.manifest_path(*here)))
        self._mark_complete(trained)
        if self.unlearn is None:
            return None
        if not trained:
            raise RunError("the script trained no agent that can be unlearned ({})".format(
                ", ".join(ADAPTERS.names())))
        return "\n".join(self._unlearn(training, progress) for training in trained)

    def _finish_skipped(self):
        self.patch_set.undo()  # what follows is no script's
        if self.unlearn is None:
            return None
        from osrl_unlearn.commands.unlearn import unlearn_run
        return "\n".join(unlearn_run(folder, (self.unlearn, self.dataset)) for folder in self._skipped)

    def _mark_complete(self, trained):
        """Mark what was trained, if all of it can be taken up again from its run directories."""
        folders = [training.folder for training in trained]
        if (self._command is not None and all(folders) and all(t.saved == t.updates for t in trained)
                and all(os.path.isfile(rundir.model_path(folder)) for folder in folders)):
            data = file_hashes({record.dataset for record in self.records if record.dataset})
            for folder in folders:
                rundir.complete(folder, {"command": self._command, "data": data,
                                         "model": sha256_file(rundir.model_path(folder)),
                                         "runs": [os.path.relpath(other, folder) for other in folders]})

    def _check_reached(self, training):
        reach = training.reach
        if reach is not None and not reach.looked and self._at_stake(training.record):
            warn("the batches of {} hold no observations under a name of OSRL's, so it was not checked that they come "
                 "from the poisoned data".format(training.name))
        elif reach is not None and reach.rows and not reach.reached:
            raise RunError("none of the {:,} rows of the forget set reached {} in {:,} updates: {}".format(
                reach.rows, training.name, training.updates, "there is nothing to forget" if self.attack is None else
                "it is not poisoned"))

    def _check_unseen(self, trained):
        """Data that no training was seen to use must at least be in the dataset that got them."""
        seen = [training.record.hashes for training in trained if training.reach.looked]
        unseen = [record for record in self.records
                  if record.rows is not None and record.hashes not in seen and self._at_stake(record)]
        for record in unseen:
            record.check_intact()
            record.check_datasets()
        if unseen and not any(training.record in unseen for training in trained):
            warn("no trainer of OSRL's was given the poisoned data: they are in the script's dataset, but it was not "
                 "checked that they reach what the script trains")

    def _unlearn(self, training, progress):
        from osrl_unlearn.unlearning import Trained, check_request, run_unlearning
        record, folder = training.record, training.folder
        if record is None:
            raise RunError("the script trained on data that did not come from pre_process_data(), so it is not known "
                           "which rows the forget manifest names")
        adapter = self._adapter(training)
        config = rundir.read_config(folder)
        limit = record.cost_limit if record.cost_limit is not None else config["cost_limit"]
        found = []
        if self.forget is not None:
            record = dataclasses.replace(record, manifest=self.forget)
        if self.detecting:
            from osrl_unlearn.detection import find_forget_set
            check_request(adapter, self.unlearn, record.task)
            manifest, sentence = find_forget_set(
                self.unlearn, folder, record.data, record.ids, adapter, true=record.manifest, task=record.task,
                dataset=record.dataset, reward_scale=record.reward_scale, cost_scale=record.cost_scale,
                progress=progress)
            record, found = dataclasses.replace(record, manifest=manifest), [sentence]
        trained = Trained(adapter, record.data, record.ids, self._complete(record), folder, config, record.task,
                          limit, record.reward_scale, record.cost_scale, training.updates, training.seconds,
                          training.batch_size, found, record.python_random,
                          self.attack.trigger() if self.attack is not None else None)
        return "\n".join(found + [run_unlearning(trained, self.unlearn, progress)[1]])

    def _record(self):
        return next((record for record in reversed(self.records) if record.rows is not None), None)

    def _complete(self, record):
        return dataclasses.replace(record.manifest, reward_scale=record.reward_scale, cost_scale=record.cost_scale,
                                   cost_limit=None if record.cost_limit is None else float(record.cost_limit))

    def _side_state(self, training, adapter, record):
        return rundir.side_state(adapter, updates=training.updates, batch_size=training.batch_size,
                                 train_seconds=training.seconds, reward_scale=record.reward_scale,
                                 cost_scale=record.cost_scale, dataset=record.dataset,
                                 python_random=record.python_random)
