"""The shipped contracts, over every built-in attack, agent and method."""
import numpy as np
import pytest
import torch
from agents import AGENTS, make_trainer

from osrl_unlearn.attacks.base import at_random
from osrl_unlearn.attacks.cost_inflate import CostInflate
from osrl_unlearn.registry import ADAPTERS, ATTACKS, METHODS, METRICS
from osrl_unlearn.testing import AdapterContract, AttackContract, MethodContract, MetricContract

COSTLY_ONLY = {"cost_hide", "reward_bait", "inject", "trigger_backdoor", "camouflage"}  # choose no unit without a cost


@pytest.fixture(params=sorted(ATTACKS.builtins))
def attack_name(request):
    return request.param


@pytest.fixture(params=AGENTS)
def agent_name(request):
    return request.param


@pytest.fixture(params=sorted(METHODS.builtins))
def method_name(request):
    return request.param


class TestAttacks(AttackContract):
    @pytest.fixture(autouse=True)
    def _name(self, attack_name):
        self.name = attack_name

    def make(self):
        cls = ATTACKS.load(self.name)
        # As few as pass for trained: the contract is not about how well the attack does.
        options = {"baffle": {"surrogate_steps": 100}, "max_cost": {"surrogate_steps": 20},
                   "max_reward": {"surrogate_steps": 20}}.get(self.name, {})
        return cls(cls.Options(**options))

    def eligible(self, units):
        return units.costs > 0 if self.name in COSTLY_ONLY else super().eligible(units)


class OneUnit(CostInflate):
    def select(self, units, count, rng):
        return super().select(units, 1, rng)


class OneRow(CostInflate):
    def corrupt(self, rows, rng):
        costs = rows["costs"].copy()
        costs[0] += 1
        return {"costs": costs}


class NoThreat(CostInflate):
    threat = " "


class Nonsense(CostInflate):
    kind = "nonsense"


class TorchDraws(CostInflate):
    def corrupt(self, rows, rng):
        return {"costs": rows["costs"] + 1 + torch.rand(1).numpy()}


class UnseededForSegments(CostInflate):
    def select(self, units, count, rng):
        return super().select(units, count, rng) if units.lengths.max() != 10 else at_random(
            units, count, np.random.default_rng())


@pytest.mark.parametrize("attack, test", [
    (OneUnit, "as_many_units_are_touched_as_the_rate_says"),
    (OneRow, "exactly_the_rows_of_the_manifest_change_and_only_declared_columns"),
    (NoThreat, "it_declares_what_it_is_what_it_touches_and_what_its_attacker_can_do"),
    (Nonsense, "it_declares_what_it_is_what_it_touches_and_what_its_attacker_can_do"),
    (TorchDraws, "the_seed_decides_and_global_generators_are_left_alone"),
    (UnseededForSegments, "the_seed_decides_and_global_generators_are_left_alone")])
def test_a_bad_attack_breaks_the_contract(attack, test):
    for cls, fails in ((CostInflate, False), (attack, True)):
        contract = type("Contract", (AttackContract,), {"make": lambda self: cls()})()
        try:
            getattr(contract, "test_" + test)()
        except AssertionError:
            assert fails
        else:
            assert not fails


class TestAdapters(AdapterContract):
    @pytest.fixture(autouse=True)
    def _name(self, agent_name):
        self.name = agent_name

    def make_trainer(self, seed=0):
        return make_trainer(self.name)


class TestMethods(MethodContract):
    @pytest.fixture(autouse=True)
    def _names(self, agent_name, method_name, request):
        self.agent_name, self.method_name = agent_name, method_name
        if "refused" not in request.node.name and not self.make().requires <= ADAPTERS.load(agent_name).capabilities:
            pytest.skip("{} is refused by {}".format(agent_name, method_name))

    def make(self):
        return METHODS.load(self.method_name)()

    def make_trainer(self, seed=0):
        return make_trainer(self.agent_name)


@pytest.mark.usefixtures("few_steps")
class TestMetrics(MetricContract):
    @pytest.fixture(autouse=True, params=list(METRICS.builtins))
    def _name(self, request):
        self.name = request.param
        self.attack = {"gaussian_score": "random_noise"}.get(self.name, "cost_hide")

    def make(self):
        return METRICS.load(self.name)()

    def make_trainer(self, seed=0):
        return make_trainer("cpq")

    def test_it_is_computed_where_nothing_is_missing(self):
        if self.name in ("trigger", "relearning"):  # they run episodes, see test_audit.py
            pytest.skip("it needs an environment")
        assert self.make().run(self.context())["value"]
