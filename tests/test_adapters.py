"""What is particular to one agent, and what forks of OSRL's agents may change."""
import contextlib
import sys

import numpy as np
import pytest
import torch
from agents import make_trainer

from osrl_unlearn.adapters import adapt
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.engine import prepare, train, unlearn
from osrl_unlearn.errors import ConfigError, IncompatibleAgent
from osrl_unlearn.testing import toy_data
from osrl_unlearn.testing.contracts import assert_same

with contextlib.redirect_stdout(sys.stderr):
    from osrl.algorithms import BC, BCTrainer
    from osrl.common.dataset import process_bc_dataset


def forget(data, *trajectories):
    """A manifest of whole trajectories."""
    index = TrajectoryIndex(data)
    return ForgetManifest.of(data, [[t, 0, int(index.stops[t] - index.starts[t])] for t in trajectories])


def bc(mode, cost_limit=3.0):
    torch.manual_seed(0)
    model = BC(8 + (mode == "multi-task"), 2, 1.0, [16], 15)
    return adapt(BCTrainer(model, None, bc_mode=mode, cost_limit=cost_limit), {"gamma": 0.9})


# BC ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["all", "multi-task", "safe", "risky", "boundary", "frontier"])
def test_bc_is_given_the_rows_that_osrl_gives_it(mode, capsys):
    if mode == "frontier":
        pytest.importorskip("oapackage")
    data, agent = toy_data(30), bc(mode)
    theirs = dict(data)
    process_bc_dataset(theirs, 3.0, 0.9, mode)
    capsys.readouterr()
    store = agent.store(data)
    ours = store.view(store.rows).everything()
    assert 0 < len(store.rows) and (len(store.rows) < len(store)) == (mode not in ("all", "multi-task"))
    assert torch.equal(ours.observations, torch.as_tensor(theirs["observations"]))
    assert torch.equal(ours.actions, torch.as_tensor(theirs["actions"]))
    assert set(data) == set(toy_data()) and capsys.readouterr().out == ""


def test_bc_forgets_and_retains_within_what_it_was_trained_on():
    data, agent = toy_data(30), bc("safe")
    seen = agent.training_rows(data)
    inside = int(TrajectoryIndex(data).row_ids()[seen[0]])
    prepared = prepare(agent, data, forget(data, inside, 29), method="safe_rule", steps=1)
    rows = forget(data, inside, 29).row_numbers(data)
    assert set(prepared.context.forget.rows.tolist()) == set(rows) & set(seen)
    assert set(prepared.context.retain.rows.tolist()) == set(seen) - set(rows)
    assert "of the {} rows of the forget manifest it saw".format(len(rows)) in prepared.notes[0]


def test_rows_that_bc_never_saw_cannot_be_forgotten_and_the_last_ones_not_either():
    data = toy_data(30)
    with pytest.raises(ConfigError, match="nothing to forget.*trained on .* of the 480 rows.*never saw them"):
        unlearn(bc("safe").trainer, data, forget(data, 28, 29), steps=1)
    with pytest.raises(ConfigError, match="nothing is left to retain"):
        unlearn(bc("risky", 100.0 / 24).trainer, data, forget(data, *range(12, 30)), steps=1)


def test_multi_task_bc_acts_on_the_cost_limit_not_on_the_logged_cost():
    agent, data = bc("multi-task"), toy_data(30)
    store = agent.store(data)
    batch = store.view(store.rows).batch(5)
    assert batch.observations.shape == (5, 9) and len(set(batch.observations[:, -1].tolist())) > 1
    by_hand = [agent.model.act(np.append(row[:8].numpy(), 3.0)) for row in batch.observations]
    assert np.allclose(agent.actions(batch).detach(), by_hand, atol=1e-6)


# Forks ------------------------------------------------------------------------------------------------------------

class ForkedBC(BC):
    """A critic of state and action, and its target network, beside the actor."""

    def __init__(self, *args):
        super().__init__(*args)
        self.critic = torch.nn.Linear(self.state_dim + self.action_dim, 1)
        self.critic_old = torch.nn.Linear(self.state_dim + self.action_dim, 1)
        self.critic_old.load_state_dict(self.critic.state_dict())

    def setup_optimizers(self, actor_lr):
        super().setup_optimizers(actor_lr)
        self.critic_optim = torch.optim.Adam(self.critic.parameters(), lr=actor_lr)


class ForkedTrainer(BCTrainer):
    def train_one_step(self, observations, actions, rewards):
        super().train_one_step(observations, actions)
        value = self.model.critic(torch.cat([observations, actions], -1)).squeeze(-1)
        self.model.critic_optim.zero_grad()
        ((value - rewards) ** 2).mean().backward()
        self.model.critic_optim.step()


def forked(trainer=ForkedTrainer, seed=0):
    torch.manual_seed(seed)
    return trainer(ForkedBC(8, 2, 1.0, [16], 15), None, actor_lr=1e-3)


def test_a_fork_with_an_extra_critic_works_and_all_of_it_is_saved_and_reset():
    data, agent = toy_data(), adapt(forked())
    assert agent.name == "bc" and set(agent.optimizers()) == {"actor_optim", "critic_optim"}
    train(agent, data, steps=5, batch_size=16, progress=False)
    saved, critic = agent.state(), agent.model.critic.weight.detach().clone()
    assert saved["optimizers"]["critic_optim"]["state"]
    outcome = unlearn(agent.trainer, data, forget(data, 10, 11), method="fine_tune", steps=5, progress=False)
    assert outcome.accepted and not torch.equal(critic, agent.model.critic.weight)
    agent.restore(saved)
    assert_same(agent.state(), saved)
    torch.manual_seed(3)
    agent.reset()
    assert torch.equal(agent.model.critic_old.weight, agent.model.critic.weight)
    assert not torch.equal(agent.model.critic.weight, critic) and not agent.optimizers()["critic_optim"].state


def test_a_fork_that_lacks_what_the_adapter_reads_is_refused_by_its_name():
    class Without(ForkedTrainer):
        def train_one_step(self, observations, actions, advantages):
            raise AssertionError("not called")

    trainer = forked(Without)
    del trainer.model.actor_optim, trainer.bc_mode
    with pytest.raises(IncompatibleAgent) as caught:
        adapt(trainer)
    assert len(caught.value.problems) == 3
    for name in ("'actor_optim' (of the actor)", "'bc_mode'", "asks for 'advantages'"):
        assert name in str(caught.value)


def test_a_checkpoint_without_side_state_does_not_start_bear_lags_count_again():
    agent = adapt(make_trainer("bearl"))
    assert agent.advance(500) == ("n_train_steps",) and agent.model.n_train_steps == 500
