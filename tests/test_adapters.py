"""What is particular to one agent, and what forks of OSRL's agents may change."""
import contextlib
import sys

import numpy as np
import pytest
import torch
from agents import AGENTS, make_trainer

from osrl_unlearn.adapters import adapt
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.engine import prepare, train, unlearn
from osrl_unlearn.errors import ConfigError, EnvironmentProblem, IncompatibleAgent
from osrl_unlearn.hooks.session import Session
from osrl_unlearn.testing import toy_data
from osrl_unlearn.testing.contracts import assert_same

with contextlib.redirect_stdout(sys.stderr):
    from osrl.algorithms import BC, CDT, BCTrainer, CDTTrainer
    from osrl.common.dataset import SequenceDataset, process_bc_dataset


def forget(data, *trajectories):
    """A manifest of whole trajectories."""
    index = TrajectoryIndex(data)
    return ForgetManifest.of(data, [[t, 0, int(index.stops[t] - index.starts[t])] for t in trajectories])


def bc(mode, cost_limit=3.0):
    torch.manual_seed(0)
    model = BC(8 + (mode == "multi-task"), 2, 1.0, [16], 15)
    return adapt(BCTrainer(model, None, bc_mode=mode, cost_limit=cost_limit), {"gamma": 0.9})


# All ------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("withdrawn", [False, True])
def test_nothing_of_an_earlier_request_is_retained(name, withdrawn):
    data = toy_data()
    earlier = ForgetManifest.of(data, [[3, 0, 5]], withdrawn=withdrawn)  # a part of a trajectory
    wanted = forget(data, 4).after(earlier)
    context = prepare(adapt(make_trainer(name)), data, wanted, method="safe_rule", steps=1).context
    named = {3: earlier.row_numbers(data) if name != "cdt" else forget(data, 3).row_numbers(data),
             4: forget(data, 4).row_numbers(data)}
    gone = np.concatenate(list(named.values()))
    assert sorted(context.forget.rows.tolist()) == sorted(named[4] if withdrawn else gone)
    assert sorted(context.retain.rows.tolist()) == sorted(set(range(len(data["rewards"]))) - set(gone))


# BEAR-Lag -----------------------------------------------------------------------------------------------------------

def test_imitation_does_not_depend_on_how_narrow_bears_gaussian_is():
    agent, data = adapt(make_trainer("bearl")), toy_data()
    batch = agent.store(data).view(np.arange(64)).everything()
    loss, before = agent.imitation_loss(batch, batch.actions).item(), agent.frozen()
    density = agent.log_prob(batch).mean().item()
    layer = agent.model.actor.log_std_layer
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-5.0)
    assert agent.log_prob(batch).mean().item() < density - 100
    assert agent.imitation_loss(batch, batch.actions).item() == loss > 0 == agent.policy_distance(batch, before).item()
    agent.imitation_loss(batch, batch.actions).backward()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in agent.model.actor.parameters())


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
    seen = batch._replace(observations=batch.observations[:, :8])  # as the environment shows them
    assert torch.equal(agent.actions(seen), agent.actions(batch))
    following = agent.actions(batch._replace(observations=batch.next_observations))
    assert following.shape == (5, 2) and not torch.equal(following, agent.actions(batch))


# CDT --------------------------------------------------------------------------------------------------------------

OPTIONS = {"random_aug": 0.5, "aug_rmin": 1.0, "aug_rmax": 9.0, "aug_cmin": 4.0, "aug_cmax": 12.0, "cgap": 1.0,
           "cost_sample": True, "linear": True, "start_sampling": True, "prob": 0.4}


def cdt(config=None, **options):
    torch.manual_seed(0)
    model = CDT(8, 2, 1.0, seq_len=4, episode_len=20, embedding_dim=16, num_layers=1, num_heads=2, use_rew=True,
                use_cost=True, cost_prefix=True, target_entropy=-2, embedding_dropout=0.2,
                **dict({"stochastic": True}, **options))
    return adapt(CDTTrainer(model, None, reward_scale=0.1, cost_scale=2.0), config)


@pytest.mark.parametrize("reverse", [False, True])
def test_sequences_are_those_of_osrls_dataset(reverse, capsys):
    data, agent = toy_data(), cdt()
    agent.trainer.cost_reverse = reverse
    theirs = SequenceDataset(data, seq_len=4, reward_scale=0.1, cost_scale=2.0, cost_reverse=reverse)
    store = agent.store(data, 0.1, 2.0)
    view, index = store.view(store.rows, training=True), TrajectoryIndex(data)
    assert len(theirs.dataset) == len(store.starts) == 12
    for position, begin in ((0, 0), (3, 5), (11, 16), (5, 13)):
        steps = int(index.stops[position] - index.starts[position])
        ours = view._windows(*(torch.tensor([n]) for n in (position, begin, steps)))
        for mine, their in zip(ours, theirs._SequenceDataset__prepare_sample(position, begin)):
            their = torch.as_tensor(their)
            assert mine[0].dtype == their.dtype and torch.equal(mine[0], their)
    assert store.columns.observations.data_ptr() == data["observations"].ctypes.data


def test_sequences_are_drawn_with_the_probabilities_of_osrls_dataset(capsys):
    data, agent = toy_data(), cdt(OPTIONS)
    theirs = SequenceDataset(data, seq_len=4, cost_scale=2.0, cost_transform=lambda x: 70 - x,
                             **{key: value for key, value in OPTIONS.items() if key != "linear"})
    store = agent.store(data, 1.0, 2.0)
    view = store.view(store.rows, seed=1, training=True)
    assert len(view._start) == len(theirs.dataset) == 18
    assert np.allclose(view._weights[:12] / view._weights[0], theirs.sample_prob[:12] / theirs.sample_prob[0])
    batch = view.batch(20000)
    added = batch.episode_cost[:, None] == torch.as_tensor(view._labels["cost_returns"][view._label[12:]]) * 2.0
    share = added.any(1).double().mean()
    assert abs(share - float(view._weights[12:].sum() / view._weights.sum())) < 0.02
    begins = np.bincount(batch.time_steps[batch.episode_cost == batch.episode_cost[0], 0], minlength=18)
    which = int(torch.nonzero(view._labels["cost_returns"][view._label] * 2.0 == batch.episode_cost[0])[0])
    expected = theirs.start_idx_sample_prob[which] if which < 12 else None
    if expected is not None and (batch.episode_cost[0] == view._labels["cost_returns"][view._label] * 2).sum() == 1:
        assert np.abs(begins[:len(expected)] / begins.sum() - expected).max() < 0.05


def test_added_trajectories_share_states_with_their_source_and_only_training_has_them(capsys):
    agent = cdt({"random_aug": 1.0, "aug_cmin": 4.0, "aug_cmax": 12.0, "cgap": 1.0})
    store = agent.store(toy_data())
    before = np.random.get_state()[1].copy()
    view = store.view(store.rows, seed=1, training=True)
    assert np.array_equal(np.random.get_state()[1], before)
    assert len(view._start) == 24 and len(store.view(store.rows)._start) == 12
    assert set(view._start[12:].tolist()) <= set(view._start[:12].tolist())
    original, added = (view._windows(torch.tensor([k]), torch.tensor([2]), torch.tensor([15]))
                       for k in (int(torch.nonzero(view._start[:12] == view._start[12])[0]), 12))
    assert torch.equal(original.states, added.states) and not torch.equal(original.returns, added.returns)


def test_pareto_augmentation_is_osrls_own(capsys):
    pytest.importorskip("oapackage")
    store = cdt({"augment_percent": 0.3, "pf_sample": True, "deg": 1, "max_reward": 40.0}).store(toy_data(600, 3))
    view = store.view(store.rows, training=True)
    assert len(view._start) > 600 and len(view._weights) == len(view._start) and (view._weights > 0).all()


def test_without_oapackage_pareto_augmentation_says_what_to_do(monkeypatch):
    from osrl.common import dataset
    monkeypatch.delattr(dataset, "oapackage", raising=False)
    store = cdt({"augment_percent": 0.3}).store(toy_data())
    with pytest.raises(EnvironmentProblem, match="pip install oapackage.*--augment_percent 0"):
        store.view(store.rows, training=True)


def test_cdt_forgets_whole_trajectories_and_says_so():
    data = toy_data()
    part = ForgetManifest.of(data, [[10, 2, 4], [11, 0, 3]])
    prepared = prepare(cdt(), data, part, method="fine_tune", steps=1)
    index = TrajectoryIndex(data)
    assert prepared.context.forget.rows.tolist() == list(range(index.starts[10], index.stops[11]))
    assert prepared.context.retain.rows.tolist() == list(range(index.starts[10]))
    assert "whole trajectories are forgotten: 33 rows where the forget manifest names 5" in prepared.notes[-1]


def test_trajectories_too_costly_to_be_drawn_were_never_seen():
    data = toy_data()
    costly = np.arange(TrajectoryIndex(data).starts[11], len(data["rewards"]))
    data["costs"][costly] = 10.0
    with pytest.raises(ConfigError, match="nothing to forget.*never saw them"):
        prepare(cdt(OPTIONS), data, forget(data, 11), method="fine_tune", steps=1)


def test_a_split_of_sequences_is_by_trajectory():
    store = cdt().store(toy_data())
    first, second = store.view(np.arange(100)).split(0.3, 5)
    assert not set(first.rows.tolist()) & set(second.rows.tolist()) and len(second) > 0
    assert sorted(first.rows.tolist() + second.rows.tolist()) == store.view(np.arange(100)).rows.tolist()


class Replay:
    """An environment whose rewards and costs vary, and that keeps what happened."""

    def __init__(self):
        self.rng, self.rows = np.random.default_rng(0), []

    def reset(self):
        self.observation = self.rng.normal(size=8).astype(np.float32)
        return self.observation, {}

    def step(self, action):
        before, self.observation = self.observation, self.rng.normal(size=8).astype(np.float32)
        reward, cost = float(np.float32(self.rng.random())), float(self.rng.random() < 0.5)
        self.rows.append((before, action, reward, cost))
        return self.observation, 0.1 * reward, len(self.rows) == 9, False, {"cost": cost}


@pytest.mark.parametrize("stochastic", [True, False])
def test_cdts_actions_on_its_own_history_are_those_of_osrls_rollout(stochastic):
    agent = cdt({"target_returns": ((5.0, 1), (7.0, 4)), "cost_limit": 3}, stochastic=stochastic)
    agent.trainer.env = env = Replay()
    assert agent.asked == (7.0, 3)
    agent.model.eval()
    reward, cost, length = agent.rollout()
    agent.model.train()
    observations, actions, rewards, costs = (np.asarray(c, np.float32) for c in zip(*env.rows))
    assert (length, cost) == (9, costs.sum()) and reward == pytest.approx(rewards.sum(), abs=1e-4)
    data = {"observations": observations, "next_observations": observations, "actions": actions, "rewards": rewards,
            "costs": costs, "terminals": np.arange(9) == 8, "timeouts": np.zeros(9, bool)}
    store = agent.store(data, 0.1, 2.0)
    again = agent.actions(store.view(store.rows).everything())
    assert agent.model.training and np.allclose(again.detach(), actions, atol=1e-5)
    with pytest.raises(ConfigError, match="target_returns"):
        cdt().rollout()


def test_a_schedule_is_saved_continued_and_reset():
    agent = adapt(make_trainer("cdt"))
    rate = lambda: agent.trainer.optim.param_groups[0]["lr"]  # noqa: E731
    first = rate()
    view = agent.store(toy_data()).view(np.arange(100))
    agent.update(view.batch(8))
    saved, second = agent.hidden_state(), rate()
    agent.advance(100)
    assert first < second < rate() == 1e-3
    agent.restore(saved)
    assert rate() == second and agent.trainer.scheduler.last_epoch == 1
    agent.reset()
    assert rate() == first and agent.trainer.scheduler.last_epoch == 0


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


@pytest.mark.parametrize("base", [ForkedTrainer, BCTrainer])
def test_the_updates_of_a_fork_are_counted_once(base):
    class Own(base):
        def train_one_step(self, observations, actions, rewards):
            if base is ForkedTrainer:
                super().train_one_step(observations, actions, rewards)

    session, data = Session(), {name: torch.as_tensor(column) for name, column in toy_data().items()}
    with session.patches():
        trainer = forked(Own)
        for _ in range(3):
            trainer.train_one_step(data["observations"], data["actions"], data["rewards"])
    training, = session.trainings
    assert training.trainer is trainer and (training.updates, training.batch_size) == (3, len(data["rewards"]))
    assert adapt(trainer).name == "bc"


def test_a_checkpoint_without_side_state_does_not_start_bear_lags_count_again():
    agent = adapt(make_trainer("bearl"))
    assert agent.advance(500) == ("n_train_steps",) and agent.model.n_train_steps == 500
