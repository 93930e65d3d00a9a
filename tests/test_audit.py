"""The audit: metrics on cases whose answer is known, and what is claimed of them."""
import copy
import dataclasses
import json
import os

import numpy as np
import pytest
import torch
import yaml
from agents import QUICK, make_trainer, subprocess_environment
from cells import SUITE
from osrl.algorithms import BC, BCTrainer

from osrl_unlearn import adapt, cli, poison, resources
from osrl_unlearn.audit import audit, certificate, fqe
from osrl_unlearn.audit.auditor import matched
from osrl_unlearn.audit.base import Context, Set
from osrl_unlearn.audit.gaussian_score import recorded_noise
from osrl_unlearn.audit.membership import auroc, separation, true_positives
from osrl_unlearn.audit.relearning import Relearning
from osrl_unlearn.audit.trajauditor import remoteness, shadow_actions, value_sums
from osrl_unlearn.audit.trigger import variants
from osrl_unlearn.bench import audit as known
from osrl_unlearn.commands.audit import compute
from osrl_unlearn.data.trigger import Trigger
from osrl_unlearn.data.views import Batch
from osrl_unlearn.engine import train
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.evaluate import statistics
from osrl_unlearn.evaluate.statistics import share, summary, worst_share
from osrl_unlearn.registry import METRICS
from osrl_unlearn.testing import toy_data


# Figures --------------------------------------------------------------------------------------------------------------

def test_auroc_is_the_share_of_pairs_in_the_right_order():
    a, b = np.array([0.1, 0.4, 0.4, 0.9]), np.array([0.0, 0.4, 0.5])
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    assert auroc(a, b) == pytest.approx(np.mean(pairs)) and auroc(a, a) == 0.5
    assert auroc(np.stack([a, a + 9]), np.stack([b, b])).tolist() == pytest.approx([np.mean(pairs), 1])


def test_true_positives_at_a_false_positive_rate():
    others = np.arange(100.0)
    members = np.array([94.5, 97.5, 98.5, 200])
    assert true_positives(members, others, 0.01) == 0.5  # one of 100 others may exceed the threshold
    assert true_positives(members, others, 0.05) == 1.0


def test_separation_of_nothing_and_of_everything():
    rng = np.random.default_rng(0)
    same = separation(rng.normal(size=80), rng.normal(size=80))["auroc"]
    far = separation(rng.normal(9, 1, 80), rng.normal(size=80))
    assert same["ci95"][0] < 0.5 < same["ci95"][1] and same["n"] == 80
    assert far["auroc"]["ci95"] == [1, 1] and far["tpr_at_fpr_0.01"]["mean"] == 1


def test_an_interval_of_many_values_needs_little_memory_and_is_the_same(monkeypatch):
    values = np.random.default_rng(0).exponential(size=300)
    whole = summary(values)
    monkeypatch.setattr(statistics, "MEMORY", 7 * 300)
    assert summary(values) == whole


def test_worst_cost_and_share_of_violations():
    costs = np.arange(20.0)
    found = worst_share(costs)
    assert found["mean"] == 18.5 and found["ci95"][0] < 18.5 <= found["ci95"][1] == 19
    low, high = share(0, 20)["ci95"]  # Wilson: z^2 / (n + z^2)
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(3.8415 / 23.8415, abs=1e-4)


def test_triggers_that_training_never_showed():
    observations = np.tile([1.0, 2.0, 3.0], (5, 1))
    found = variants(Trigger([2], [5.0], "every:10"), observations)
    assert set(found) == {"as in the attack", "schedule always", "schedule first:20", "strength x 0.5",
                          "strength x 1.5"}
    assert found["strength x 0.5"].values == [4.0] and found["strength x 1.5"].values == [6.0]


def test_sums_of_values_start_again_with_every_window_and_every_trajectory():
    values, owner = np.ones(200 + 3), np.repeat([0, 1], [200, 3])
    first, second = value_sums(values, owner, 0.5)
    geometric = lambda n: 2 * (1 - 0.5 ** n)  # noqa: E731
    assert first[[0, 127, 128, 199]] == pytest.approx([geometric(128), 1, geometric(72), 1])
    assert second == pytest.approx([1.75, 1.5, 1])


def test_remoteness_is_in_units_of_the_shadows_spread():
    shadows = np.array([[0.0], [1.0], [3.0]])  # mean 4/3, distances 4/3, 1/3, 5/3
    apart = np.array([4, 1, 5]) / 3
    assert remoteness(np.array([4 / 3 + 7]), shadows) == pytest.approx((7 - apart.mean()) / apart.std())
    assert remoteness(np.array([4 / 3]), shadows) < 0


def test_held_out_trajectories_are_matched_by_return_cost_and_length():
    def some(*facts):  # (return, cost, length) of each
        lengths = [length for _, _, length in facts]
        rows = {key: torch.tensor(np.repeat([f[n] / f[2] for f in facts], lengths)) for n, key in enumerate(
            ("rewards", "costs"))}
        batch = Batch(None, None, None, rows["rewards"], rows["costs"], None, None)
        return Set(batch, np.repeat(np.arange(len(facts)), lengths), np.arange(len(facts)), None, None)
    others = some((10, 0, 5), (100, 9, 5), (10, 9, 5), (12, 0, 50), (99, 0, 5))
    assert matched(some((98, 1, 5), (11, 8, 6)), others).tolist() == [2, 4]
    assert matched(others, some((1, 1, 1))).tolist() == [0]


# Agents ---------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def bad():
    return poison(toy_data(trajectories=120), "reward_bait", rate=0.3)


@pytest.fixture(scope="module")
def agents(bad):
    """A poisoned agent and three that were retrained from other seeds."""
    kept = np.setdiff1d(np.arange(len(bad.ids)), bad.manifest.row_numbers(bad.data))

    def one(seed, rows=None):
        torch.manual_seed(seed)
        adapter = adapt(make_trainer("cpq"))
        train(adapter, bad.data, steps=300, seed=seed, rows=rows, reward_scale=0.1, progress=False)
        return adapter
    return one(0), one(1, kept), one(2, kept), one(3, kept)


def context(adapter, bad, original=None, references=(), updates=100, **more):
    return Context(adapter, bad.data, bad.ids, bad.manifest, 5, 0.1, updates=updates, original=original,
                   references=list(references), **more)


def run(name, ctx):
    return METRICS.load(name)().run(ctx)


def claims(figures, ctx):
    return certificate.claims(figures, certificate.model_hashes(ctx), ctx.cost_limit, ctx.trigger is not None)


def claim(figures, ctx, name):
    return {c["claim"]: c["holds"] for c in claims(figures, ctx)}[name]


def test_what_is_missing_is_said_and_never_raised(agents, bad):
    ctx = context(agents[0], bad)
    figures = compute(ctx)
    assert {name for name, found in figures.items() if "not_computed" in found} == set(figures) - {"safety"}
    assert "add --reference RUN_DIR" in figures["distance"]["not_computed"]
    assert "--holdout" in figures["membership"]["not_computed"]
    found = claims(figures, ctx)
    assert {c["holds"] for c in found} == {None} and certificate.verdict(found)[0] == "untested"


def test_an_agent_is_at_no_distance_from_itself(agents, bad):
    result = run("distance", context(agents[1], bad, references=[agents[1], agents[2]]))
    found = result["value"]
    for where in found["audited - reference"].values():
        assert where["actions"]["mean"] == 0 and where["cost_value"] == {
            "wasserstein": 0, "wasserstein_ci95": [0, 0], "ks": 0, "p_value": 1}
    assert found["audited - reference 2"] == found["reference - reference 2"]
    assert found["reference - reference 2"]["forget"]["actions"]["mean"] > 0
    assert found["audited - reference"]["forget"]["kl"]["mean"] == 0 < found["reference - reference 2"]["forget"]["kl"][
        "mean"]
    # Each of the forgotten trajectories, against both references.
    own, pair = result["per_trajectory"], found["audited - reference 2"]["forget"]
    assert set(own) == {"actions", "kl", "reward_value", "cost_value"}
    for key in ("actions", "kl"):
        assert np.mean(list(own[key].values())) == pytest.approx(pair[key]["mean"] / 2)


@pytest.mark.parametrize("cost, low, high", [(0.0, 0.0, 0.5), (1.0, 14.5, 17.0)])
def test_fitted_q_evaluation_of_costs_that_no_policy_can_change(agents, bad, cost, low, high):
    rows = np.full(len(bad.ids), cost, np.float32)
    data = dict(bad.data, costs=rows, terminals=np.zeros(len(rows), bool),
                timeouts=bad.data["terminals"] | bad.data["timeouts"])
    found = fqe.costs(Context(agents[0], data, bad.ids, bad.manifest, 5, 0.1))["audited"]
    assert low <= found["mean"] <= found["upper"] <= high  # of episodes of 15 to 17 steps


def test_fitted_q_evaluation_knows_which_policy_costs_more(agents, bad):
    """Costs are those of going right: the first action dimension is positive."""
    data = dict(bad.data, costs=(bad.data["actions"][:, 0] > 0).astype(np.float32))
    ctx = Context(agents[0], data, bad.ids, bad.manifest, 5, 0.1)
    evaluation, found = fqe.CostEvaluation(ctx), []
    for side in (-0.5, 0.5):
        agent = agents[0].frozen()
        agent.actions = lambda batch, side=side: torch.full((len(batch.observations), 2), side)
        found.append(evaluation(agent)["mean"])
    assert found[0] < 0.3 * found[1]


def test_an_agent_that_is_asked_for_a_cost_can_be_evaluated_offline(monkeypatch):
    monkeypatch.setattr(fqe, "STEPS", 20)
    bad = poison(toy_data(30), "cost_hide", rate=0.3)
    agent = adapt(BCTrainer(BC(9, 2, 1.0, [16], 15), None, bc_mode="multi-task", cost_limit=3.0))
    found = fqe.costs(context(agent, bad))["audited"]
    assert np.isfinite(found["mean"]) and found["mean"] <= found["upper"]


def test_the_poisoned_agent_is_a_member_and_a_retrained_one_is_not(agents, bad):
    poisoned, *retrained = agents
    for agent, holds in ((poisoned, False), (retrained[2], True)):
        ctx = context(agent, bad, poisoned, retrained[:2])
        figures = {"membership": run("membership", ctx)}
        assert certificate._no_member(figures["membership"]["value"])[0] is holds
    per = figures["membership"]["per_trajectory"]["action_error - reference"]
    assert set(per) == {str(span[0]) for span in bad.manifest.spans}


def lowered(adapter, batch):
    """The fake: critics that hate the forget set, and the very same policy."""
    before = adapter.state()
    optimizer = torch.optim.Adam(adapter.model.critic.parameters(), lr=1e-2)
    for _ in range(60):
        loss = adapter.reward_value(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before


def test_lowering_the_values_of_the_forget_set_is_not_unlearning(agents, bad, monkeypatch):
    monkeypatch.setattr(fqe, "STEPS", 20)
    poisoned, *retrained = agents
    whole = context(poisoned, bad)
    batch = whole.views[0].everything()
    value = poisoned.reward_value(batch).mean().item()
    original = poisoned.twin()
    before = lowered(poisoned, batch)
    try:
        assert poisoned.reward_value(batch).mean().item() < value - 1
        ctx = context(poisoned, bad, original, retrained[:2])
        figures = {"safety": run("safety", ctx), "distance": run("distance", ctx),
                   "membership": run("membership", ctx), **{
                       left: {"not_computed": "because it is left out"} for left in (
                       "auditor", "gaussian_score", "relearning")}}
        # By what the policy does alone.
        own = figures["membership"]["value"]["attacks"]["action_error - reference"]["auroc"]
        assert own["ci95"][0] > 0.5
        assert claim(figures, ctx, "changed") is True and claim(figures, ctx, "no_member") is False
        assert certificate.verdict(claims(figures, ctx))[0] == "not"
    finally:
        poisoned.restore(before)


@pytest.fixture(scope="module")
def noisy_labels():
    """Data, and an agent whose policy follows its own values, trained on them and twice on the retain set."""
    bad = poison(toy_data(trajectories=60), "label_noise", rate=0.4)
    kept = np.setdiff1d(np.arange(len(bad.ids)), bad.manifest.row_numbers(bad.data))

    def one(seed, rows=None):
        torch.manual_seed(seed)
        adapter = adapt(make_trainer("bcql"))
        train(adapter, bad.data, steps=300, seed=seed, rows=rows, reward_scale=0.1, progress=False)
        return adapter
    return bad, one(0), one(1, kept), one(2, kept)


def test_the_corrected_auditor_sees_what_fools_the_published_one(noisy_labels):
    bad, poisoned, reference, _ = noisy_labels
    original = poisoned.twin()
    before = lowered(poisoned, context(poisoned, bad).views[0].everything())
    try:
        ctx = context(poisoned, bad, original, [reference], 6000)
        published, corrected = run("trajauditor", ctx), run("auditor", ctx)
    finally:
        poisoned.restore(before)
    forget = published["value"]["forget"]
    # "Unlearned", though the policy is the very same.
    assert forget["audited"]["mean"] == 0 < 0.1 < forget["original"]["mean"]
    assert set(published["per_trajectory"]["member"]) == {str(span[0]) for span in bad.manifest.spans}
    assert corrected["value"]["reference"]["auroc"]["ci95"][0] > 0.9
    assert certificate._auditor(corrected["value"])[0] is False


def test_the_auditor_has_nothing_against_a_retrained_agent(noisy_labels):
    bad, poisoned, reference, retrained = noisy_labels
    found = run("auditor", context(retrained, bad, poisoned, [reference, reference], 1000, holdout=toy_data(seed=5)))
    value = found["value"]
    assert set(value) == {"reference", "original", "calibration", "holdout"}
    assert value["calibration"]["auroc"]["mean"] == 0.5
    assert value["reference"]["tpr_at_fpr_0.05"]["mean"] < 0.5 < value["original"]["tpr_at_fpr_0.05"]["mean"]
    shown = {key: value[key] for key in ("reference", "original")}
    assert certificate._auditor(shown)[0] is True
    blind = {"auroc": {"mean": 0.6, "ci95": [0.4, 0.7]}}
    assert certificate._auditor(dict(shown, original=blind))[0] is None
    low = {"auroc": {"mean": 0.0, "ci95": [0.0, 0.0]}}  # as far apart as 1, the references in the other order
    assert certificate._auditor(dict(shown, calibration=low))[0] is None


def test_the_noise_that_is_drawn_again_is_what_the_attack_added():
    clean = toy_data(trajectories=40)
    noisy = poison(clean, "random_noise", rate=0.5, seed=3)
    ctx = context(adapt(make_trainer("bc")), noisy)
    rows, noise, spread = recorded_noise(ctx)
    assert np.allclose(spread, clean["observations"].std(0))
    assert (rows == noisy.manifest.row_numbers(noisy.data)).all()
    assert np.allclose(clean["observations"][rows] + spread * noise, noisy.data["observations"][rows], atol=1e-5)
    older = dict(noisy.manifest.attack)
    del older["facts"]
    assert "older version" in run("gaussian_score", context(ctx.adapter, noisy._replace(
        manifest=dataclasses.replace(noisy.manifest, attack=older))))["not_computed"]
    part = dataclasses.replace(noisy.manifest, spans=noisy.manifest.spans[1:])
    assert "not the attack's own" in run("gaussian_score", context(ctx.adapter, noisy._replace(manifest=part)))[
        "not_computed"]


def test_only_an_agent_that_saw_the_noise_remembers_it():
    noisy = poison(toy_data(trajectories=40), "random_noise", rate=0.5)
    kept = np.setdiff1d(np.arange(len(noisy.ids)), noisy.manifest.row_numbers(noisy.data))

    def one(rows=None):
        torch.manual_seed(0)
        adapter = adapt(make_trainer("bc"))
        train(adapter, noisy.data, steps=3000, batch_size=256, rows=rows, progress=False)
        return adapter
    found = run("gaussian_score", context(one(), noisy, references=[one(kept)]))
    value = found["value"]
    assert value["audited"]["score"]["ci95"][0] > 0 and value["audited"]["p_value"] < 1e-3
    assert value["reference"]["score"]["ci95"][0] <= 0 and value["reference"]["p_value"] > 0.01
    assert set(found["per_trajectory"]["score"]) == {str(span[0]) for span in noisy.manifest.spans}


def test_an_agent_before_unlearning_acts_and_learns_apart_from_the_audited_one(agents, bad):
    poisoned = agents[0].twin()
    original = poisoned.twin()
    before = copy.deepcopy(poisoned.model.state_dict())
    with torch.no_grad():
        for parameter in poisoned.model.actor.parameters():
            parameter.zero_()
    audited = copy.deepcopy(poisoned.model.state_dict())
    assert original.trainer.model is original.model
    shadows = shadow_actions(context(poisoned, bad, original, updates=400), np.arange(400))
    assert not np.array_equal(shadows[0]["forget"], shadows[1]["forget"])
    for agent, weights in ((poisoned, audited), (original, before)):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in agent.model.state_dict().items())
    with pytest.raises(ConfigError, match=r"frozen\(\) agent can neither act .* adapt\(trainer\)\.twin\(\)"):
        audit(poisoned, bad.data, bad.manifest, original=poisoned.frozen(), cost_limit=5)


def test_forgotten_trajectories_that_differ_from_held_out_ones_are_no_members():
    """The poison itself sets them apart, for any agent."""
    apart = {"auroc": {"mean": 0.0, "ci95": [0.0, 0.0]}}
    held, why = certificate._no_member({"attacks": {"action_error": apart}, "power": {"action_error": apart}})
    assert held is None and "give --reference twice" in why
    one = {"attacks": {"action_error": apart, "action_error - reference": dict(auroc={"mean": 0.5, "ci95": [.4, .6]})}}
    assert certificate._no_member(one)[0] is True
    same = {"auroc": {"mean": 0.5, "ci95": [0.4, 0.6]}}
    assert certificate._no_member(dict(one, calibration={"action_error": same}))[0] is False


def test_relearning_leaves_the_agents_as_they_were(agents, bad, monkeypatch):
    poisoned, retrained = agents[:2]
    before = copy.deepcopy(retrained.model.state_dict())
    ctx = context(retrained, bad, poisoned, [agents[2]])
    costs = {poisoned: 9.0, retrained: 1.0, agents[2]: 3.0}  # whatever they are trained on
    monkeypatch.setattr(Relearning, "_look", staticmethod(lambda ctx: (
        lambda adapter: {"cost": [costs[adapter]]}, {name: {"cost": [costs[a]]} for name, a in ctx.agents.items()})))
    found = run("relearning", ctx)["value"]
    assert (found["measure"], found["original"], found["level"], found["budget"]) == ("cost", 9, 6, 2)
    assert set(found) - {"measure", "original", "level", "budget"} == {"retain set", *(
        share + " of the forget set" for share in ("1%", "5%", "10%"))}
    assert found["5% of the forget set"]["audited"] == {"at": [0, 1, 2], "cost": [[1.0]] * 3, "updates": None}
    assert all(torch.equal(tensor, before[name]) for name, tensor in retrained.model.state_dict().items())
    costs[retrained] = 6.5
    found = run("relearning", ctx)["value"]["retain set"]
    assert found["audited"]["updates"] == 0 and found["reference"]["updates"] is None
    costs[agents[2]] = 9.0
    assert "no poisoned behaviour to bring back" in run("relearning", ctx)["not_computed"]
    assert "than the audited one" in run("relearning", context(poisoned, bad, poisoned))["not_computed"]


def test_half_of_what_is_relearned_is_of_the_forget_set(agents, bad):
    ctx = context(agents[1], bad, agents[0])
    views = Relearning._views(ctx, ctx.store)
    forget = set(bad.manifest.row_numbers(bad.data).tolist())
    first, second = views["10% of the forget set"]()
    assert set(first.rows.tolist()) < forget and not set(second.rows.tolist()) & forget
    assert len(np.unique(bad.ids[first.rows.numpy()])) == 4  # of 36 trajectories
    assert [len(view.rows) for view in views["retain set"]()] == [len(second.rows)]


# Agents of which the truth is known -----------------------------------------------------------------------------------

def test_the_fake_lowers_values_and_nothing_else(noisy_labels):
    bad, poisoned, _, _ = noisy_labels
    ctx = context(poisoned, bad)
    batch, before = ctx.views[0].everything(), poisoned.state()
    value = poisoned.reward_value(batch).mean().item()
    try:
        known.lower_values(ctx)
        assert poisoned.reward_value(batch).mean().item() < value - 1e-3
        moved = {name for name, tensor in poisoned.model.state_dict().items() if not torch.equal(
            tensor, before["weights"][name])}
        assert moved and all(name.startswith(poisoned.parts["reward_critic"].module + ".") for name in moved)
    finally:
        poisoned.restore(before)


def test_the_bench_of_audits(tmp_path, monkeypatch, capsys):
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(dict(SUITE, attacks={"reward_bait": {"rates": [0.2]}},
                                                             episodes=1)))
    monkeypatch.setattr(known, "TRUTHS", {"values lowered": False})
    monkeypatch.setenv("PYTHONPATH", subprocess_environment(QUICK)["PYTHONPATH"])
    assert cli.main(["bench", "audit", "--suite", str(tmp_path / "suite.yaml"), "--data",
                     resources.folder("datasets"), "--out", str(tmp_path)]) == 0
    assert "| values lowered | 0 |" in capsys.readouterr().out
    report = json.loads((tmp_path / "audit.json").read_text())
    # So little training leaves nothing to find; but what never was unlearned does not pass.
    given = report["rows"][0]["verdicts"]
    assert given["unlearned"] == 0 and given["partly"] + given["not"] == 1
    assert len(os.listdir(str(tmp_path / "unlearned"))) >= 3 and (tmp_path / "audit.png").stat().st_size > 5000
