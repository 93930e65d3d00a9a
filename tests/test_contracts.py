"""The shipped contracts, over every built-in attack, agent and method."""
import pytest
from agents import AGENTS, make_trainer

from osrl_unlearn.registry import ADAPTERS, ATTACKS, METHODS, METRICS
from osrl_unlearn.testing import AdapterContract, AttackContract, MethodContract, MetricContract


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
