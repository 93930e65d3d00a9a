"""What every detector, adapter and method has to keep. Subclass, name yours, let pytest collect the subclass.

    class TestMine(DetectorContract):
        def make(self):
            return MyDetector()
"""
import copy

import numpy as np
import torch

from osrl_unlearn.adapters import adapt
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.data.views import forget_and_retain
from osrl_unlearn.detection import detect
from osrl_unlearn.errors import ConfigError, IncompatibleAgent
from osrl_unlearn.files import load_tensors, save_tensors
from osrl_unlearn.generators import all_states
from osrl_unlearn.methods.base import Context, Interrupted
from osrl_unlearn.methods.gate import SafetyGate
from osrl_unlearn.testing.toys import toy_data


def assert_same(one, other, where="state"):
    """Deep equality of nested dictionaries, lists, tensors and numbers, bit by bit."""
    if isinstance(one, dict):
        assert set(one) == set(other), where
        for key in one:
            assert_same(one[key], other[key], "{}.{}".format(where, key))
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for n, (a, b) in enumerate(zip(one, other)):
            assert_same(a, b, "{}[{}]".format(where, n))
    elif torch.is_tensor(one) or torch.is_tensor(other):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other)), where
    else:
        assert one == other, where


class DetectorContract:
    """Override :meth:`make`, and :meth:`adapter` if the detector needs an agent."""

    def make(self):
        """The detector under test, with few steps if it fits models."""
        raise NotImplementedError("override make() with the detector under test")

    def adapter(self):
        """The adapter of an agent for data like :meth:`data`, or None."""
        return None

    def data(self):
        """Clean data that the detector works on."""
        return toy_data(trajectories=30)

    def found(self, data):
        """The scores of a new detector."""
        return self.make().scores(data, TrajectoryIndex(data), 0, adapter=self.adapter())

    def test_every_row_gets_a_finite_score_that_is_not_negative(self):
        data = self.data()
        scores = self.found(data)
        assert scores.shape == data["rewards"].shape and np.isfinite(scores).all() and (scores >= 0).all()

    def test_the_given_data_stay_as_they_are(self):
        data = self.data()
        before = copy.deepcopy(data)
        self.found(data)
        assert set(data) == set(before)
        for name in before:
            assert data[name].dtype == before[name].dtype and np.array_equal(data[name], before[name]), name

    def test_the_seed_decides_and_global_generators_are_left_alone(self):
        data, agent = self.data(), self.adapter()
        before = all_states()
        one, two = (self.make().scores(data, TrajectoryIndex(data), 3, adapter=agent) for _ in range(2))
        assert_same(all_states(), before)
        assert np.array_equal(one, two)

    def test_the_names_of_trajectories_do_not_matter(self):
        data, agent = self.data(), self.adapter()
        one, two = (self.make().scores(data, TrajectoryIndex(data, ids), 0, adapter=agent)
                    for ids in (None, 1000 - TrajectoryIndex(data).row_ids()))
        assert np.array_equal(one, two)

    def test_clean_data_are_not_flagged_wholesale(self):
        data = self.data()
        manifest = detect(data, self.make(), adapter=self.adapter())
        assert manifest.trajectories <= 0.1 * len(TrajectoryIndex(data).starts)

    def test_a_detector_that_needs_an_agent_says_so(self):
        if "agent" not in self.make().needs:
            return
        data = self.data()
        try:
            self.make().scores(data, TrajectoryIndex(data), 0)
        except ConfigError as error:
            assert self.make().name in str(error)
        else:
            raise AssertionError("no ConfigError without an agent")

    def test_the_manifest_survives_disk(self, tmp_path):
        data, path = self.data(), str(tmp_path / "detected.json")
        manifest = detect(data, self.make(), adapter=self.adapter())
        manifest.save(path)
        assert ForgetManifest.load(path) == manifest
        manifest.verify(data)


class _WithAgent:
    def make_trainer(self, seed=0):
        """A small OSRL trainer of the agent under test, built after seeding torch with ``seed``."""
        raise NotImplementedError("override make_trainer() with a small trainer")

    def data(self):
        """Data with the observation and action sizes of the trainer."""
        return toy_data()

    def agent(self, seed=0):
        """The adapter of a fresh trainer."""
        torch.manual_seed(seed)
        return adapt(self.make_trainer(seed))

    def views(self, seed=0):
        """(store, forget view, retain view) in which the two last trajectories are to be forgotten."""
        data = self.data()
        index = TrajectoryIndex(data)
        with torch.random.fork_rng(devices=[]):
            store = self.agent().store(data, 0.1, 1.0)
        return (store,) + forget_and_retain(store, np.arange(index.starts[-2], index.stops[-1]), seed)

    def train(self, agent, view, steps, seed=0):
        """Ordinary updates from a seeded generator."""
        torch.manual_seed(seed)
        for _ in range(steps):
            agent.update(view.batch(32))


class AdapterContract(_WithAgent):
    """Override :meth:`make_trainer`."""

    def test_it_recognises_its_trainer_and_finds_no_problem(self):
        agent = self.agent()
        assert type(agent).matches(agent.trainer) and type(agent).check(agent.trainer) == []

    def test_missing_parts_are_reported_all_at_once(self):
        trainer = self.agent().trainer
        names = [part.optimizer for part in adapt(trainer).parts.values()][:2]
        for name in names:
            delattr(trainer.model if hasattr(trainer.model, name) else trainer, name)
        problems = type(self.agent()).check(trainer)
        assert all(any(name in problem for problem in problems) for name in names)

    def test_restore_is_exact_and_training_goes_on_as_if_never_stopped(self):
        agent, (_, _, view) = self.agent(), self.views()
        self.train(agent, view, 3)
        saved, position = agent.state(), view.state()
        self.train(agent, view, 3, seed=1)
        first = agent.state()
        agent.restore(saved)
        assert_same(agent.state(), saved)
        view.set_state(position)
        self.train(agent, view, 3, seed=1)
        assert_same(agent.state(), first)

    def test_a_new_agent_continues_from_weights_and_hidden_state(self):
        agent, (_, _, view) = self.agent(), self.views()
        self.train(agent, view, 3)
        weights, hidden, position = agent.model.state_dict(), agent.hidden_state(), view.state()
        other = self.agent(seed=7)
        other.load_weights(weights)
        other.restore(hidden)
        self.train(agent, view, 3, seed=1)
        view.set_state(position)
        self.train(other, view, 3, seed=1)
        assert_same(other.state(), agent.state())

    def test_an_update_without_extra_is_the_trainers_own(self):
        agent, other, (_, _, view) = self.agent(), self.agent(), self.views()
        batch = view.batch(32)
        torch.manual_seed(5)
        losses = agent.update(batch)
        torch.manual_seed(5)
        other.trainer.train_one_step(*other.arguments(batch))
        assert_same(agent.state(), other.state())
        assert losses

    def test_an_extra_loss_of_zero_changes_nothing_and_any_other_only_its_part(self):
        batch = self.views()[2].batch(32)
        for role, part in self.agent().parts.items():
            results = []
            for weight in (None, 0.0, 1.0):
                agent = self.agent()
                module = getattr(agent.model, part.module) if part.module else agent.model
                before = vars(agent.optimizers()[part.optimizer]).get("step")
                target = module if torch.is_tensor(module) else next(module.parameters())
                torch.manual_seed(5)
                agent.update(batch, None if weight is None else {role: lambda: weight * (target ** 2 + target).sum()})
                results.append(agent.state())
                assert vars(agent.optimizers()[part.optimizer]).get("step") is before
            assert_same(results[0], results[1])
            changed = [n for n, t in results[0]["weights"].items() if not torch.equal(t, results[2]["weights"][n])]
            assert torch.is_tensor(module) or changed

    def test_gradients_leave_the_agent_as_it_is(self):
        agent, (_, _, view) = self.agent(), self.views()
        self.train(agent, view, 3)
        before, batch, seen = agent.state(), view.batch(32), {}
        steps = [vars(optimizer).get("step") for optimizer in agent.optimizers().values()]
        torch.manual_seed(5)
        found = agent.gradients(batch)
        assert_same(agent.state(), before)
        assert set(found) == set(agent.parts)

        def record(role):
            def edit(gradients):
                seen[role] = [None if g is None else g.clone() for g in gradients]
                return gradients
            return edit

        torch.manual_seed(5)
        agent.update(batch, edit={role: record(role) for role in agent.parts})
        first = next(iter(seen))  # the others' losses come after its step
        assert_same(found[first], seen[first])
        for role, gradients in found.items():
            assert [p.shape for p in agent.parameters(role)] == [s.shape for s in seen[role]]
            assert [p.shape for p in agent.parameters(role)] == [g.shape for g in gradients]
        assert [vars(optimizer).get("step") for optimizer in agent.optimizers().values()] == steps

    def test_edited_gradients_are_the_ones_that_are_used(self):
        agent, (_, _, view) = self.agent(), self.views()
        self.train(agent, view, 3)
        for role in agent.parts:
            before = {r: [p.detach().clone() for p in agent.parameters(r)] for r in agent.parts}
            agent.update(view.batch(32), edit={role: lambda gradients: [None] * len(gradients)})
            for other in agent.parts:
                same = all(torch.equal(p, b) for p, b in zip(agent.parameters(other), before[other]))
                assert same == (other == role), (role, other)

    def test_kept_duals_are_kept_and_networks_are_not(self):
        agent, (_, _, view) = self.agent(), self.views()
        self.train(agent, view, 3)
        before = agent.state()
        with agent.duals_kept():
            self.train(agent, view, 2)
        after = agent.state()
        for kind in ("tensors", "scalars"):
            assert_same(after[kind], before[kind], kind)
        for part in agent.parts.values():
            if part.module in agent.tensors:
                assert_same(after["optimizers"][part.optimizer], before["optimizers"][part.optimizer])
        assert any(not torch.equal(t, before["weights"][n]) for n, t in after["weights"].items())

    def test_reset_is_a_fresh_construction(self):
        agent, (_, _, view) = self.agent(), self.views()
        self.train(agent, view, 2)
        torch.manual_seed(11)
        agent.reset()
        fresh = self.agent(seed=11).state()
        state = agent.state()
        for kind in ("weights", "tensors", "scalars"):
            assert_same(state[kind], fresh[kind], kind)
        assert all(not o["state"] for o in state["optimizers"].values())

    def test_nothing_that_training_changes_is_missing_from_the_state(self):
        agent, (_, _, view) = self.agent(), self.views()
        self.train(agent, view, 1)
        before = {name: value.detach().clone() for name, value in _loose_tensors(agent.model)}
        self.train(agent, view, 2)
        known = set(agent.tensors) | set(agent.constants) | {path.split(".")[0] for path in agent.scalars}
        missing = [name for name, value in _loose_tensors(agent.model) if name in before
                   and not torch.equal(before[name], value) and name.lstrip("_") not in known and name not in known]
        assert missing == []

    def test_the_frozen_twin_stays_while_the_agent_moves(self):
        agent, (_, _, view) = self.agent(), self.views()
        self.train(agent, view, 2)
        twin, batch = agent.frozen(), view.batch(16)

        @torch.no_grad()
        def says(adapter):
            torch.manual_seed(3)
            return [adapter.actions(batch)] + ([adapter.reward_value(batch), adapter.cost_value(batch)]
                                               if "values" in adapter.capabilities else [])

        before = says(twin)
        assert_same(before, says(agent))
        self.train(agent, view, 3)
        assert_same(before, says(twin))
        assert not any(torch.equal(one, other) for one, other in zip(before, says(agent)))

    def test_a_twin_is_trained_alike_and_alone(self):
        agent, (_, _, view) = self.agent(), self.views()
        self.train(agent, view, 2)
        twin, before, drawn = agent.twin(), agent.state(), view.state()
        assert twin.trainer.model is twin.model is not agent.model
        assert_same(twin.state(), before)
        torch.manual_seed(5)
        self.train(twin, view, 2)
        assert_same(agent.state(), before)
        after = twin.state()
        view.set_state(drawn)
        torch.manual_seed(5)
        self.train(agent, view, 2)
        assert_same(agent.state(), after)

    def test_the_policy_is_nearer_to_its_own_past_than_after_more_training(self):
        agent, (_, _, view) = self.agent(), self.views()
        before, batch = agent.frozen(), view.everything(64)

        def distance():
            torch.manual_seed(5)
            with torch.no_grad():
                return agent.policy_distance(batch, before).item()
        start = distance()
        assert start == 0 or agent.normal(batch) is None  # without a Gaussian, two draws of a generator may differ
        self.train(agent, view, 20)
        assert distance() > start

    def test_values_and_actions_have_the_promised_shapes(self):
        agent, batch = self.agent(), self.views()[2].batch(16)
        actions = agent.actions(batch)
        assert actions.shape == batch.actions.shape and actions.requires_grad
        distance = agent.policy_distance(batch, agent.frozen())
        assert distance.shape == () and distance.requires_grad
        if "log_prob" in agent.capabilities:
            assert agent.log_prob(batch).shape == (16,)
            extreme = {name: torch.ones_like(getattr(batch, name)) for name in batch._fields if "action" in name}
            assert torch.isfinite(agent.log_prob(batch._replace(**extreme))).all()
        if "values" not in agent.capabilities:
            assert not {"action_values", "generator"} & agent.capabilities
            return
        assert agent.reward_value(batch).shape[1:] == agent.cost_value(batch).shape[1:] == (16,)
        assert agent.preference(batch).shape == (16,)
        assert agent.violation(batch).shape == () and agent.cost_threshold > 0
        if "generator" in agent.capabilities:
            assert agent.generator_error(batch).shape == (16,)
        if "action_values" in agent.capabilities:
            assert agent.cost_price(batch).shape == (16,)
            assert agent.policy_loss(batch.observations, 1.0).requires_grad


class MethodContract(_WithAgent):
    """Override :meth:`make` and :meth:`make_trainer`; with a trainer that lacks what the method requires, only the
    refusal can pass.
    """

    def make(self):
        """The method under test."""
        raise NotImplementedError("override make() with the method under test")

    def context(self, agent, steps=20, **more):
        """A context of small batches."""
        store, forget, retain = self.views()
        gate = SafetyGate(store, retain, agent.frozen(), 0.99) if self.make().gated else None
        return Context(agent, forget, retain, steps, 32, gate=gate, progress=False, **more)

    def trained(self):
        """An agent after a few ordinary updates on all data."""
        agent, (store, _, _) = self.agent(), self.views()
        self.train(agent, store.view(store.rows), 5)
        return agent

    def test_an_agent_that_lacks_what_it_requires_is_refused(self):
        agent, method = self.trained(), self.make()
        if method.requires <= agent.capabilities:
            return
        before = agent.state()
        try:
            method.run(self.context(agent))
        except IncompatibleAgent as error:
            assert all(name in str(error) for name in {method.name} | (method.requires - agent.capabilities))
        else:
            raise AssertionError("an agent without {} was accepted".format(method.requires - agent.capabilities))
        assert_same(agent.state(), before)

    def test_it_changes_the_agent_within_its_budget_and_leaves_torch_alone(self):
        agent = self.trained()
        before, generator = agent.state(), torch.get_rng_state()
        outcome = self.make().run(self.context(agent))
        assert torch.equal(torch.get_rng_state(), generator)
        assert 0 < outcome.steps <= 20 and outcome.trace and outcome.seconds > 0
        changed = any(not torch.equal(t, before["weights"][n]) for n, t in agent.model.state_dict().items())
        assert changed == outcome.accepted and (outcome.accepted or self.make().gated)
        for entry in outcome.trace:
            assert {"step", "action_distance/forget", "accepted"} <= set(entry)
            assert ({"reward_value/forget", "cost_value/retain"} <= set(entry)) == ("values" in agent.capabilities)

    def test_learning_rates_are_as_before_when_it_is_done(self):
        agent = self.trained()
        before = [[g["lr"] for g in o.param_groups] for o in agent.optimizers().values()]
        self.make().run(self.context(agent))
        assert [[g["lr"] for g in o.param_groups] for o in agent.optimizers().values()] == before

    def test_the_seed_decides(self):
        results = []
        for _ in range(2):
            agent = self.trained()
            self.make().run(self.context(agent))
            results.append(agent.model.state_dict())
        assert_same(*results)

    def test_interrupted_and_resumed_equals_uninterrupted(self, tmp_path):
        whole = self.trained()
        uninterrupted = self.make().run(self.context(whole))

        def interrupt(step, metrics):
            if step == 4:  # the state is that of the check before
                raise KeyboardInterrupt

        agent, saved = self.trained(), None
        before = agent.state()
        try:
            self.make().run(self.context(agent, on_check=interrupt))
        except Interrupted as stop:
            saved = stop.state
        assert saved is not None
        if not saved["ever_accepted"]:
            assert_same(agent.state(), before)
        save_tensors(str(tmp_path / "resume.pt"), saved)
        agent = self.trained()
        outcome = self.make().run(self.context(agent), load_tensors(str(tmp_path / "resume.pt")))
        assert (outcome.steps, outcome.gate) == (20, uninterrupted.gate)
        assert_same(agent.model.state_dict(), whole.model.state_dict())

    def test_divergence_rolls_back(self):
        """Also where no loss has shown it yet when the agent is looked at."""
        for shown in (True, False):
            method, agent = self.make(), self.trained()
            step = method.step

            def diverge(ctx, i):
                metrics = step(ctx, i)
                if i == 11:
                    with torch.no_grad():
                        for weight in ctx.adapter.model.parameters():
                            weight.fill_(float("nan"))
                    if shown:
                        metrics["loss"] = float("nan")
                return metrics

            method.step = diverge
            outcome = method.run(self.context(agent))
            assert "diverged" in outcome.reason and outcome.rollbacks >= 1
            assert all(torch.isfinite(t).all() for t in agent.model.state_dict().values())


def _loose_tensors(model):
    for name, value in vars(model).items():
        if torch.is_tensor(value):
            yield name, value
