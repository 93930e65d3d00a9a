"""Each term of Safe-RULE moves the agent the right way; the multiplier and the gate react when they should."""
import dataclasses
import functools

import numpy as np
import pytest
import torch
from agents import AGENTS, WITH_CRITICS, make_trainer

from osrl_unlearn.adapters import adapt
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.trajectories import TrajectoryIndex, to_go
from osrl_unlearn.data.views import TransitionStore, forget_and_retain
from osrl_unlearn.engine import prepare
from osrl_unlearn.methods.base import Context
from osrl_unlearn.methods.fine_tune import FineTune
from osrl_unlearn.methods.gate import SafetyGate
from osrl_unlearn.methods.safe_rule import SafeRule, SafeRuleOptions, _within_limit
from osrl_unlearn.testing import toy_data

# Every term off; each test turns one on.
OFF = dict(refit=0.0, reward_weight=0.0, cost_weight=0.0, generator_weight=0.0, policy_weight=0.0, imitation_weight=0.0,
           action_weight=0.0, repair_share=1.0, policy_anchor=0.0, anchor=0.0, forget_share=1.0, drift=1e9, margin=3.0,
           learning_rate=1e-3)


def untrained(name, limit):
    torch.manual_seed(0)
    agent = adapt(make_trainer(name))
    if limit is not None:
        agent.model.cost_limit = agent.model.qc_thres = agent.model.q_thres = limit
    return agent


@functools.lru_cache(maxsize=None)
def trained(name, limit):
    """State of an agent after training on everything."""
    agent = untrained(name, limit)
    store = agent.store(toy_data(), 0.1, 1.0)
    everything = store.view(store.rows)
    for _ in range(60):
        agent.update(everything.batch(64))
    return agent.state()


def setting(name, limit=None, steps=40):
    """(agent trained on everything, context) on toy data whose two last trajectories are forgotten."""
    data, state, agent = toy_data(), trained(name, limit), untrained(name, limit)
    agent.restore(state)
    index, store = TrajectoryIndex(data), agent.store(data, 0.1, 1.0)
    forget, retain = forget_and_retain(store, np.arange(index.starts[-2], index.stops[-1]))
    return agent, Context(agent, forget, retain, steps, 64, progress=False)


def after(name, value, steps=40, **options):
    """``value(agent, forget batch, reference)`` after a run with only the given terms."""
    agent, ctx = setting(name, steps=steps)
    SafeRule(SafeRuleOptions(**dict(OFF, **options))).run(ctx)
    torch.manual_seed(1)
    with torch.no_grad():
        return value(agent, ctx.forget.everything()).mean().item()


@pytest.mark.parametrize("name", WITH_CRITICS)
def test_f1_lowers_the_reward_critics_preference_for_the_forget_set(name):
    def preference(agent, batch):
        return agent.preference(batch).mean() - agent.preference(retained(agent)).mean()
    assert after(name, preference, reward_weight=5.0) < after(name, preference) - 1e-3


def praised(name, **more):
    """:func:`setting` with an agent whose reward critic was raised by far more than the returns' spread."""
    agent, ctx = setting(name)
    for critic in [agent.model.nu_network] if name == "coptidice" else [agent.model.critic, agent.model.critic_old]:
        for layer in critic.modules():
            if isinstance(layer, torch.nn.Linear) and layer.out_features == 1:
                layer.bias.data += 50.0
    return agent, dataclasses.replace(ctx, reference=agent.frozen(), **more)


def prepared(name, agent_and_ctx=None, **options):
    agent, ctx = agent_and_ctx or praised(name)
    SafeRule(SafeRuleOptions(**dict(OFF, **dict({"refit": 1e-3}, **options)))).prepare(ctx)
    return agent, ctx


@pytest.mark.parametrize("name", ["bcql", "bearl"])
def test_f0_fits_a_raised_reward_critic_and_its_target_to_the_returns_of_the_retain_set(name):
    agent, ctx = prepared(name)
    batch = ctx.retain.everything()
    returns = to_go(ctx.retain.store.rewards().numpy(), ctx.retain.store.columns.done.numpy(), agent.gamma)
    returns = torch.as_tensor(returns)[ctx.retain.rows]
    for head in agent.reward_value(batch):
        assert head.mean().item() == pytest.approx(returns.mean().item(), abs=1e-3)
        assert ((head - returns) ** 2).mean() < 0.999 * returns.var(unbiased=False)  # what they have learned is used
    for old, new in zip(agent.model.critic_old.parameters(), agent.model.critic.parameters()):
        assert torch.equal(old, new)


@pytest.mark.parametrize("name, options, more", [
    ("bcql", {"refit": 0.0}, {}), ("bcql", {"sigma": -1}, {}), ("bcql", {}, {"withdrawn": True}),
    ("cpq", {}, {}), ("coptidice", {}, {})])
def test_f0_is_for_praised_returns_only(name, options, more):
    agent, ctx = praised(name, **more)
    before = agent.state()["weights"]
    prepared(name, (agent, ctx), **options)
    assert all(torch.equal(t, before[n]) for n, t in agent.model.state_dict().items())


def test_f0_does_not_touch_a_critic_that_the_retain_set_does_not_contradict():
    agent, ctx = prepared("bcql")
    spread = to_go(ctx.retain.store.rewards().numpy(), ctx.retain.store.columns.done.numpy(), agent.gamma).std()
    for layer in agent.reward_output_layers():
        layer.bias.data += 0.5 * spread
    before = agent.state()["weights"]
    prepared("bcql", (agent, ctx))
    assert all(torch.equal(t, before[n]) for n, t in agent.model.state_dict().items())


def test_f0_takes_no_reward_of_a_forgotten_row():
    def weights(reward):
        agent, ctx = praised("bcql")
        index = TrajectoryIndex(toy_data())
        store = ctx.retain.store
        rows = np.arange(index.starts[-1] + 3, index.stops[-1] - 1)  # retained rows before and after them
        store.columns.rewards[rows] = reward
        forget, retain = forget_and_retain(store, rows)
        return prepared("bcql", (agent, dataclasses.replace(ctx, forget=forget, retain=retain)))[0].model.state_dict()
    one, other = weights(0.0), weights(1e6)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_f0_stays_when_the_first_steps_are_rolled_back():
    class Once:
        asked = 0

        def accepts(self, adapter):
            self.asked += 1
            return self.asked > 1, 1.0

        def state(self):
            return {}

        def summary(self):
            return {"used": True}
    agent, ctx = praised("bcql")
    outcome = SafeRule(SafeRuleOptions()).run(dataclasses.replace(ctx, gate=Once()))
    assert outcome.accepted and outcome.rollbacks == 1
    assert agent.reward_value(ctx.retain.everything()).mean() < 25


def retained(agent):
    data = toy_data()
    index, store = TrajectoryIndex(data), TransitionStore(data, 0.1, 1.0)
    torch.manual_seed(1)
    return store.gather(torch.arange(int(index.starts[-2])))


def test_a_cost_critic_of_states_is_not_priced():
    cost = lambda agent, batch: agent.cost_value(batch)  # noqa: E731
    assert after("coptidice", cost, cost_weight=5.0, sigma=1) == after("coptidice", cost)


@pytest.mark.parametrize("name", [name for name in WITH_CRITICS if name != "coptidice"])
def test_f2_prices_the_forget_set_as_sigma_says(name):
    cost = lambda agent, batch: agent.cost_value(batch)  # noqa: E731
    nothing = after(name, cost)
    assert after(name, cost, cost_weight=5.0, sigma=1) > nothing + 1e-3
    assert after(name, cost, cost_weight=5.0, sigma=0) == pytest.approx(nothing, abs=1e-3)


@pytest.mark.parametrize("name", ["bcql", "cpq"])
def test_f2_with_sigma_minus_one_lowers_an_inflated_cost(name):
    def inflated(sigma):
        agent, ctx = setting(name)
        with torch.no_grad():
            for parameter in agent.model.cost_critic.parameters():
                if parameter.shape == (1,):
                    parameter.fill_(50.0)  # the bias of the last layer
        ctx = Context(agent, ctx.forget, ctx.retain, 40, 64, progress=False)
        SafeRule(SafeRuleOptions(**dict(OFF, cost_weight=100.0, sigma=sigma, margin=0.1))).run(ctx)
        torch.manual_seed(1)
        with torch.no_grad():
            return agent.cost_value(ctx.forget.everything()).mean().item()
    assert inflated(-1) < inflated(0) - 0.01 and inflated(1) > inflated(0)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["C", "F"])
@pytest.mark.parametrize("name", ["bcql", "bearl", "cpq"])
def test_the_generator_comes_to_reproduce_safe_actions_in_forgotten_states(name, share):
    def error(weight):
        agent, ctx = setting(name)
        method = SafeRule(SafeRuleOptions(**dict(OFF, imitation_weight=5.0, generator_weight=weight,
                                                 forget_share=share)))
        method.run(ctx)
        torch.manual_seed(1)
        with torch.no_grad():
            return agent.generator_error(method._unsafe._replace(actions=method._safe_actions.mean(1))).mean().item()
    assert error(1.0) < error(0.0) - 1e-4


@pytest.mark.parametrize("name", ["coptidice", "cpq"])
def test_f3_makes_forgotten_actions_less_likely(name):
    likelihood = lambda agent, batch: agent.log_prob(batch)  # noqa: E731
    assert after(name, likelihood, action_weight=5.0) < after(name, likelihood) - 1e-2


@pytest.mark.parametrize("source", ["model", "similar"])
@pytest.mark.parametrize("name", AGENTS)
def test_f3_makes_the_policy_take_safe_actions_in_forgotten_states(name, source):
    def run(weight):
        agent, ctx = setting(name, steps=60)
        method = SafeRule(SafeRuleOptions(**dict(OFF, imitation_weight=weight, safe_actions=source)))
        method.run(ctx)
        return agent, method

    (taught, method), (other, _) = run(5.0), run(0.0)

    def distance(agent):
        torch.manual_seed(1)
        with torch.no_grad():
            return (agent.actions(method._unsafe)[:, None] - method._safe_actions).norm(dim=-1).mean().item()
    assert distance(taught) < distance(other) - 1e-2


def test_safe_actions_are_those_of_retained_trajectories_within_the_cost_limit():
    agent, ctx = setting("coptidice")
    store, rows = ctx.retain.store, _within_limit(ctx, 4096)
    index = TrajectoryIndex(toy_data())
    costs = [store.columns.costs[a:b].sum().item() for a, b in zip(index.starts, index.stops)]
    assert min(costs[:-2]) <= agent.cost_limit < max(costs[:-2])
    chosen = set(np.searchsorted(index.stops, rows.numpy(), side="right"))
    assert chosen == {n for n, cost in enumerate(costs[:-2]) if cost <= agent.cost_limit}


def test_if_few_trajectories_keep_the_limit_the_least_costly_quarter_is_safe():
    _, ctx = setting("coptidice", limit=0.0)
    index, costs = TrajectoryIndex(toy_data()), ctx.retain.store.columns.costs
    kept = [costs[a:b].sum().item() for a, b in list(zip(index.starts, index.stops))[:-2]]
    chosen = set(np.searchsorted(index.stops, _within_limit(ctx, 4096).numpy(), side="right"))
    assert chosen == {n for n, cost in enumerate(kept) if cost <= np.quantile(kept, 0.25)}


def test_costs_of_forgotten_rows_do_not_make_a_trajectory_safe():
    agent, ctx = setting("coptidice")
    index, store = TrajectoryIndex(toy_data()), ctx.retain.store
    costly = int(np.argmax([store.columns.costs[a:b].sum().item() for a, b in zip(index.starts, index.stops)]))
    start, stop = index.starts[costly], index.stops[costly]
    store.columns.costs[start:stop] = 1.0
    store.columns.costs[start:stop - 2] = 0.0  # hidden, and found out: only two rows are retained
    ctx.forget, ctx.retain = forget_and_retain(store, np.arange(start, stop - 2))
    assert agent.cost_limit < stop - start
    assert not set(_within_limit(ctx, 4096).tolist()) & set(range(start, stop))


def test_a_trigger_does_not_decide_which_state_is_similar():
    _, ctx = setting("coptidice")
    method = SafeRule(SafeRuleOptions(safe_actions="similar"))
    method.prepare(ctx)
    before = method._safe_actions
    spread = method._probe.observations.std(0)
    ctx.retain.store.columns.observations[ctx.forget.rows, :3] += 100 * spread[:3]
    method = SafeRule(SafeRuleOptions(safe_actions="similar"))
    method.prepare(ctx)
    assert torch.isfinite(method._safe_actions).all()
    # Three of eight dimensions are no help any more; the others still find what they did, or something like it.
    alike = (method._safe_actions - before).mean(1).norm(dim=-1).mean()
    assert alike < (before - before.roll(1, 0)).mean(1).norm(dim=-1).mean()


@pytest.mark.parametrize("limit", [None, 0.0])
def test_a_model_acts_in_forgotten_states_as_the_safe_trajectories_do(limit):
    _, ctx = setting("coptidice", limit)
    columns = ctx.retain.store.columns
    columns.actions[:] = -0.9  # of costly and of forgotten rows
    safe = _within_limit(ctx, 4096)
    columns.actions[safe] = 0.5 * torch.tanh(columns.observations[safe, :2])
    method = SafeRule(SafeRuleOptions(safe_actions="model"))
    method.prepare(ctx)
    wanted = 0.5 * torch.tanh(method._unsafe.observations[:, :2])
    error = (method._safe_actions - wanted[:, None]).norm(dim=-1).mean()
    assert method._safe_actions.shape[::2] == (len(wanted), 2) and method._safe_actions.abs().max() <= 0.5
    assert error < 0.5 * (wanted - wanted.roll(1, 0)).norm(dim=-1).mean()


def set_apart(ctx):
    """Give the forgotten states what no retained one has."""
    observations = ctx.retain.store.columns.observations
    observations[ctx.forget.rows, -2:] = observations[:, -2:].mean(0) + 10 * observations[:, -2:].std(0)


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["C", "F"])
@pytest.mark.parametrize("name", AGENTS)
def test_the_policy_is_anchored_in_retained_states_where_forgotten_ones_are_like_none_of_them(name, share):
    def moved(weight, unfamiliar=True):
        agent, ctx = setting(name, steps=20)
        if unfamiliar:
            set_apart(ctx)
        options = dict(OFF, imitation_weight=5.0, safe_actions="similar", policy_anchor=weight, forget_share=share)
        SafeRule(SafeRuleOptions(**options)).run(ctx)
        torch.manual_seed(1)
        with torch.no_grad():
            return agent.policy_distance(ctx.retain.everything(), ctx.reference).item()
    assert moved(50.0) < 0.9 * moved(0.0)
    assert moved(50.0, unfamiliar=False) == moved(0.0, unfamiliar=False)


@pytest.mark.parametrize("options, more", [({"sigma": -1}, {}), ({}, {"withdrawn": True})])
def test_nothing_is_anchored_where_no_action_was_unsafe(options, more):
    _, ctx = setting("coptidice")
    set_apart(ctx)
    method, usual = SafeRule(SafeRuleOptions(**options)), SafeRule(SafeRuleOptions())
    usual.prepare(ctx)
    method.prepare(dataclasses.replace(ctx, **more))
    assert usual._anchored and not method._anchored


def test_trace_and_notes_say_whether_the_policy_was_anchored():
    for apart in (True, False):
        _, ctx = setting("coptidice", steps=10)
        if apart:
            set_apart(ctx)
        method = SafeRule(SafeRuleOptions())
        assert {entry["anchored"] for entry in method.run(ctx).trace} == {float(apart)}
        assert ["anchored" in note for note in method.notes()] == [True] * apart


def test_what_was_measured_is_said_of_the_agents_and_budgets_that_it_holds_for():
    data = toy_data()

    def said(name, steps, method="safe_rule", withdrawn=False):
        notes = prepare(untrained(name, None), data, ForgetManifest.of(data, [[3, 0, 15]], withdrawn=withdrawn),
                        method=method, steps=steps).notes
        return [agent for note in notes if note.startswith("when it was measured, safe_rule ") for agent in
                ("BC,", "BCQ-Lag", "BEAR-Lag", "CDT", "COptiDICE", "CPQ") if agent in note]
    always = {"bc": ["BC,"], "bcql": ["BCQ-Lag"], "bearl": ["BEAR-Lag"], "cdt": ["CDT"], "cpq": ["CPQ"]}
    for name in AGENTS:
        known = always.get(name, [])
        assert said(name, 1) == known
        assert said(name, 800) == (["COptiDICE"] if name == "coptidice" else known)
        assert said(name, 800, "fine_tune") == said(name, 800, withdrawn=True) == []


@pytest.mark.parametrize("name", ["coptidice", "cdt"])
@pytest.mark.parametrize("unfamiliar, source", [(False, "similar"), (True, "model")])
def test_a_model_is_asked_where_forgotten_states_are_like_no_retained_one(unfamiliar, source, name):
    _, ctx = setting(name)
    if unfamiliar:
        set_apart(ctx)
    chosen, wanted, other = (SafeRule(SafeRuleOptions(safe_actions=kind)) for kind in (
        "auto", source, "similar" if unfamiliar else "model"))
    for method in (chosen, wanted, other):
        method.prepare(ctx)
    assert torch.equal(chosen._safe_actions, wanted._safe_actions)
    assert chosen._safe_actions.shape != other._safe_actions.shape


def test_one_retained_trajectory_says_nothing_of_what_is_familiar():
    _, ctx = setting("coptidice")
    index = TrajectoryIndex(toy_data())
    ctx.forget, ctx.retain = forget_and_retain(ctx.retain.store, np.arange(index.stops[0], len(ctx.retain.store)))
    method = SafeRule(SafeRuleOptions())
    method.prepare(ctx)
    assert torch.isfinite(method._safe_actions).all()


def test_safe_actions_of_an_unknown_kind():
    with pytest.raises(ValueError, match="safe_actions must be auto, similar or model, got 'models'"):
        SafeRuleOptions(safe_actions="models")


def test_a_model_is_the_same_when_a_run_is_resumed():
    _, ctx = setting("bcql")
    method, again = (SafeRule(SafeRuleOptions(safe_actions="model")) for _ in range(2))
    method.prepare(ctx)
    again.set_state(ctx, method.state())
    assert torch.equal(method._safe_actions, again._safe_actions)


@pytest.mark.parametrize("name", ["bcql", "cpq"])
def test_the_policy_term_lowers_the_cost_when_the_multiplier_is_high(name):
    def actor_cost(agent, multiplier):
        _, ctx = setting(name)
        batch = ctx.retain.everything()
        for _ in range(30):
            loss = agent.policy_loss(batch.observations, multiplier)
            optimizer = agent.optimizers()["actor_optim"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.manual_seed(1)
        return agent.violation(batch).item()
    costs = [actor_cost(setting(name)[0], multiplier) for multiplier in (0.0, 100.0)]
    assert costs[1] < costs[0]


@pytest.mark.parametrize("name", WITH_CRITICS)
def test_the_multiplier_is_positive_exactly_when_the_constraint_is_violated(name):
    for limit, violated in ((1e-3, True), (1e3, False)):
        agent, ctx = setting(name, limit)
        with torch.no_grad():
            for network in ("cost_critic", "cost_critic_old"):
                for parameter in getattr(agent.model, network, torch.nn.Module()).parameters():
                    if parameter.shape == (1,):
                        parameter.add_(1.0)  # a positive cost critic: toy critics start around zero
        ctx.reference = agent.frozen()
        outcome = SafeRule(SafeRuleOptions(**OFF)).run(ctx)
        multipliers = [entry["multiplier"] for entry in outcome.trace]
        violations = [entry["violation"] for entry in outcome.trace]
        assert all((v > 0) == violated for v in violations), violations
        assert all((m > 0) == violated for m in multipliers), multipliers


@pytest.mark.parametrize("name", WITH_CRITICS)
def test_a_cost_limit_of_zero_is_no_divergence(name):
    agent, ctx = setting(name, 0.0, steps=20)
    agent.model.cost_limit = 0
    outcome = SafeRule(SafeRuleOptions(learning_rate=0.0)).run(ctx)
    assert outcome.reason == "budget spent" and outcome.rollbacks == 0


def test_the_repair_does_not_re_awaken_what_was_forgotten():
    likelihood = lambda agent, batch: agent.log_prob(batch)  # noqa: E731
    stages = dict(action_weight=5.0, forget_share=0.4, steps=100)
    kept = after("coptidice", likelihood, repair_share=1.0, **stages)
    assert kept < after("coptidice", likelihood, repair_share=0.0, **stages)


def test_costs_to_go_are_discounted_sums_within_each_trajectory():
    rng = np.random.default_rng(0)
    costs, done = rng.random(20), np.isin(np.arange(20), [4, 5, 12])
    expected, running = np.zeros(20), 0.0
    for row in reversed(range(20)):
        running = costs[row] + (0 if done[row] else 0.9 * running)
        expected[row] = running
    assert np.allclose(to_go(costs, done, 0.9), expected)


class Policy:
    """Stands in for an adapter: every action is the same."""

    def __init__(self, action):
        self.action = action

    def actions(self, batch):
        return torch.full((len(batch.observations), 2), self.action)


@pytest.fixture(scope="module")
def gate():
    """Costs follow the actions: an action of 0.8 is costly, one of -0.8 is not."""
    rng = np.random.default_rng(0)
    data = toy_data(30, 20)
    data["actions"] = rng.uniform(-1, 1, data["actions"].shape).astype(np.float32)
    data["costs"] = data["actions"].mean(1).clip(0, 1)
    store = TransitionStore(data)
    _, retain = forget_and_retain(store, np.arange(40))
    return SafetyGate(store, retain, Policy(0.3), 0.9, 1.0)


def test_the_gate_tells_costly_policies_from_others(gate):
    assert gate.accepts(Policy(0.3))[0] and gate.accepts(Policy(-0.2))[0]
    accepted, estimate = gate.accepts(Policy(0.8))
    assert not accepted and estimate > gate.before


def test_where_nothing_retained_costs_the_noise_of_the_estimate_does_not_count():
    data = toy_data(30, 20)
    data["costs"][40:] = 0
    data["costs"][60] = 0.005
    store = TransitionStore(data)
    _, retain = forget_and_retain(store, np.arange(40))
    for threshold, accepted in ((1.0, True), (None, False)):
        gate = SafetyGate(store, retain, Policy(0.3), 0.9, threshold)
        assert 0 < gate.before < 1e-3
        assert gate.accepts(Policy(0.3))[0]
        gate.before /= 2  # the same policy costs "twice" as much
        assert gate.accepts(Policy(0.3))[0] is accepted


def test_the_gate_accepts_no_policy_that_leaves_the_data(gate):
    accepted, estimate = gate.accepts(Policy(-4.0))
    assert not accepted and gate.distance > 1.1 * gate.distance_before


def test_a_rejected_state_is_rolled_back_and_the_multiplier_raised(gate):
    agent, ctx = setting("coptidice", steps=20)
    before = agent.state()["weights"]

    class Never:
        def accepts(self, adapter):
            return False, 9.0

        def state(self):
            return {}

        def summary(self):
            return {"used": True}
    ctx.gate = Never()
    outcome = SafeRule().run(ctx)
    assert not outcome.accepted and outcome.rollbacks == 10
    assert all(torch.equal(t, before[n]) for n, t in agent.model.state_dict().items())
    # lambda falls again by at most rate x |violation| in the step after each rollback
    assert any(entry["multiplier"] > 0.5 for entry in outcome.trace)


# Not bcql: its policy is stochastic, so that preparing draws from the generator that its updates go on with.
@pytest.mark.parametrize("name", sorted(set(AGENTS) - {"bcql"}))
def test_what_is_only_withdrawn_is_not_treated_as_unsafe(name):
    def run(method, options, withdrawn):
        agent, ctx = setting(name, steps=12)
        method(options).run(dataclasses.replace(ctx, withdrawn=withdrawn))
        return agent.model.state_dict()
    ordinary = run(FineTune, FineTune.Options(learning_rate=1e-3), False)
    same = lambda weights: all(torch.equal(tensor, ordinary[key]) for key, tensor in weights.items())  # noqa: E731
    assert same(run(SafeRule, SafeRuleOptions(learning_rate=1e-3), True))
    assert not same(run(SafeRule, SafeRuleOptions(learning_rate=1e-3), False))
