"""Evaluation is paired, repeatable, and leaves every generator as it was."""
import json
import subprocess
import sys

import pytest
from agents import subprocess_environment

PROGRAM = """
import json, random, sys
import numpy as np, torch
from osrl_unlearn import environments
from osrl_unlearn.adapters.base import Adapter
from osrl_unlearn.evaluate.rollouts import evaluate, normalization, scores

env = environments.make(sys.argv[1], 40)

class Trainer:
    reward_scale, cost_scale = 0.1, 2.0
    def rollout(self):
        observation, _ = env.reset()
        draws = random.random() + np.random.random() + torch.rand(1).item() if self.noisy else 0
        for _ in range(3):
            observation, *_ = env.step(self.action)
        self.seen.append(observation.tolist())
        return float(np.sum(observation)) * 0.1 + draws, 3, 4.0

class Agent:
    device, rollout = "cpu", Adapter.rollout
    reward_scale, cost_scale = Adapter.reward_scale, Adapter.cost_scale
    def __init__(self, noisy=False):
        self.trainer, self.model = Trainer(), torch.nn.Linear(1, 1)
        self.trainer.env, self.trainer.seen, self.trainer.noisy = env, [], noisy
        self.trainer.action = np.zeros(env.action_space.shape)

def states():
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

one, noisy, other_seed, repeated = Agent(), Agent(True), Agent(), Agent()
before = states()
first = evaluate(one, 2, 0, progress=False)
evaluate(noisy, 2, 0, progress=False)
evaluate(other_seed, 2, 1, progress=False)
again = evaluate(repeated, 2, 0, progress=False)
evaluate(repeated, 1, 2 ** 31 - 1, progress=False)
constants = normalization(env, 40)
entry = scores(first, constants)
json.dump({"same": one.trainer.seen == noisy.trainer.seen, "repeatable": first == again,
           "differ": len({str(s) for s in one.trainer.seen}) == 2,
           "other": other_seed.trainer.seen != one.trainer.seen, "untouched": states() == before,
           "cost": first["cost"], "training": one.model.training, "normalized_cost": entry["normalized_cost"],
           "reward": abs(entry["normalized_reward"] - (entry["reward"]["mean"] - constants["reward_min"])
                         / (constants["reward_max"] - constants["reward_min"])) < 1e-12}, sys.stdout)
"""


@pytest.mark.parametrize("task", ["OfflineBallCircle-v0", "OfflinePointGoal1Gymnasium-v0"])
def test_paired_repeatable_and_without_a_trace(task, tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, task], cwd=str(tmp_path), env=subprocess_environment(),
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == {"same": True, "repeatable": True, "differ": True, "other": True, "untouched": True,
                      "cost": [2.0, 2.0], "training": True, "normalized_cost": 0.05, "reward": True}
