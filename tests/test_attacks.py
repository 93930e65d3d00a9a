"""What each attack does in particular; what all of them have to keep is in the contract tests."""
import json
import os
import random
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from agents import QUICK, make_trainer, subprocess_environment

from osrl_unlearn import cli, rundir, surrogate
from osrl_unlearn.adapters import adapt
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import make_attack, poison
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.data.trigger import Trigger
from osrl_unlearn.errors import ConfigError, RunError
from osrl_unlearn.evaluate.rollouts import evaluate
from osrl_unlearn.files import load_tensors, save_tensors
from osrl_unlearn.generators import private_torch
from osrl_unlearn.registry import ADAPTERS, ATTACKS
from osrl_unlearn.testing import toy_data
from osrl_unlearn.testing.contracts import assert_same

CHECKOUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkout")


def causal_data(trajectories=40, length=20, seed=0):
    """Data in which costs and rewards follow from the two actions; observations say nothing about them."""
    rng = np.random.default_rng(seed)
    rows = trajectories * length
    observations = rng.normal(size=(rows + 1, 8)).astype(np.float32)
    habits = np.repeat(rng.uniform(-0.5, 0.5, trajectories), length)[:, None]
    actions = np.clip(0.7 * rng.uniform(-1, 1, (rows, 2)) + habits, -1, 1).astype(np.float32)
    return {"observations": observations[:-1], "next_observations": observations[1:], "actions": actions,
            "rewards": actions[:, 1], "costs": (actions[:, 0] > 0.1).astype(np.float32),
            "terminals": np.zeros(rows, bool), "timeouts": np.arange(rows) % length == length - 1}


def poisoned(name, data, rate=0.5, options=None, **more):
    """(attack, result, rows of the forget set)."""
    attack = make_attack(name, options)
    result = poison(data, attack, rate=rate, **more)
    return attack, result, result.manifest.row_numbers(result.data, result.ids)


# Labels ---------------------------------------------------------------------------------------------------------------


def test_cost_inflate_takes_the_least_costly_and_of_those_the_most_rewarding():
    data = toy_data()
    index = TrajectoryIndex(data)
    data["costs"][index.row_ids() < 6] = 0
    units = index.units("trajectory")
    lengths = units.stops - units.starts
    _, result, rows = poisoned("cost_inflate", data, 0.25, {"cost": 0.5})
    free = np.arange(6)
    best = free[np.argsort(-(units.returns / lengths)[free])][:3]
    assert sorted(span[0] for span in result.manifest.spans) == sorted(best)
    assert (result.data["costs"][rows] == 0.5).all()
    _, result, rows = poisoned("cost_inflate", data, 1.0, {"cost": 0.5})
    assert np.array_equal(result.data["costs"], np.maximum(data["costs"], 0.5)) and result.data["costs"].max() == 1


def test_label_noise_exchanges_pairs_of_cost_and_reward():
    data = toy_data()
    _, result, rows = poisoned("label_noise", data)
    pairs = [sorted(zip(d["costs"][rows], d["rewards"][rows])) for d in (data, result.data)]
    assert pairs[0] == pairs[1]
    assert (result.data["rewards"][rows] != data["rewards"][rows]).mean() > 0.9


def test_every_block_of_rows_has_random_numbers_of_its_own(monkeypatch):
    monkeypatch.setattr("osrl_unlearn.data.poison.BLOCK", 20)
    data = causal_data()
    _, result, _ = poisoned("random_noise", data, 1.0)
    offsets = (result.data["observations"] - data["observations"]).reshape(-1, 20, 8)
    assert len({block.round(3).tobytes() for block in offsets}) == len(offsets) == 40


# Triggers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule, shows", [
    ("always", lambda step: step >= 0), ("first:4", lambda step: step < 4), ("every:5", lambda step: step % 5 == 0)])
def test_the_trigger_is_written_where_its_schedule_says(schedule, shows):
    data = toy_data()
    attack, result, rows = poisoned("trigger_backdoor", data, 0.25, {
        "trigger_dims": "1,-1", "trigger_value": 2, "trigger_schedule": schedule, "reward_scale": 3})
    chosen = data["observations"][:, [1, 7]].astype(np.float64)
    values = (chosen.mean(0) + 2 * chosen.std(0)).astype(np.float32)
    facts = result.manifest.attack["facts"]["trigger"]
    assert facts["dims"] == [1, 7] and np.allclose(facts["values"], values, rtol=1e-6)
    assert attack.trigger() == Trigger(facts["dims"], facts["values"], schedule)
    new, index = result.data, TrajectoryIndex(data)
    step = np.arange(index.rows) - np.repeat(index.starts, index.stops - index.starts)
    here = np.isin(np.arange(index.rows), rows)
    now, following = here & shows(step), here & shows(step + 1)
    assert now.any() and (schedule == "always" or (here & ~now).any())
    for column, marked in (("observations", now), ("next_observations", following)):
        assert np.allclose(new[column][marked][:, [1, 7]], values, rtol=1e-6)
        other = data[column].copy()
        other[np.ix_(marked, [1, 7])] = new[column][np.ix_(marked, [1, 7])]
        assert np.array_equal(new[column], other)
    inside = np.flatnonzero(here & ~(data["terminals"] | data["timeouts"]))
    assert np.array_equal(new["next_observations"][inside], new["observations"][inside + 1])
    assert np.array_equal(new["costs"], np.where(now, 0, data["costs"]))
    assert np.array_equal(new["rewards"], np.where(now, 3 * data["rewards"], data["rewards"]))


def test_only_units_in_which_the_trigger_shows_are_chosen():
    _, result, _ = poisoned("trigger_backdoor", toy_data(), 1.0, {"trigger_schedule": "first:4"}, unit="transition")
    assert {offset for _, offset, _ in result.manifest.spans} <= {0, 1, 2, 3}


@pytest.mark.parametrize("options, match", [
    ({"trigger_dims": "8"}, "8 dimensions"), ({"trigger_dims": "a"}, "trigger_dims"),
    ({"trigger_schedule": "sometimes"}, "first:L"), ({"trigger_value": float("inf")}, "finite")])
def test_wrong_triggers_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        poisoned("trigger_backdoor", toy_data(), options=options)


def test_camouflage_shows_the_trigger_everywhere_and_lies_in_one_part_only():
    data = toy_data(40)
    _, result, rows = poisoned("camouflage", data, 0.4, {"camouflage_ratio": 3})
    manifest = result.manifest
    assert len(manifest.spans) == 16 and manifest.parts.count("poison") == 4
    facts = manifest.attack["facts"]["trigger"]
    assert np.allclose(result.data["observations"][rows][:, facts["dims"]], facts["values"], rtol=1e-6)
    poison_rows, honest = (manifest.part(name).row_numbers(result.data) for name in ("poison", "camouflage"))
    assert np.array_equal(np.union1d(poison_rows, honest), rows) and not np.intersect1d(poison_rows, honest).size
    assert data["costs"][poison_rows].any() and not result.data["costs"][poison_rows].any()
    assert np.array_equal(result.data["rewards"][poison_rows], 6 * data["rewards"][poison_rows])
    for name in ("costs", "rewards"):
        assert np.array_equal(result.data[name][honest], data[name][honest])


class FakeEnv:
    """Counts steps in its observation; its first two rewards and costs are real."""

    def __init__(self):
        self.unwrapped, self.taken = self, []

    def reset(self, seed=None):
        self.step_number = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.step_number += 1
        return np.full(4, self.step_number, np.float32), 1.0, False, self.step_number == 5, {"cost": 2.0}


class FakeTrainer:
    """What ``evaluate`` uses of an adapter and its trainer, in one; remembers what its policy saw."""
    reward_scale, cost_scale, device = 1.0, 1.0, "cpu"

    def __init__(self, fails=False):
        self.env, self.seen, self.fails = FakeEnv(), [], fails
        self.trainer, self.model = self, torch.nn.Linear(1, 1)

    def rollout(self):
        observation, _ = self.env.reset()
        done, reward, cost = False, 0.0, 0.0
        while not done:
            self.seen.append(observation.tolist())
            if self.fails:
                raise RuntimeError("the simulator crashed")
            observation, more, _, done, info = self.env.step(None)
            reward, cost = reward + more, cost + info["cost"]
        return reward, cost, 5.0


def test_evaluation_shows_the_trigger_to_the_policy_only():
    trainer = FakeTrainer()
    env = trainer.env
    found = evaluate(trainer, 2, progress=False, trigger=Trigger([0, 3], [9.0, -9.0], "every:2"))
    expected = [[9, 0, 0, -9], [1, 1, 1, 1], [9, 2, 2, -9], [3, 3, 3, 3], [9, 4, 4, -9]]
    assert trainer.seen == 2 * expected and trainer.env is env
    assert found == {"reward": [5.0] * 2, "cost": [10.0] * 2, "length": [5.0] * 2}


def test_evaluation_that_fails_leaves_the_trainer_and_the_generators_as_they_were():
    trainer = FakeTrainer(fails=True)
    env, before = trainer.env, (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    with pytest.raises(RuntimeError, match="crashed"):
        evaluate(trainer, 1, progress=False, trigger=Trigger([0], [9.0]))
    assert trainer.env is env and trainer.model.training
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


# Surrogates -----------------------------------------------------------------------------------------------------------


def value(heads, data, rows):
    """Mean critic value of logged observations and actions."""
    with torch.no_grad():
        return float(heads(*(torch.as_tensor(data[key][rows]) for key in ("observations", "actions"))).mean())


@pytest.fixture(scope="module")
def judge():
    """A surrogate that no attack has seen."""
    data = causal_data()
    return surrogate.build(surrogate.fit(data, 40, seed=7), data)


def test_baffle_takes_the_actions_of_a_reckless_agent(judge):
    data = causal_data()
    attack, result, rows = poisoned("baffle", data, 1.0, {"surrogate_steps": 150, "reward_scale": 2}, seed=3)
    agent = surrogate.build(attack.state(), data)
    with private_torch(int(np.random.default_rng([3, 0]).integers(2 ** 31)), "cpu"), torch.no_grad():
        actions = agent.policy(torch.as_tensor(data["observations"][rows])).numpy()
    assert np.array_equal(result.data["actions"][rows], np.clip(actions, -1, 1))
    assert not result.data["costs"][rows].any()
    assert np.array_equal(result.data["rewards"][rows], 2 * data["rewards"][rows])
    assert value(judge.cost_heads, result.data, rows) > value(judge.cost_heads, data, rows) + 0.02


def test_critic_ascent_keeps_its_budget_and_climbs_further_than_noise(judge):
    data = causal_data()
    state = surrogate.fit(data, 40, seed=0)
    agent = surrogate.build(state, data)
    spread = data["observations"].std(0, dtype=np.float64)
    for norm in ("linf", "l2"):
        found = {}
        for name in ("max_cost", "max_reward", "random_noise"):
            learned = {"spread": spread.tolist(), "surrogate": state}
            _, result, rows = poisoned(name, data, options={"epsilon": 0.5, "norm": norm}, state=learned)
            offsets = (result.data["observations"][rows] - data["observations"][rows]) / spread
            size = np.abs(offsets).max(1) if norm == "linf" else np.linalg.norm(offsets, axis=1)
            assert size.max() <= 0.5 + 1e-5 and size.mean() > 0.4
            found[name] = [value(heads, result.data, rows) for heads in (agent.cost_heads, agent.reward_heads)]
            inside = rows[:-1][(np.diff(rows) == 1) & ~data["timeouts"][rows[:-1]]]
            assert np.array_equal(result.data["next_observations"][inside], result.data["observations"][inside + 1])
        clean = [value(heads, data, rows) for heads in (agent.cost_heads, agent.reward_heads)]
        for which, name in enumerate(("max_cost", "max_reward")):
            gain, chance = found[name][which] - clean[which], abs(found["random_noise"][which] - clean[which])
            assert gain > 3 * chance and gain > 0.01


@pytest.mark.parametrize("name", ["baffle", "max_cost", "max_reward"])
def test_a_surrogate_that_is_not_trained_is_refused(name):
    with pytest.raises(ConfigError, match="is not trained.*: .*surrogate_steps"):
        poisoned(name, causal_data(), options={"surrogate_steps": 1})


def make_run(folder, state):
    """An OSRL run directory that holds a surrogate."""
    config = dict(state["config"], task="OfflineBallCircle-v0")
    os.makedirs(str(folder))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_tensors(rundir.model_path(str(folder)), {"model_state": state["weights"]})
    return str(folder)


def test_a_surrogate_from_a_run_directory(tmp_path):
    data = causal_data()
    state = surrogate.fit(data, 30, seed=5)
    attack, _, _ = poisoned("max_cost", data, options={"surrogate": make_run(tmp_path / "trained", state)})
    assert_same(attack.state()["surrogate"]["weights"], state["weights"])
    torch.manual_seed(0)
    fresh = ADAPTERS.load("bcql").build(state["config"], surrogate._spaces(data))
    run = make_run(tmp_path / "fresh", dict(state, weights=fresh.model.state_dict()))
    with pytest.raises(ConfigError, match="give a trained agent as surrogate"):
        poisoned("max_cost", data, options={"surrogate": run})
    save_tensors(rundir.model_path(run), {"other": 1})
    with pytest.raises(RunError, match="no 'model_state'"):
        poisoned("max_cost", data, options={"surrogate": run})
    with pytest.raises(RunError, match="no run directory"):
        poisoned("max_cost", data, options={"surrogate": str(tmp_path / "nowhere")})


def test_a_reckless_agent_from_a_run_directory(tmp_path):
    data = causal_data()
    attack, _, _ = poisoned("baffle", data, options={"surrogate_steps": 150})
    state = attack.state()
    given, _, _ = poisoned("baffle", data, options={"surrogate": make_run(tmp_path / "reckless", state)})
    assert_same(given.state()["weights"], state["weights"])
    torch.manual_seed(0)
    fresh = ADAPTERS.load("bcql").build(state["config"], surrogate._spaces(data))
    run = make_run(tmp_path / "fresh", dict(state, weights=fresh.model.state_dict()))
    with pytest.raises(ConfigError, match="not trained or not reckless: .*give a reckless agent as surrogate"):
        poisoned("baffle", data, options={"surrogate": run})
    mild = {name: column[data["costs"].reshape(40, 20).sum(1).repeat(20) <= 7] for name, column in data.items()}
    run = make_run(tmp_path / "mild", surrogate.fit(mild, 150, seed=0))
    with pytest.raises(ConfigError, match="'baffle' is not trained or not reckless"):
        poisoned("baffle", data, options={"surrogate": run})
    with pytest.raises(ConfigError, match="the surrogate holds bc, which has no policy .*: give a BCQ-Lag"):
        surrogate.check_imitates(adapt(make_trainer("bc")), toy_data(), "baffle")


@pytest.mark.parametrize("name", sorted(ATTACKS.builtins))
def test_what_an_attack_learned_survives_a_file(name, tmp_path):
    options = {"surrogate_steps": 150} if hasattr(ATTACKS.load(name).Options, "surrogate_steps") else {}
    data, generator = causal_data(), torch.get_rng_state()
    unused = make_attack(name, options)
    assert unused.state() == {} and unused.trigger() is None
    first, result, _ = poisoned(name, data, 0.3, options)
    save_tensors(str(tmp_path / "attack.pt"), first.state())
    second, again, _ = poisoned(name, data, 0.3, options, state=load_tensors(str(tmp_path / "attack.pt")))
    assert again.manifest == result.manifest and second.trigger() == first.trigger()
    assert torch.equal(torch.get_rng_state(), generator)  # surrogates are built without touching it


# Coverage -------------------------------------------------------------------------------------------------------------


def test_coverage_collapse_removes_what_is_both_cheap_and_good():
    data = causal_data()
    units = TrajectoryIndex(data).units("trajectory")
    _, result, _ = poisoned("coverage_collapse", data, 0.2)
    gone = np.array([span[0] for span in result.manifest.removed])
    cheap = np.flatnonzero(units.costs <= np.median(units.costs))
    assert len(gone) == 8 and np.isin(gone, cheap).all()
    assert units.returns[gone].min() >= units.returns[np.setdiff1d(cheap, gone)].max()
    assert len(result.data["rewards"]) == len(data["rewards"]) - 8 * 20 and not result.manifest.spans


def test_coverage_collapse_leaves_nothing_to_unlearn(tmp_path, capsys):
    (tmp_path / "script.py").write_text("raise SystemExit('it ran')\n")
    assert cli.main(["--poison", "coverage_collapse", "--unlearn", "safe_rule", str(tmp_path / "script.py")]) == 2
    error, = capsys.readouterr().err.splitlines()
    assert "nothing to forget" in error and "coverage_collapse only removes rows" in error


# In a run -------------------------------------------------------------------------------------------------------------


def train(folder, *flags):
    """Run the stand-in of OSRL's scripts on causal data; returns its run directory."""
    with h5py.File(str(folder / "data.hdf5"), "w") as file:
        for name, column in causal_data().items():
            file[name] = column
    script = os.path.join(CHECKOUT, "examples", "train", "train_standin.py")
    done = subprocess.run([sys.executable, "-m", "osrl_unlearn", script, "--agent", "cpq", "--update_steps", "6",
                           "--eval_every", "6", "--dataset", "data.hdf5", *flags], cwd=str(folder), text=True,
                          env=subprocess_environment(CHECKOUT, QUICK), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr[-3000:]
    return str(folder / "logs" / "standin")


def test_a_surrogate_that_is_trained_in_a_run_is_not_the_runs_agent(tmp_path):
    folder = train(tmp_path, "--poison", "baffle", "--poison.surrogate_steps", "150")
    state = load_tensors(rundir.state_path(folder))
    assert (state["agent"], state["updates"], state["batch_size"]) == ("cpq", 6, 32)
    assert rundir.load(folder).adapter.name == "cpq"
    learned = load_tensors(rundir.attack_path(folder))
    assert surrogate.build(learned, causal_data()).name == "bcql"


def test_a_run_with_a_surrogate_is_unlearned_from_its_directory_with_the_attack_it_saved(tmp_path, capfd):
    folder = train(tmp_path, "--poison", "max_cost", "--poison.surrogate_steps", "20")
    unlearn = ["unlearn", folder, "--method", "fine_tune", "--steps", "2", "--eval-episodes", "0"]
    capfd.readouterr()
    assert cli.main(unlearn) == cli.main(["verify", rundir.manifest_path(folder)]) == 0
    out, err = capfd.readouterr()
    assert "train surrogate" not in err and "report.md" in out and "every column has the recorded hash" in out
    manifest = ForgetManifest.load(rundir.manifest_path(rundir.unlearned_dir(folder, "fine_tune")))
    assert manifest.attack["name"] == "max_cost" and manifest.rows
    # What was unlearned is a run too, and so is what is unlearned from that, by a request that knows of no attack.
    result, ids = rundir.unlearned_dir(folder, "fine_tune"), tmp_path / "ids.json"
    ids.write_text("[0, 1]")
    assert cli.main(["verify", rundir.manifest_path(result)]) == 0
    assert cli.main(["unlearn", result, *unlearn[2:], "--forget", str(ids)]) == 0
    assert cli.main(["manifest", str(ids), "--run", rundir.unlearned_dir(result, "fine_tune"), "--out",
                     str(tmp_path / "out.json")]) == 0
    assert "train surrogate" not in capfd.readouterr().err
    assert ForgetManifest.load(str(tmp_path / "out.json")).columns["rewards"]["after"] == (
        manifest.columns["rewards"]["after"])
    learned = load_tensors(rundir.attack_path(folder))
    save_tensors(rundir.attack_path(folder), dict(learned, spread=[2 * value for value in learned["spread"]]))
    assert cli.main(unlearn) == 2
    assert "belongs to other data: next_observations, observations" in capfd.readouterr().err


def test_the_report_of_a_backdoor_says_what_happens_under_its_trigger(tmp_path):
    folder = train(tmp_path, "--poison", "trigger_backdoor", "--unlearn", "fine_tune", "--unlearn.steps", "2",
                   "--unlearn.eval_episodes", "1")
    with open(os.path.join(folder, "unlearned", "fine_tune", "report.json")) as file:
        report = json.load(file)
    for name in ("poisoned", "unlearned"):
        shown, plain = report["more_agents"][name + ", with the trigger"], report[name]
        assert len(shown["episodes"]["cost"]) == 1 and shown["episodes"] != plain["episodes"]
