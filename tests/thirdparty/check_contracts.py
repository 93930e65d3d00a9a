"""The contract tests that the plugins have to pass; run by pytest where the package is installed."""
import contextlib
import sys

from osrl_unlearn.registry import ATTACKS, DETECTORS, METHODS, METRICS
from osrl_unlearn.testing import AdapterContract, AttackContract, DetectorContract, MethodContract, MetricContract

with contextlib.redirect_stdout(sys.stderr):
    from osrl_unlearn_thirdparty.agent import Gentle, GentleTrainer


def make_gentle():
    model = Gentle(state_dim=8, action_dim=2, max_action=1.0, a_hidden_sizes=[16, 16], c_hidden_sizes=[16, 16],
                   vae_hidden_sizes=16, sample_action_num=3, num_q=2, num_qc=2, cost_limit=5, episode_len=15)
    return GentleTrainer(model, None, reward_scale=0.1)


class TestAttack(AttackContract):
    def make(self):
        return ATTACKS.load("thirdparty_zero_rewards")()


class TestDetector(DetectorContract):
    def make(self):
        return DETECTORS.load("thirdparty_reward_outlier")()


class TestMethod(MethodContract):
    def make(self):
        return METHODS.load("thirdparty_descent")()

    def make_trainer(self, seed=0):
        return make_gentle()


class TestAdapter(AdapterContract):
    def make_trainer(self, seed=0):
        return make_gentle()

    def test_the_adapter_is_the_third_partys(self):
        assert self.agent().name == "thirdparty_gentle"


class TestMetric(MetricContract):
    def make(self):
        return METRICS.load("thirdparty_value_change")()

    def make_trainer(self, seed=0):
        return make_gentle()
