"""Scripts that are not built like OSRL's own: each works, or one sentence says before training why it cannot."""
import argparse
import contextlib
import json
import os
import struct
import subprocess
import sys

import pytest
import torch
from agents import QUICK, subprocess_environment

from osrl_unlearn import cli, resources, rundir, screening
from osrl_unlearn.data.manifest import ForgetManifest

pytest.importorskip("osrl")
pytest.importorskip("bullet_safety_gym")

SHIPPED = os.path.join(resources.folder("datasets"), "BallCircle.hdf5")
POISON = ["--dataset", SHIPPED, "--poison", "reward_bait", "--poison.rate", "0.2"]
UNLEARN = ["--unlearn", "fine_tune", "--unlearn.steps", "4", "--unlearn.eval_episodes", "0"]
SKETCH = """
import sys
import bullet_safety_gym, dsrl, gymnasium
import numpy as np
import torch
from fsrl.utils import TensorboardLogger, DummyLogger
from torch.utils.data import DataLoader
from osrl.algorithms import CDT, CPQ, CDTTrainer, CPQTrainer
from osrl.common import SequenceDataset, TransitionDataset

def load(scale=0.1, preprocess=True):
    env = gymnasium.make("OfflineBallCircle-v0")
    data = env.get_dataset()
    env.set_target_cost(40)
    return env, env.pre_process_data(data) if preprocess else data

def make_logger(name="run", **more):
    logger = TensorboardLogger("logs", log_txt=True, name=name)
    logger.save_config(dict(task="OfflineBallCircle-v0", cost_limit=40, episode_len=200, reward_scale=0.1,
                            cost_scale=1, **more), verbose=False)
    return logger

def make_model(cls=CPQ):
    torch.manual_seed(0)
    return cls(state_dim=8, action_dim=2, max_action=1.0, a_hidden_sizes=[16, 16], c_hidden_sizes=[16, 16],
               vae_hidden_sizes=16, sample_action_num=3, num_q=2, num_qc=2, cost_limit=40, episode_len=200)

def make_trainer(env, logger, cls=CPQTrainer, model=CPQ, **more):
    model = make_model(model)
    logger.setup_checkpoint_fn(lambda: {"model_state": model.state_dict()})
    return cls(model, env, logger=logger, reward_scale=0.1, cost_scale=1.0, **more)

def make_cdt(env, logger, cls=CDTTrainer):
    torch.manual_seed(0)
    model = CDT(state_dim=8, action_dim=2, max_action=1.0, seq_len=5, episode_len=200, embedding_dim=16, num_layers=1,
                num_heads=2)
    logger.setup_checkpoint_fn(lambda: {"model_state": model.state_dict()})
    return cls(model, env, logger=logger, reward_scale=0.1)

def batches(dataset):
    return iter(DataLoader(dataset, batch_size=64))

def train(trainer, source, steps=6):
    for _ in range(steps):
        trainer.train_one_step(*next(source))
    trainer.logger.save_checkpoint()
"""
# Of the shapes that work, those in which unlearning could go wrong where poisoning does not.
UNLEARNED = {"a subclass that overrides everything", "two datasets", "without pre_process_data", "without a loader",
             "argparse", "another key in the checkpoint"}
WORK = {
    "a subclass that overrides everything": """
class Agent(CPQ):
    def critic_loss(self, *args):
        return super().critic_loss(*args)

def main():
    class Mine(CPQTrainer):
        def train_one_step(self, *columns):
            with torch.enable_grad():
                super().train_one_step(*columns)
    env, data = load()
    train(make_trainer(env, make_logger(), Mine, Agent), batches(TransitionDataset(data, 0.1)))

main()
""",
    "columns by name": """
env, data = load()
trainer = make_trainer(env, make_logger())
for _, columns in zip(range(6), batches(TransitionDataset(data, 0.1))):
    trainer.train_one_step(**dict(zip(("observations", "next_observations", "actions", "rewards", "costs", "done"),
                                      columns)))
trainer.logger.save_checkpoint()
""",
    "a loader with eight columns": """
class Wide(TransitionDataset):
    def __iter__(self):
        for row in super().__iter__():
            yield row + (np.float32(1), 7)

env, data = load()
source = batches(Wide(data, 0.1))
train(make_trainer(env, make_logger()), (columns[:6] for columns in source))
""",
    "two datasets": """
env, data = load()
other = load()[1]
used, unused = TransitionDataset(data, 0.1), TransitionDataset(other, 0.1)
train(make_trainer(env, make_logger()), batches(used))
""",
    "without pre_process_data": """
env, data = load(preprocess=False)
train(make_trainer(env, make_logger()), batches(TransitionDataset(data, 0.1)))
""",
    "a copy of the data": """
env, data = load()
train(make_trainer(env, make_logger()), batches(TransitionDataset({k: v.copy() for k, v in data.items()}, 0.1)))
""",
    "without a loader": """
env, data = load()
def source():
    while True:
        rows = np.random.randint(0, len(data["rewards"]), 64)
        done = np.logical_or(data["terminals"], data["timeouts"]).astype(np.float32)
        yield [torch.as_tensor(c[rows]) for c in (data["observations"], data["next_observations"], data["actions"],
                                                  data["rewards"] * np.float32(0.1), data["costs"], done)]
train(make_trainer(env, make_logger()), source())
""",
    "argparse": """
import argparse
parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("--steps", type=int, default=6)
args = parser.parse_args()
env, data = load()
train(make_trainer(env, make_logger()), batches(TransitionDataset(data, 0.1)), args.steps)
""",
    "another key in the checkpoint": """
env, data = load()
logger = make_logger()
trainer = make_trainer(env, logger)
logger.setup_checkpoint_fn(lambda: {"model": trainer.model.state_dict()})
train(trainer, batches(TransitionDataset(data, 0.1)))
""",
    "sequences, and a trainer that takes any columns": """
class Mine(CDTTrainer):
    def train_one_step(self, *columns):
        super().train_one_step(*columns)

env, data = load()
train(make_cdt(env, make_logger(), Mine), batches(SequenceDataset(data, 5, 0.1, random_aug=0.5)))
""",
    "try and finally": """
env, data = load()
try:
    train(make_trainer(env, make_logger()), batches(TransitionDataset(data, 0.1)))
finally:
    print("the end", file=sys.stderr)
""",
}


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run a script in this process, where OSRL is imported already; returns (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr(screening, "STEPS", 1)

    def call(source, *flags, line=()):
        (tmp_path / "script.py").write_text(SKETCH + source)
        # Bullet-Safety-Gym redirects C's streams by the names of Python's, so these must be the real ones.
        with contextlib.redirect_stdout(sys.__stdout__), contextlib.redirect_stderr(sys.__stderr__):
            status = cli.main([*flags, "script.py", *line])
        for stream in (sys.__stdout__, sys.__stderr__):
            stream.flush()
        out, err = capfd.readouterr()
        return status, out, err

    return call


def poisoned(tmp_path, name="run"):
    return ForgetManifest.load(rundir.manifest_path(str(tmp_path / "logs" / name))).rows


@pytest.mark.parametrize("shape", sorted(WORK))
def test_it_works(run, tmp_path, shape):
    status, out, err = run(WORK[shape], *POISON, *(UNLEARN if shape in UNLEARNED else []))
    assert status == 0, err[-2000:]
    assert poisoned(tmp_path) == 16800
    # The report is what was asked for; everything else is on stderr.
    assert [line for line in out.splitlines() if "osrl-unlearn" in line or "poisoned 1" in line] == []
    if shape not in UNLEARNED:
        return
    with open(os.path.join(rundir.unlearned_dir(str(tmp_path / "logs" / "run"), "fine_tune"), "report.json")) as file:
        report = json.load(file)
    assert report["updates"] == {"train": 6, "unlearn": 4, "ratio": pytest.approx(4 / 6)}
    assert report["forget"]["rows"] == 16800


HYDRA = """
import hydra

@hydra.main(version_base="1.1", config_path=None)
def main(config):
    env, data = load()
    train(make_trainer(env, make_logger()), batches(TransitionDataset(data, 0.1)), config.steps)

main()
"""
ELSEWHERE = """
import os
os.makedirs("outputs/today", exist_ok=True)
os.chdir("outputs/today")
env, data = load()
train(make_trainer(env, make_logger()), batches(TransitionDataset(data, 0.1)))
"""


def works_in_another_folder(tmp_path):
    (logs,) = (tmp_path / "outputs").glob("**/logs")
    assert poisoned(logs.parent) == 16800
    assert os.path.isfile(rundir.model_path(rundir.unlearned_dir(str(logs / "run"), "fine_tune")))


def test_a_script_may_work_in_another_folder_than_it_started_in(run, tmp_path):
    status, out, err = run(ELSEWHERE, "--dataset", os.path.relpath(SHIPPED, str(tmp_path)), *POISON[2:], *UNLEARN)
    assert status == 0, err[-2000:]
    works_in_another_folder(tmp_path)


def test_hydra_may_give_a_script_its_folder(tmp_path):
    # In a process of its own: hydra closes all handlers of logging, and with one of them what pytest keeps of tests.
    pytest.importorskip("hydra")
    (tmp_path / "script.py").write_text(SKETCH + HYDRA)
    done = subprocess.run([sys.executable, "-m", "osrl_unlearn", "--dataset", os.path.relpath(SHIPPED, str(tmp_path)),
                           *POISON[2:], *UNLEARN, "script.py", "+steps=6"], cwd=str(tmp_path), text=True,
                          env=subprocess_environment(QUICK, MPLBACKEND="Agg"), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr[-2000:]
    works_in_another_folder(tmp_path)


def test_a_command_is_recognised_wherever_its_script_works(run, tmp_path):
    def again(text):
        (tmp_path / "settings.yaml").write_text(text)
        status, _, err = run(ELSEWHERE, *POISON, line=["settings.yaml"])
        assert status == 0, err[-2000:]
        return "is complete" in err
    assert [again(text) for text in ("lr: 1", "lr: 1", "lr: 2")] == [False, True, False]


PLAIN = """
env, data = load()
trainer = make_trainer(env, make_logger())
train(trainer, batches(TransitionDataset(data, 0.1)))
"""


def test_an_agent_that_another_one_has_replaced_is_not_complete(run, tmp_path):
    folder = str(tmp_path / "logs" / "run")

    def again():
        status, _, err = run(PLAIN, *POISON)
        assert status == 0, err[-2000:]
        return "is complete" in err

    assert [again(), again()] == [False, True]
    torch.save({"model_state": {}}, rundir.model_path(folder))  # as the script does without our flags
    assert [again(), again()] == [False, True]
    marked = rundir.completed(folder)
    rundir.complete(folder, {name: marked[name] for name in marked if name != "model"})  # of an older version
    assert not again()
    os.unlink(rundir.model_path(folder))
    assert not again()


def test_what_is_about_a_poisoned_agent_goes_when_a_clean_one_takes_its_place(run, tmp_path):
    folder = str(tmp_path / "logs" / "run")
    paths = [rundir.manifest_path(folder), rundir.attack_path(folder), rundir.state_path(folder, "best")]
    assert run(PLAIN + "trainer.logger.save_checkpoint('best')", *POISON)[0] == 0
    open(rundir.attack_path(folder), "w").close()
    assert all(map(os.path.isfile, paths))
    assert run(PLAIN.replace("train(", "1 / 0, train("), "--dataset", SHIPPED)[0] == 1
    assert all(map(os.path.isfile, paths))  # the poisoned agent is still there
    assert run(PLAIN, "--dataset", SHIPPED)[0] == 0
    assert not any(map(os.path.exists, paths)) and os.path.isfile(rundir.state_path(folder))


def test_two_agents_are_both_unlearned(run, tmp_path):
    status, out, err = run("""
env, data = load()
for name in ("one", "two"):
    train(make_trainer(env, make_logger(name)), batches(TransitionDataset(data, 0.1)))
""", *POISON, *UNLEARN)
    assert status == 0, err
    for name in ("one", "two"):
        assert os.path.isfile(rundir.model_path(rundir.unlearned_dir(str(tmp_path / "logs" / name), "fine_tune")))
        assert poisoned(tmp_path, name) == 16800


def test_poison_alone_works_without_a_trainer_and_without_a_logger(run, tmp_path):
    status, out, err = run("""
env, data = load()
model = make_model()
model.setup_optimizers(1e-3, 1e-3, 1e-4, 1e-3)
source = batches(TransitionDataset(data, 0.1))
for _ in range(3):
    obs, next_obs, act, rew, cost, done = next(source)
    model.vae_loss(obs, act)
    model.critic_loss(obs, next_obs, act, rew, done)
    model.cost_critic_loss(obs, next_obs, act, cost, done)
    model.actor_loss(obs)
    model.sync_weight()
print("result 1.0")
""", *POISON)
    assert (status, out.splitlines()[-1]) == (0, "result 1.0"), err
    path = str(tmp_path / "osrl-unlearn" / "forget.json")
    assert ForgetManifest.load(path).rows == 16800 and "the forget manifest is " + path in err
    assert not os.path.exists("osrl_unlearn")  # python would take such a folder for the package


def test_at_a_rate_of_0_the_script_may_do_with_the_data_what_it_likes(run, tmp_path):
    status, out, err = run("""
env, data = load()
dataset = TransitionDataset(data, 0.1)
dataset.dataset = dict(data, observations=data["observations"] * np.float32(0.5))
train(make_trainer(env, make_logger()), batches(dataset), 2)
""", "--dataset", SHIPPED, "--poison", "reward_bait", "--poison.rate", "0")
    assert status == 0 and poisoned(tmp_path) == 0, err
    assert "not checked" not in err


REFUSED = {
    "no trainer": ("""
model = make_model()
model.setup_optimizers(1e-3, 1e-3, 1e-4, 1e-3)
open("trained", "w").close()
""", "CPQ cannot be unlearned: the script updates it itself, without one of OSRL's trainers"),
    "no trainer of CDT": ("""
env, data = load()
model = CDT(state_dim=8, action_dim=2, max_action=1.0, seq_len=5, episode_len=200, embedding_dim=16, num_layers=1,
            num_heads=2)
states, actions, returns, costs, steps, mask, episode_cost, _ = next(batches(SequenceDataset(data, 5, 0.1)))
with torch.no_grad():
    model(states, actions, returns, costs, steps, ~mask.bool(), episode_cost)
model(states, actions, returns, costs, steps, ~mask.bool(), episode_cost)
open("trained", "w").close()
""", "CDT cannot be unlearned: the script updates it itself, without one of OSRL's trainers"),
    "no logger": ("""
env, data = load()
trainer = CPQTrainer(make_model(), env, reward_scale=0.1)
source = batches(TransitionDataset(data, 0.1))
trainer.train_one_step(*next(source))
open("trained", "w").close()
""", "the logger of CPQTrainer writes no files"),
    "no configuration": ("""
env, data = load()
trainer = make_trainer(env, TensorboardLogger("logs", log_txt=True, name="run"))
trainer.train_one_step(*next(batches(TransitionDataset(data, 0.1))))
open("trained", "w").close()
""", "has no config.yaml"),
    "one run directory for two agents": ("""
env, data = load()
logger, source = make_logger(), batches(TransitionDataset(data, 0.1))
train(make_trainer(env, logger), source)
make_trainer(env, logger).train_one_step(*next(source))
open("trained", "w").close()
""", "two agents have the run directory"),
    "clean data put back": ("""
env, data = load()
dataset = TransitionDataset(data, 0.1)
import h5py
with h5py.File(SHIPPED, "r") as file:
    dataset.dataset = {name: file[name][:] for name in data if name in file}
dataset.dataset["done"] = data["done"]
train(make_trainer(env, make_logger()), batches(dataset), 60)
open("trained", "w").close()
""", "with other actions, rewards or costs than the data have"),
    "other data": ("""
env, data = load()
dataset = TransitionDataset(data, 0.1)
dataset.dataset = {name: value * np.float32(0.5) if name == "observations" else value for name, value in data.items()}
train(make_trainer(env, make_logger()), batches(dataset))
open("trained", "w").close()
""", "trained on data that did not come from get_dataset() and pre_process_data() as they are"),
    "names of its own": ("""
class Mine(CPQTrainer):
    def train_one_step(self, o, o2, a, r, c, d):
        open("trained", "w").close()

env, data = load()
train(make_trainer(env, make_logger(), Mine), batches(TransitionDataset(data, 0.1)))
""", "Mine cannot be unlearned: its train_one_step asks for 'o'"),
    "clean labels put back in place": ("""
env, data = load()
dataset = TransitionDataset(data, 0.1)
import h5py
with h5py.File(SHIPPED, "r") as file:
    for name in ("rewards", "costs"):
        dataset.dataset[name][:] = file[name][:]
train(make_trainer(env, make_logger()), batches(dataset), 60)
open("trained", "w").close()
""", "the script changed costs, rewards in place"),
    "observations centred in place": ("""
env, data = load()
data["observations"] -= data["observations"].mean(0)
train(make_trainer(env, make_logger()), batches(TransitionDataset(data, 0.1)))
open("trained", "w").close()
""", "the script changed observations in place"),
    "errors swallowed": ("""
env, data = load()
trainer = CPQTrainer(make_model(), env, reward_scale=0.1)
source = batches(TransitionDataset(data, 0.1))
try:
    trainer.train_one_step(*next(source))
except Exception:
    pass
""", "the logger of CPQTrainer writes no files"),
}


@pytest.mark.parametrize("shape", sorted(REFUSED))
def test_it_is_refused_in_one_sentence(run, tmp_path, shape):
    source, expected = REFUSED[shape]
    status, out, err = run("SHIPPED = {!r}\n".format(SHIPPED) + source, *POISON, *UNLEARN)
    ours = [line for line in err.splitlines() if line.startswith("osrl-unlearn: error")]
    assert status == 2 and len(ours) == 1 and expected in ours[0], err[-2000:]
    assert "Traceback" not in err and not os.path.exists("trained")
    assert not os.path.exists(str(tmp_path / "logs" / "run" / "unlearned"))


def test_poison_that_no_update_saw_is_not_called_poison(run, tmp_path):
    status, out, err = run("""
env, data = load()
dataset = TransitionDataset(data, 0.1)
clean = np.flatnonzero(data["costs"] > 0)  # the attack hides them
dataset.sample_prob = np.zeros(len(data["rewards"]))
dataset.sample_prob[clean] = 1 / len(clean)
train(make_trainer(env, make_logger()), batches(dataset), 2)
""", *POISON)
    assert status == 2 and "none of the 16,800 rows of the forget set reached CPQTrainer in 2 updates" in err


def test_sequences_that_are_never_drawn_are_refused_before_training(run):
    status, out, err = run("""
env, data = load()
source = batches(SequenceDataset(data, 5, 0.1, cost_sample=True))
make_cdt(env, make_logger(cost_sample=True)).train_one_step(*next(source))
open("trained", "w").close()
""", "--dataset", SHIPPED, "--poison", "cost_inflate", *UNLEARN)  # 200 per episode, and SequenceDataset wants below 50
    assert status == 2 and "the agent never saw them" in err, err[-2000:]
    assert not os.path.exists("trained")


@pytest.mark.parametrize("flags, expected", [
    (["grad_diff"], "cdt cannot be unlearned: the method 'grad_diff' needs action_values"),
    (["fine_tune", "--unlearn.forget", "detect", "--unlearn.detector", "value_gap"],
     "needs a trained agent with critics of actions"),
    (["fine_tune", "--unlearn.reference", "other"],
     "other holds an unknown agent on OfflineBallCircle-v0, the agent is cdt on OfflineBallCircle-v0")])
def test_what_this_agent_lacks_is_said_before_training(run, tmp_path, flags, expected):
    rundir.save_unlearned("other", {"task": "OfflineBallCircle-v0", "cost_limit": 40, "episode_len": 200}, {},
                          argparse.Namespace(model=torch.nn.Linear(1, 1)), {"hidden": {}})
    os.unlink(rundir.state_path("other"))
    status, out, err = run("""
env, data = load()
make_cdt(env, make_logger()).train_one_step(*next(batches(SequenceDataset(data, 5, 0.1))))
open("trained", "w").close()
""", *POISON, "--unlearn", *flags)
    assert status == 2 and expected in err and not os.path.exists("trained"), err[-2000:]


def by_plain_python(tmp_path, source, *flags, **variables):
    """Standard output of a script that plain python runs after the start-up line."""
    (tmp_path / "script.py").write_text(SKETCH + source)
    (tmp_path / "sitecustomize.py").write_text("from osrl_unlearn.hooks.startup import _LINE\nexec(_LINE)\n")
    done = subprocess.run([sys.executable, "script.py", *flags], cwd=str(tmp_path),
                          env=dict(subprocess_environment(str(tmp_path), QUICK), **variables), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_start_up_line_serves_scripts_without_pyrallis_too(tmp_path):
    # Those are handed to the runner, in which all shapes are tried above.
    out = by_plain_python(tmp_path, WORK["argparse"], *POISON, *UNLEARN)
    assert poisoned(tmp_path) == 16800 and out.splitlines()[-1].endswith("report.md")


def test_a_function_that_is_called_twice_makes_two_runs(tmp_path):
    out = by_plain_python(tmp_path, """
import dataclasses, pyrallis

@dataclasses.dataclass
class Config:
    steps: int = 5

seeds = []

@pyrallis.wrap()
def main(config: Config):
    seeds.append(1)
    env, data = load()
    train(make_trainer(env, make_logger("run%d" % len(seeds))), batches(TransitionDataset(data, 0.1)), config.steps)
    raise SystemExit(0)

for _ in range(2):
    try:
        main()
    except SystemExit:
        pass
print("done", len(seeds))
""", "--steps", "4", *POISON, *UNLEARN)
    assert out.splitlines()[-1] == "done 2"
    for name in ("run1", "run2"):
        assert poisoned(tmp_path, name) == 16800
        assert os.path.isdir(rundir.unlearned_dir(str(tmp_path / "logs" / name), "fine_tune"))


def test_unlearning_goes_on_in_the_run_of_wandb(tmp_path):
    pytest.importorskip("wandb")
    by_plain_python(tmp_path, """
from fsrl.utils import WandbLogger
logger = WandbLogger({}, "project", "group", "run", "logs")
logger.save_config(dict(task="OfflineBallCircle-v0", cost_limit=40, episode_len=200, reward_scale=0.1, cost_scale=1),
                   verbose=False)
env, data = load()
trainer = make_trainer(env, logger)
source = batches(TransitionDataset(data, 0.1))
for step in range(6):
    trainer.train_one_step(*next(source))
    logger.write_without_reset(step)
logger.save_checkpoint()
""", *POISON, "--unlearn", "fine_tune", "--unlearn.steps", "4", "--unlearn.eval_episodes", "1", WANDB_MODE="offline")
    history = wandb_history(tmp_path)
    steps = [entry["_step"] for entry in history]
    assert steps == list(range(11))
    assert [step for step, entry in zip(steps, history) if "loss/actor_loss" in entry][:6] == [0, 1, 2, 3, 4, 5]
    assert [step for step, entry in zip(steps, history) if "unlearn/cost_value/forget" in entry] == [7, 8, 9, 10]
    assert [step for step, entry in zip(steps, history) if "eval/NormalizedCost" in entry] == [6, 10]


def wandb_history(folder):
    """What an offline run in ``folder`` has logged, a dictionary per step. The file is one of LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record
    found, position = [], 7
    content, = [path.read_bytes() for path in folder.glob("wandb/offline-run-*/*.wandb")]
    assert len(content) < 32768  # one block: no record is continued in a next one
    while position < len(content):
        size, = struct.unpack_from("<H", content, position + 4)
        record = Record.FromString(content[position + 7:position + 7 + size])
        position += 7 + size
        if record.HasField("history"):
            found.append({".".join(item.nested_key) or item.key: json.loads(item.value_json)
                          for item in record.history.item})
    return found
