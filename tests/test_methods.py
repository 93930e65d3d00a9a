"""Each baseline method does what its source says, on small real agents."""
import numpy as np
import pytest
import torch
from agents import AGENTS, make_trainer

from osrl_unlearn.adapters import adapt
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.data.views import forget_and_retain
from osrl_unlearn.engine import make_method
from osrl_unlearn.errors import ConfigError, IncompatibleAgent, RunError
from osrl_unlearn.methods.base import NETWORKS, Context
from osrl_unlearn.methods.gradient_ascent import ascent
from osrl_unlearn.methods.shards import Shards, ShardsOptions
from osrl_unlearn.testing import toy_data
from osrl_unlearn.testing.contracts import assert_same

VALUED = ["bcql", "bearl", "coptidice", "cpq"]  # with critics
ACTION_VALUED = ["bcql", "bearl", "cpq"]  # with critics of actions


def setting(name, steps=30, trajectories=(10, 11), updates=30, seed=0):
    """(agent trained on everything, context) on toy data of which ``trajectories`` are forgotten."""
    data = toy_data()
    index = TrajectoryIndex(data)
    torch.manual_seed(0)
    agent = adapt(make_trainer(name))
    store = agent.store(data, 0.1, 1.0)
    rows = np.concatenate([np.arange(index.starts[n], index.stops[n]) for n in trajectories])
    forget, retain = forget_and_retain(store, rows)
    everything = store.view(store.rows)
    for _ in range(updates):
        agent.update(everything.batch(64))
    return agent, Context(agent, forget, retain, steps, 32, seed, progress=False)


def batches_of(agent, monkeypatch):
    """The list of batches that updates will get."""
    seen, update = [], agent.update

    def record(batch, *args, **kwargs):
        seen.append(batch)
        return update(batch, *args, **kwargs)

    monkeypatch.setattr(agent, "update", record)
    return seen


def forgotten_rows(ctx, batch):
    """Which rows of a batch are of the forget set: their observations are."""
    return matches(ctx, batch).any(1)


def matches(ctx, batch):
    return (batch.observations[:, None] == ctx.forget.everything().observations[None]).all(-1)


def test_weights_that_are_no_numbers_end_in_a_rollback_and_not_in_torchs_error(monkeypatch):
    agent, ctx = setting("coptidice")
    method, before = make_method("gradient_ascent"), agent.state()
    step = method.step

    def diverging(ctx, i):
        if i == 20:
            with torch.no_grad():
                next(agent.model.actor.parameters()).fill_(float("nan"))  # torch's distributions refuse it: ValueError
        return step(ctx, i)

    monkeypatch.setattr(method, "step", diverging)
    outcome = method.run(ctx)
    assert outcome.reason == "diverged at step 21: rolled back to the last good state" and outcome.steps == 21
    assert all(torch.isfinite(tensor).all() for tensor in agent.model.state_dict().values())
    agent.restore(before)
    monkeypatch.setattr(method, "step", lambda ctx, i: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size mismatch|inconsistent tensor size"):
        method.run(ctx)


# gradient_ascent ------------------------------------------------------------------------------------------------------


def losses_on_forget_set(agent, ctx):
    saved = agent.state()
    torch.manual_seed(3)
    losses = agent.update(ctx.forget.everything())
    agent.restore(saved)
    return losses


@pytest.mark.parametrize("name, loss", [("bcql", "loss/critic_loss"), ("bcql", "loss/loss_vae"),
                                        ("cpq", "loss/cost_critic_loss"), ("coptidice", "loss/actor_loss"),
                                        ("bearl", "loss/critic_loss"), ("bc", "loss/actor_loss"),
                                        ("cdt", "all_loss")])
def test_gradient_ascent_raises_the_agents_loss_on_the_forget_set(name, loss):
    agent, ctx = setting(name)
    before = losses_on_forget_set(agent, ctx)[loss]
    make_method("gradient_ascent").run(ctx)
    after = losses_on_forget_set(agent, ctx)[loss]
    agent, ctx = setting(name)
    make_method("fine_tune").run(Context(agent, ctx.retain, ctx.forget, 30, 32, progress=False))
    # the second: ordinary updates on the same rows
    assert after > before and after > losses_on_forget_set(agent, ctx)[loss]


def test_an_ascent_is_the_negated_gradient_no_longer_than_its_bound():
    gradients = [torch.tensor([3.0, 0.0]), None, torch.tensor([4.0])]
    assert_same(ascent(gradients, 10.0), [torch.tensor([-3.0, -0.0]), None, torch.tensor([-4.0])])
    short = ascent(gradients, 1.0)
    assert short[1] is None and torch.allclose(torch.cat([short[0], short[2]]), torch.tensor([-0.6, 0.0, -0.8]))
    assert ascent([torch.zeros(2)], 1.0)[0].abs().max() == 0


def test_gradient_ascent_clips_in_units_of_the_gradients_on_the_retain_set(monkeypatch):
    agent, ctx = setting("bcql")
    method = make_method("gradient_ascent", {"clip": 0.5})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method.prepare(ctx)
        retain = ctx.retain.state()
        ctx.retain._generator.manual_seed(1)  # as forget_and_retain seeded it
        torch.manual_seed(0)
        gradients = agent.gradients(ctx.retain.batch(ctx.batch_size))
        assert torch.equal(ctx.retain.state(), retain)
    assert set(method.bounds) == set(NETWORKS)
    for role, bound in method.bounds.items():
        norm = torch.cat([g.flatten() for g in gradients[role] if g is not None]).norm().item()
        assert bound == pytest.approx(0.5 * norm, rel=1e-4) and norm > 0
    used, step = [], agent.optimizers()["critic_optim"].step

    def record(*args, **kwargs):
        used.append(torch.cat([p.grad.flatten() for p in agent.parameters("reward_critic")]).norm().item())
        return step(*args, **kwargs)

    monkeypatch.setattr(agent.optimizers()["critic_optim"], "step", record)
    for i in range(10):
        method.step(ctx, i)
    assert len(used) == 10 and max(used) <= method.bounds["reward_critic"] * (1 + 1e-5)


def test_forgotten_rows_drive_no_integrator():
    agent, ctx = setting("bcql", updates=5)
    before = agent.state()["scalars"]
    make_method("gradient_ascent").run(ctx)
    assert agent.state()["scalars"] == before != {name: 0 for name in before}


# grad_diff ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTION_VALUED)
def test_grad_diff_gives_the_critics_the_difference_of_the_gradients(name, monkeypatch):
    agent, ctx = setting(name)
    method = make_method("grad_diff")
    method.prepare(ctx)
    method.step(ctx, 0)
    climb, used, given = method.climb, {}, agent.update

    def update(batch, extra, edit):
        def record(role):
            def wrapped(gradients):
                used[role] = ([None if g is None else g.clone() for g in gradients], edit[role](gradients))
                return used[role][1]
            return wrapped
        return given(batch, extra, {role: record(role) for role in edit})

    monkeypatch.setattr(agent, "update", update)
    generator = [p.detach().clone() for p in agent.parameters("generator")]
    method.step(ctx, 1)
    for role in ("reward_critic", "cost_critic"):
        own, result = used[role]
        assert all(torch.equal(r, o - c) for r, o, c in zip(result, own, climb[role]))
        assert any(c.abs().max() > 0 for c in climb[role])
    assert used["actor"][1] == [None] * len(agent.parameters("actor"))
    assert all(torch.equal(p, g) for p, g in zip(agent.parameters("generator"), generator))  # frozen in this phase


def test_grad_diffs_dual_multiplier_is_clipped_to_zero_within_a_few_steps_at_small_gaps():
    agent, ctx = setting("bcql", steps=12)
    trace = make_method("grad_diff").run(ctx).trace
    first = [entry for entry in trace if entry["phase"] == 1]
    assert len(first) == 8 and all(abs(entry["cost_gap"]) < 5 for entry in first)
    assert first[0]["multiplier"] == 1 and first[5]["multiplier"] == 0
    method = make_method("grad_diff", {"cost_gap": 0.0})
    method.prepare(ctx)
    gaps = []
    for batches in [(ctx.retain, ctx.forget), (ctx.forget, ctx.retain)]:  # a gap of either sign
        method.multiplier = 0.5
        method._actor_loss(agent, *(view.everything() for view in batches))
        gaps.append(method.gap)
        assert method.multiplier == pytest.approx(0.5 + 0.1 * method.gap)
    assert min(gaps) < 0 < max(gaps)


def test_grad_diffs_other_multipliers():
    agent, ctx = setting("bcql", steps=12)
    trace = make_method("grad_diff", {"multiplier": "fixed"}).run(ctx).trace
    assert {entry["multiplier"] for entry in trace if entry["phase"] == 1} == {1.0}
    agent, ctx = setting("bcql", steps=12)
    trace = make_method("grad_diff", {"multiplier": "gradnorm"}).run(ctx).trace
    found = {entry["multiplier"] for entry in trace if entry["phase"] == 1}
    assert len(found) > 2 and all(0 <= m <= 10 for m in found)
    with pytest.raises(ConfigError, match="fixed, gradnorm or dual, got 'pid'"):
        make_method("grad_diff", {"multiplier": "pid"})


def test_grad_diff_spends_two_updates_on_each_step_of_its_first_phase(monkeypatch):
    agent, ctx = setting("cpq", steps=30)
    seen = batches_of(agent, monkeypatch)
    assert make_method("grad_diff").run(ctx).steps == 30
    kinds = [bool(forgotten_rows(ctx, batch).all()) for batch in seen]
    assert kinds == [True, False] * 10 + [False] * 10


def test_grad_diff_refuses_agents_without_critics_of_actions():
    agent, ctx = setting("coptidice", updates=2)
    with pytest.raises(IncompatibleAgent, match="'grad_diff' needs action_values"):
        make_method("grad_diff").run(ctx)


# traj_deleter ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip_costs", [False, True])
def test_traj_deleter_flips_the_labels_of_the_forget_set_in_every_other_block(flip_costs, monkeypatch):
    agent, ctx = setting("cpq", steps=20)
    seen = batches_of(agent, monkeypatch)
    trace = make_method("traj_deleter", {"flip_costs": flip_costs}).run(ctx).trace
    assert [entry["block"] for entry in trace] == list(range(10))
    known = ctx.forget.everything()
    for i, batch in enumerate(seen):
        forgotten = forgotten_rows(ctx, batch)
        if i // 2 in (1, 3, 5, 7):
            row = matches(ctx, batch).float().argmax(1)
            assert forgotten.all() and torch.equal(batch.rewards, -known.rewards[row])
            assert torch.equal(batch.costs, 1 - known.costs[row] if flip_costs else known.costs[row])
        else:
            assert not forgotten.any() and (batch.rewards > -0.05).all()
    assert len(seen) == 20


@pytest.mark.parametrize("name", VALUED)
def test_traj_deleters_second_stage_stays_near_the_old_critics(name):
    def moved(anchor):
        agent, ctx = setting(name, steps=40)
        method = make_method("traj_deleter", {"anchor": anchor, "learning_rate": 0.0})
        method.prepare(ctx)
        with torch.no_grad():
            for role in ("reward_critic", "cost_critic"):
                for parameter in agent.parameters(role):
                    parameter.mul_(1.5)
        for i in range(32, 40):
            method.step(ctx, i)
        batch = ctx.retain.everything()
        with torch.no_grad():
            return [(value(agent, batch) - value(ctx.reference, batch)).pow(2).mean().item()
                    for value in (type(agent).reward_value, type(agent).cost_value)]
    free, anchored = moved(0.0), moved(1000.0)
    assert all(a < f for a, f in zip(anchored, free)), (free, anchored)


# random_labels --------------------------------------------------------------------------------------------------------


def test_random_labels_permutes_within_the_forget_set_only(monkeypatch):
    agent, ctx = setting("cpq", steps=40)
    seen = batches_of(agent, monkeypatch)
    method = make_method("random_labels")
    method.run(ctx)
    own, other = ctx.forget.store.columns, method._view.store.columns
    forget, retain = ctx.forget.rows, ctx.retain.rows
    for name in own._fields:
        if name in ("rewards", "costs"):
            assert torch.equal(getattr(own, name)[retain], getattr(other, name)[retain])
        else:
            assert getattr(own, name) is getattr(other, name)
    pairs = [sorted(zip(c.rewards[forget].tolist(), c.costs[forget].tolist())) for c in (own, other)]
    assert pairs[0] == pairs[1] and not torch.equal(own.rewards[forget], other.rewards[forget])
    share = torch.cat([forgotten_rows(ctx, batch) for batch in seen]).float().mean().item()
    assert share == pytest.approx(len(forget) / len(ctx.forget.store), abs=0.04)
    agent, ctx = setting("cpq", steps=1, seed=1)
    again = make_method("random_labels")
    again.run(ctx)
    assert not torch.equal(again._view.store.columns.rewards, other.rewards)  # the seed decides


# value_suppression ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUED)
def test_value_suppression_lowers_the_preference_for_the_forget_set(name):
    def preference(method, options):
        agent, ctx = setting(name)
        make_method(method, options).run(ctx)
        torch.manual_seed(1)
        with torch.no_grad():
            return (agent.preference(ctx.forget.everything()).mean()
                    - agent.preference(ctx.retain.everything()).mean()).item()
    assert preference("value_suppression", {"reward_weight": 5.0}) < preference("fine_tune", {}) - 1e-3


@pytest.mark.parametrize("name", VALUED)
def test_value_suppression_adds_to_no_part_but_the_reward_critic(name, monkeypatch):
    def without_draws(function):  # so that later parts draw the same latents
        def wrapped(batch):
            with torch.random.fork_rng():
                return function(batch)
        return wrapped

    def gradients(method, options):
        agent, ctx = setting(name)
        method = make_method(method, options)
        method.prepare(ctx)
        monkeypatch.setattr(agent, "preference", without_draws(agent.preference))
        torch.manual_seed(1)
        # With rates of zero no part's step reaches the others' gradients.
        for optimizer in agent.optimizers().values():
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        method.step(ctx, 0)
        return {role: [p.grad for p in agent.parameters(role)] for role in agent.parts}
    plain, suppressed = gradients("fine_tune", {}), gradients("value_suppression", {"reward_weight": 5.0})
    assert {role for role in plain if any(not torch.equal(a, b) for a, b in zip(plain[role], suppressed[role]))} == {
        "reward_critic"}


# fisher_dampening -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_fisher_dampening_shrinks_exactly_what_matters_more_for_the_forget_set(name):
    agent, ctx = setting(name, steps=20)
    before = {role: [p.detach().clone() for p in agent.parameters(role)] for role in agent.parts}
    hidden = agent.hidden_state()
    method = make_method("fisher_dampening", {"alpha": 3.0, "beta": 0.5})
    outcome = method.run(ctx)
    shrunk = total = 0
    for role in agent.parts:
        if role not in NETWORKS:
            assert_same([p.detach() for p in agent.parameters(role)], before[role])
            continue
        importance = [method.importance[kind][role] for kind in ("forget", "retain")]
        for now, old, forget, retain in zip(agent.parameters(role), before[role], *importance):
            chosen = forget > 3 * retain
            assert torch.equal(now[~chosen], old[~chosen])
            expected = old[chosen] * (0.5 * retain[chosen] / forget[chosen])
            assert torch.allclose(now[chosen], expected, rtol=1e-4, atol=1e-12)
            shrunk, total = shrunk + chosen.sum().item(), total + chosen.numel()
    assert 0 < shrunk < total and outcome.trace[-1]["dampened"] == pytest.approx(shrunk / total)
    assert outcome.steps == 20
    after = agent.hidden_state()
    for kind in ("tensors", "scalars"):
        assert_same(after[kind], hidden[kind], kind)
    for optimizer in hidden["optimizers"]:
        assert_same(after["optimizers"][optimizer]["state"], hidden["optimizers"][optimizer]["state"], optimizer)


def test_fisher_dampening_needs_a_batch_of_each_set_and_counts_them_fairly():
    with pytest.raises(ConfigError, match="at least 2"):
        make_method("fisher_dampening").run(setting("cpq", steps=1, updates=1)[1])
    agent, _ = setting("cpq", updates=1)
    # sums of two batches of the forget set and of one of the retain set: 10.5 times as important on average
    method = make_method("fisher_dampening")
    method.importance = {kind: {"reward_critic": [torch.full_like(p, sums) for p in agent.parameters("reward_critic")]}
                         for kind, sums in (("forget", 2 * 10.5), ("retain", 1.0))}
    assert method.dampen(agent, 1 / 2) == 1.0 and method.dampen(agent, 1 / 2.2) == 0.0


# shards ---------------------------------------------------------------------------------------------------------------


def shard_of(agents, rows):
    return {number for number, agent in enumerate(agents) if np.isin(agent["rows"].numpy(), rows).any()}


def test_shards_trains_all_at_first_and_only_the_touched_one_afterwards():
    agent, ctx = setting("cpq", steps=20, updates=5)
    first = Shards(ShardsOptions(shards=4))
    outcome = first.run(ctx)
    assert outcome.steps == 20 and outcome.reason.startswith("trained 4 of 4 shards: all of them")
    everything = torch.cat([a["rows"] for a in first.agents]).sort().values
    assert torch.equal(everything, ctx.retain.rows.sort().values)
    index = TrajectoryIndex(toy_data())
    for start, stop in zip(index.starts[:10], index.stops[:10]):
        assert len(shard_of(first.agents, np.arange(start, stop))) == 1  # trajectories stay whole

    agent, ctx = setting("cpq", steps=20, trajectories=(3,), updates=5)
    (touched,) = shard_of(first.agents, ctx.forget.rows.numpy())
    second = Shards(ShardsOptions(), agents=first.agents)
    outcome = second.run(ctx)
    assert outcome.steps == 5 and outcome.reason == "trained 1 of 4 shards"
    for number, (old, new) in enumerate(zip(first.agents, second.agents)):
        if number != touched:
            assert_same(new, old)
        else:
            assert not np.isin(new["rows"].numpy(), ctx.forget.rows.numpy()).any()
            assert set(new["rows"].tolist()) < set(old["rows"].tolist())
            assert any(not torch.equal(t, old["state"]["weights"][n]) for n, t in new["state"]["weights"].items())
    # neither do the rows come back that were forgotten first, although this request does not name them
    rows = torch.cat([agent["rows"] for agent in second.agents]).numpy()
    assert not np.isin(rows, np.arange(index.starts[10], index.stops[11])).any()
    with pytest.raises(ConfigError, match="forgotten already"):
        Shards(ShardsOptions(), agents=second.agents).run(setting("cpq", steps=20, trajectories=(3,), updates=1)[1])


def test_a_shard_that_is_trained_anew_is_as_if_it_had_never_held_the_rows():
    agent, ctx = setting("cpq", steps=8, trajectories=(11,), updates=5)
    first = Shards(ShardsOptions(shards=2))
    first.run(ctx)
    agent, ctx = setting("cpq", steps=8, trajectories=(3,), updates=5)
    second = Shards(ShardsOptions(), agents=first.agents)
    second.run(ctx)
    agent, ctx = setting("cpq", steps=8, trajectories=(3, 11), updates=9)
    both = Shards(ShardsOptions(shards=2))
    both.run(ctx)
    assert_same(second.agents, both.agents)


def test_the_agent_that_shards_leaves_is_the_medoid():
    agent, ctx = setting("coptidice", steps=30, updates=5)
    method = Shards(ShardsOptions(shards=3))
    method.run(ctx)
    probe, actions = ctx.retain.everything(), []
    chosen = agent.state()["weights"]
    for member in method.agents:
        agent.restore(member["state"])
        actions.append(agent.actions(probe).detach())
    distances = [(a - sum(actions) / 3).norm(dim=-1).mean().item() for a in actions]
    assert_same(chosen, method.agents[int(np.argmin(distances))]["state"]["weights"])
    assert len(set(distances)) == 3


def test_shards_are_kept_in_a_folder_and_checked(tmp_path):
    agent, ctx = setting("cpq", steps=8, updates=2)
    first = Shards(ShardsOptions(shards=2))
    first.run(ctx)
    first.save(str(tmp_path))
    again = make_method("shards", {"previous": str(tmp_path)})
    outcome = again.run(setting("cpq", steps=8, trajectories=(0,), updates=2)[1])
    assert outcome.steps == 4 and len(again.agents) == 2
    with pytest.raises(RunError, match="the saved training state|another architecture"):
        make_method("shards", {"previous": str(tmp_path)}).run(setting("bcql", trajectories=(0,), updates=2)[1])
    with pytest.raises(ConfigError, match="previous: no shards at .*none"):
        make_method("shards", {"previous": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="13 shards need as many trajectories, the agent was trained on 12"):
        make_method("shards", {"shards": 13}).run(setting("cpq", updates=2)[1])
    with pytest.raises(ConfigError, match="3 updates is less than one for each of 4 shards"):
        make_method("shards", {"shards": 4}).run(setting("cpq", steps=3, updates=2)[1])
    with pytest.raises(ConfigError, match="would be empty"):
        make_method("shards", {"shards": 12}).run(setting("cpq", updates=2)[1])
