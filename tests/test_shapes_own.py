"""Scripts with trainers, loops and data of their own: what cannot be seen of them is compared, refused or said."""
import os

import pytest
from test_shapes import POISON, REFUSED, SHIPPED, UNLEARN, poisoned, run  # noqa: F401

from osrl_unlearn import rundir

NAMES = """
class Mine(CPQTrainer):
    def train_one_step(self, o, o2, a, r, c, d, weights, rows):
        super().train_one_step(o, o2, a, r, c, d)

env, data = load()
dataset = TransitionDataset(data, 0.1)
"""
NAMES_LOOP = """
trainer = make_trainer(env, make_logger(), Mine)
train(trainer, ((*columns, None, None) for columns in batches(dataset)), 60)
"""


def test_columns_with_names_of_its_own_do_not_stop_a_script_that_only_poisons(run, tmp_path):
    status, out, err = run(NAMES + NAMES_LOOP + "trainer.logger.save_checkpoint(3)", *POISON)
    assert status == 0 and poisoned(tmp_path) == 16800, err[-2000:]
    assert err.count("warning: Mine cannot be unlearned") == 1 and "it was not checked" not in err


OWN = """
class Trainer:
    def __init__(self, logger):
        self.policy, self.logger = torch.nn.Linear(8, 2), logger
        self.optimizer = torch.optim.Adam(self.policy.parameters())

    def train_one_step(self, observations, next_observations, actions, *labels):
        self.optimizer.zero_grad()
        ((self.policy(observations) - actions) ** 2).mean().backward()
        self.optimizer.step()

env, data = load()
logger = make_logger()
trainer = Trainer(logger)
logger.setup_checkpoint_fn(lambda: {"model_state": trainer.policy.state_dict()})
dataset = TransitionDataset(data, 0.1)
"""
PUT_BACK = """
import h5py
with h5py.File(SHIPPED, "r") as file:
    dataset.dataset = {name: file[name][:] if name in file else data[name] for name in data}
"""
OWN_CDT_LOOP = """
model = CDT(state_dim=8, action_dim=2, max_action=1.0, seq_len=5, episode_len=200, embedding_dim=16, num_layers=1,
            num_heads=2)
for _, (states, actions, returns, costs, steps, mask, episode_cost, _) in zip(range(20), batches(dataset)):
    model(states, actions, returns, costs, steps, ~mask.bool(), episode_cost)
"""


def test_of_what_a_trainer_of_its_own_is_given_a_script_is_told_that_it_was_not_seen(run, tmp_path):
    status, out, err = run(OWN + "train(trainer, batches(dataset), 2)", "--quiet", *POISON)
    assert status == 0 and poisoned(tmp_path) == 16800
    assert "warning: no trainer of OSRL's was given the poisoned data" in err


@pytest.mark.parametrize("loop", ["trainer.train_one_step(*next(batches(dataset)))", "logger.save_checkpoint()"])
def test_a_trainer_of_its_own_is_refused_before_its_agent_is_to_be_unlearned(run, tmp_path, loop):
    status, out, err = run(OWN + loop + """
open("trained", "w").close()
""", *POISON, *UNLEARN)
    assert status == 2 and "cannot be unlearned: it has none of OSRL's trainers (BCQLTrainer, " in err, err[-2000:]
    assert not os.path.exists("trained") and not os.path.exists(rundir.model_path(str(tmp_path / "logs" / "run")))


@pytest.mark.parametrize("dataset", [
    "", "dataset.dataset = SequenceDataset(dataset.dataset, 5, 0.1).dataset",
    "dataset.dataset = dict(data, observations=data['observations'][:, :3])"])
def test_a_trainer_of_its_own_whose_data_are_clean_is_refused(run, tmp_path, dataset):
    status, out, err = run("SHIPPED = {!r}\n".format(SHIPPED) + OWN + PUT_BACK + dataset + """
trainer.logger.save_checkpoint()
""", *POISON)
    assert status == 2 and "the script replaced the data of its TransitionDataset" in err, err[-2000:]
    assert not os.path.exists(rundir.complete_path(str(tmp_path / "logs" / "run")))


def test_clean_data_are_refused_whatever_the_script_calls_the_columns(run):
    status, out, err = run("SHIPPED = {!r}\n".format(SHIPPED) + NAMES + PUT_BACK + NAMES_LOOP, *POISON)
    assert status == 2 and "with other actions, rewards or costs than the data have" in err, err[-2000:]


@pytest.mark.parametrize("clean", [False, True])
def test_cdt_in_a_loop_of_its_own_is_looked_at(run, tmp_path, clean):
    swap = PUT_BACK + "dataset = SequenceDataset(dataset.dataset, 5, 0.1)\n" if clean else ""
    status, out, err = run("SHIPPED = {!r}\n".format(SHIPPED) + """
env, data = load()
dataset = SequenceDataset(data, 5, 0.1)
""" + swap + OWN_CDT_LOOP, *POISON)
    assert status == 2 * clean and "warning" not in err, err[-2000:]
    if clean:
        assert "CDT is given the observations of the forget set" in err or "reached CDT" in err


@pytest.mark.parametrize("shape", ["clean labels put back in place", "observations centred in place"])
def test_data_changed_in_place_are_no_poisoned_data_the_second_time_either(run, tmp_path, shape):
    for _ in range(2):
        status, out, err = run("SHIPPED = {!r}\n".format(SHIPPED) + REFUSED[shape][0], *POISON)
        assert status == 2 and "in place" in err and not os.path.exists("trained"), err[-2000:]
        assert not os.path.exists(rundir.complete_path(str(tmp_path / "logs" / "run")))
        assert not os.path.exists(rundir.model_path(str(tmp_path / "logs" / "run")))


def test_data_changed_in_place_during_the_training_are_noticed_when_it_ends(run, tmp_path):
    status, out, err = run("""
env, data = load()
trainer, source = make_trainer(env, make_logger()), batches(TransitionDataset(data, 0.1))
train(trainer, source)
data["costs"][:] = 0
train(trainer, source)
""", *POISON)
    assert status == 2 and "changed costs in place" in err
    assert not os.path.exists(rundir.complete_path(str(tmp_path / "logs" / "run")))


def test_without_poison_a_script_may_change_its_data(run):
    status, out, err = run("""
env, data = load()
data["observations"] -= data["observations"].mean(0)
train(make_trainer(env, make_logger()), batches(TransitionDataset(data, 0.1)))
""", "--dataset", SHIPPED)
    assert status == 0, err[-2000:]
