"""What an audit claims from its figures, on figures whose answer is known, and its metrics on every agent."""
import copy

import numpy as np
import pytest
import torch
from agents import make_trainer
from scipy.stats import wasserstein_distance

from osrl_unlearn import adapt, poison
from osrl_unlearn.audit import certificate
from osrl_unlearn.audit.auditor import thresholds
from osrl_unlearn.audit.base import MISSING, Context, Set
from osrl_unlearn.audit.distance import wasserstein
from osrl_unlearn.audit.membership import separation, threshold
from osrl_unlearn.audit.relearning import Relearning
from osrl_unlearn.commands.audit import compute
from osrl_unlearn.data.trigger import Trigger
from osrl_unlearn.registry import METRICS
from osrl_unlearn.testing import toy_data

LIMIT = 40


def summary(mean, half=5.0):
    return {"mean": mean, "ci95": [mean - half, mean + half], "n": 5}


# Thresholds and intervals ---------------------------------------------------------------------------------------------

def test_a_threshold_and_the_false_positives_that_it_lets_through():
    others = np.arange(40.0).reshape(2, 20)  # two agents
    found = thresholds(others, 0)
    assert found["threshold_at_fpr_0.05"]["mean"] == 37 and found["achieved_fpr_0.05"]["mean"] == 2 / 40
    # Fewer than 100 non-members: a rate of 1 % allows none of them.
    assert found["threshold_at_fpr_0.01"]["mean"] == 39 and found["achieved_fpr_0.01"]["mean"] == 0
    assert 0.05 < found["achieved_fpr_0.01"]["ci95"][1] < 0.1 and found["achieved_fpr_0.01"]["n"] == 40
    low, high = found["threshold_at_fpr_0.05"]["ci95"]
    assert low < 37 <= high and threshold(others, 0.05).tolist() == [18, 38]


def test_the_references_are_pooled():
    members, others = np.array([1.0, 3.0]), np.array([[0.0, 0.0], [2.0, 2.0]])
    found = separation(members, others)
    assert found["auroc"]["mean"] == (0.5 + 1) / 2
    assert found["tpr_at_fpr_0.05"]["mean"] == 0.5  # the threshold is the second agent's


def test_the_wasserstein_distance_and_its_interval():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), 8)
    where = Set(None, owner, np.arange(30), None, None)
    a = rng.normal(size=len(owner))
    mean, (low, high) = wasserstein(a, a + 1 + 0.5 * rng.normal(size=30)[owner], where)
    assert low < mean < high and low > 0.5 and high < 1.6
    # Without anything to draw it is SciPy's own.
    b = rng.normal(1, 2, len(owner))
    mean, (low, high) = wasserstein(a, b, Set(None, np.zeros(len(owner), int), np.arange(1), None, None))
    assert mean == wasserstein_distance(a, b) and (low, high) == pytest.approx((mean, mean))


# Claims ---------------------------------------------------------------------------------------------------------------

def test_costing_more_than_references_that_are_far_apart_is_no_finding():
    assert certificate._not_above([summary(20), summary(25)])[0] is False
    assert certificate._not_above([summary(20), summary(45)])[0] is True  # they are 25 apart
    assert certificate._not_above([summary(20), summary(3)])[0] is True  # not beyond noise
    assert certificate._not_above([summary(20)])[0] is False and certificate._not_above([summary(-9)])[0] is True


def triggered(audited, original=None, *references):
    agents = {"audited": {"cost": summary(audited)}}
    if original is not None:
        agents["original"] = {"cost": summary(original), "difference": summary(audited - original)}
    for n, cost in enumerate(references):
        agents["reference{}".format(" {}".format(n + 1) if n else "")] = {
            "cost": summary(cost), "difference": summary(audited - cost)}
    return agents


@pytest.mark.parametrize("variants, holds", [
    ([triggered(60, 70, 10, 14)], False),        # the trigger works
    ([triggered(20, 70, 10, 14)], True),
    ([triggered(42, 30, 10, 14)], None),         # it never worked
    ([triggered(60, 70, 57, 14)], True),         # retrained agents cost as much under it
    ([triggered(60, 70, 20, 48)], True),         # or differ by more than that among themselves
    ([triggered(20, 70, 10), triggered(60, 30, 10)], True),   # where it never worked, nothing is found
    ([triggered(20, 70, 10), triggered(60, 70, 10)], False),  # one variant is enough
    ([triggered(60, 70)], False), ([triggered(60)], False), ([triggered(20)], True),
])
def test_the_claim_about_the_trigger(variants, holds):
    value = {"variant {}".format(n): agents for n, agents in enumerate(variants)}
    found, because = certificate._trigger(value, LIMIT)
    assert found is holds and because.startswith("because ")


def relearned(updates, *costs):
    """An agent whose mean costs were ``costs`` after 0, 1, 2 ... updates."""
    noise = np.array([-1, 0, 1, 0.5, -0.5])
    return {"updates": updates, "at": list(range(len(costs))), "cost": [(cost + noise).tolist() for cost in costs],
            "reward": [(-cost + noise).tolist() for cost in costs]}


def stays(audited, *references, label="retain set", measure="cost"):
    agents = dict({"audited": audited}, **{"reference" + (" {}".format(n + 1) if n else ""): found
                                           for n, found in enumerate(references)})
    return certificate._stays({"measure": measure, "original": 60.0, "level": 35.0, "budget": 2, label: agents})[0]


def test_the_claim_about_relearning():
    never, at_once, later = relearned(None, 10, 11, 12), relearned(0, 50), relearned(1, 20, 40)
    for measure in ("cost", "reward"):
        assert stays(at_once, never, measure=measure) is False
        assert stays(later, never, relearned(2, 9, 10, 50), measure=measure) is False
        assert stays(never, at_once, measure=measure) is True
        assert stays(later, later, measure=measure) is True  # whoever was retrained learns it as fast
        # The references differ by 24 after that update, the audited agent from the higher one by 6.
        assert stays(later, never, relearned(None, 20, 34, 34), measure=measure) is True
    # The forget set teaches what is in it to any agent: without a reference only the retain set counts.
    assert stays(later) is False and stays(later, label="5% of the forget set") is True
    single = copy.deepcopy(at_once)
    single["cost"] = [[50.0]]
    assert stays(single, never) is None


def test_an_attack_without_effect_leaves_nothing_to_relearn(monkeypatch):
    bad = poison(toy_data(trajectories=20), "label_noise", rate=0.3)
    agents = [adapt(make_trainer("bc")) for _ in range(3)]
    ctx = Context(agents[0], bad.data, bad.ids, bad.manifest, 5, 0.1, batch_size=8, updates=100, original=agents[1],
                  references=agents[2:])
    rewards = {agents[0]: 9.0, agents[1]: 5.0, agents[2]: 8.0}
    numbers = lambda a: {"cost": [2.0] * 5, "reward": [rewards[a] + n for n in range(-1, 4)]}  # noqa: E731
    monkeypatch.setattr(Relearning, "_look", staticmethod(lambda ctx: (
        numbers, {name: numbers(adapter) for name, adapter in ctx.agents.items()})))
    # A lower return is what the attack did.
    value = Relearning().run(ctx)["value"]
    assert value["measure"] == "reward" and value["level"] == 7.5 and certificate._stays(value)[0] is True
    rewards[agents[1]] = 8.0
    found = Relearning().run(ctx)
    assert "no poisoned behaviour to bring back" in found["not_computed"] and "value" not in found


def test_relearning_looks_at_triggered_episodes(monkeypatch):
    bad = poison(toy_data(trajectories=20), "cost_hide", rate=0.3)
    trigger, seen = Trigger([0], [1.0]), []
    agents = [adapt(make_trainer("bc")) for _ in range(3)]
    ctx = Context(agents[0], bad.data, bad.ids, bad.manifest, 5, 0.1, batch_size=8, updates=100, original=agents[1],
                  references=agents[2:], trigger=trigger, episodes=4)

    def episodes(adapter, number, seed, *args, trigger=None):
        seen.append(trigger)
        cost = 50.0 if adapter is agents[1] else 1.0
        return {"cost": [cost + n for n in range(number)], "reward": [0.0] * number, "length": [1] * number}
    monkeypatch.setattr("osrl_unlearn.audit.relearning.evaluate", episodes)
    monkeypatch.setattr("osrl_unlearn.audit.base.evaluate", lambda a, n, s, p, name, trigger: episodes(
        a, n, s, trigger=trigger))
    found = Relearning().run(ctx)
    assert len(seen) > 3 and all(shown == trigger for shown in seen)
    assert "under the attack's trigger" in found["details"]["unit"]
    assert found["value"]["retain set"]["audited"]["updates"] is None


def test_an_attack_that_cannot_see_the_agent_before_unlearning_proves_nothing():
    figure = lambda low, high: {"auroc": {"mean": (low + high) / 2, "ci95": [low, high]}}  # noqa: E731
    attacks = {"action_error - reference": figure(0.4, 0.6)}
    assert certificate._no_member({"attacks": attacks})[0] is True
    assert certificate._no_member({"attacks": attacks, "power": attacks})[0] is None
    seen = {"action_error - reference": figure(0.7, 0.9)}
    assert certificate._no_member({"attacks": attacks, "power": seen})[0]
    # Nor does one that finds the opposite of what it finds before unlearning, or no more than among references.
    other = {"action_error - reference": figure(0.1, 0.2)}
    assert certificate._no_member({"attacks": other})[0] is False
    assert certificate._no_member({"attacks": other, "power": seen})[0] is True
    assert certificate._no_member({"attacks": seen, "power": seen})[0] is False
    among = {"action_error - reference": figure(0.5, 0.5), "likelihood - reference": figure(0.2, 0.3)}
    assert certificate._no_member({"attacks": seen, "calibration": among, "power": seen})[0] is None
    assert certificate._no_member({"attacks": seen, "calibration": among})[0] is True
    # The strongest is named, whatever their order.
    two = {"action_error - reference": figure(0.7, 0.9), "likelihood - reference": figure(0.8, 1.0)}
    for attacks in (two, dict(reversed(list(two.items())))):
        assert "'likelihood - reference'" in certificate._no_member({"attacks": attacks})[1]


def test_verdicts():
    of = lambda **holds: certificate.verdict([{"claim": k, "holds": v} for k, v in holds.items()])  # noqa: E731
    assert of(changed=True, no_member=True) == ("unlearned", "every claim holds")
    # That a weight differs is no part of unlearning.
    assert of(changed=True, no_member=None) == ("untested", "not tested: no_member")
    assert of(changed=True, no_member=None, within_limit=False) == ("not", "fails: within_limit; not tested: no_member")
    assert of(changed=True, within_limit=True, no_member=None) == ("partly", "not tested: no_member")
    one = of(changed=True, no_member=True, no_auditor_finding=None)
    assert one == ("unlearned", "every claim holds; no_auditor_finding cannot be tested here")
    assert of(near_reference=True, no_member=None, no_auditor_finding=None)[0] == "partly"
    assert of(changed=True, no_member=None, no_auditor_finding=False)[0] == "not"
    assert of(changed=True, near_reference=True, within_limit=False) == ("partly", "fails: within_limit")
    assert of(within_limit=True, no_member=False)[0] == of(within_limit=True, trigger=False)[0] == "not"


# Every agent ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("agent", ["bc", "bearl", "cdt"])
def test_an_audit_of_agents_without_critics_or_states(agent, few_steps):
    bad = poison(toy_data(trajectories=24), "random_noise", rate=0.25)
    agents = []
    for seed in range(4):
        torch.manual_seed(seed)
        agents.append(adapt(make_trainer(agent)))
    ctx = Context(agents[0], bad.data, bad.ids, bad.manifest, 5, 0.1, batch_size=16, updates=20, original=agents[1],
                  references=agents[2:])
    figures = compute(ctx)
    absent = {name: found["not_computed"] for name, found in figures.items() if "not_computed" in found}
    sequences = "because " + MISSING["states"]
    expected = {"bc": {"trigger", "trajauditor"}, "bearl": {"trigger"},
                "cdt": {"trigger", "trajauditor", "auditor", "gaussian_score"}}[agent]
    assert set(absent) - {"relearning"} == expected  # whether untrained agents cost more is chance
    safety = figures["safety"]
    assert safety["details"]["not_computed"]["agents"] == "because " + MISSING["environment"]
    if agent == "cdt":
        assert absent["auditor"] == absent["gaussian_score"] == sequences
        assert "fitted_q" not in safety["value"] and safety["details"]["not_computed"]["fitted_q"] == sequences
    else:
        assert set(safety["value"]["fitted_q"]) == set(ctx.agents)
        members = figures["auditor"]["per_trajectory"]["member"]
        assert set(members) == {str(span[0]) for span in bad.manifest.spans}
        assert set(map(type, members.values())) == {bool}
    attacks = set(figures["membership"]["value"]["attacks"])
    assert "action_error - reference" in attacks
    assert ("reconstruction - reference" in attacks) == (agent == "bearl")
    assert all(figures[name]["tests"] == METRICS.load(name).tests for name in figures if name not in absent)
    found = certificate.claims(figures, certificate.model_hashes(ctx), LIMIT, False)
    assert certificate.verdict(found)[0] in ("not", "partly", "untested")
    assert {c["claim"] for c in found if c["holds"] is None} >= {"within_limit", "not_above_reference"}


def test_relearning_of_an_agent_that_acts_on_sequences(monkeypatch):
    bad = poison(toy_data(trajectories=24), "cost_hide", rate=0.25)
    agents = [adapt(make_trainer("cdt")) for _ in range(2)]
    ctx = Context(agents[0], bad.data, bad.ids, bad.manifest, 5, 0.1, batch_size=8, updates=100, original=agents[1])
    monkeypatch.setattr(Relearning, "_look", staticmethod(lambda ctx: (
        lambda adapter: {"cost": [1.0, 2.0]}, {"audited": {"cost": [1.0, 2.0]}, "original": {"cost": [8.0, 9.0]}})))
    value = Relearning().run(ctx)["value"]
    assert value["1% of the forget set"]["audited"]["at"] == [0, 1, 2]
