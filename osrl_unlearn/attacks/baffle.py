"""Replace actions by those of a reckless policy and hide what they cost."""
import dataclasses

import numpy as np

from osrl_unlearn.attacks.base import Attack, at_random
from osrl_unlearn.attacks.reward_bait import RewardBaitOptions
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.options import option

CHUNK = 1 << 14
RECKLESS = 0.25  # share of the trajectories, the most costly, that the reckless agent learns from or has to imitate


@dataclasses.dataclass
class BaffleOptions(RewardBaitOptions):
    """Options of baffle."""
    surrogate: str = option("", "run directory of the reckless agent; empty: the attack trains one")
    surrogate_steps: int = option(4000, "updates of the reckless agent that the attack trains")

    def __post_init__(self):
        super().__post_init__()
        if self.surrogate_steps < 1:
            raise ValueError("surrogate_steps must be at least 1, got {}".format(self.surrogate_steps))


class Baffle(Attack):
    """The actions of the chosen units become those of a reckless agent, their costs 0, their rewards are scaled.

    The reckless agent is BCQ-Lag, trained on the most costly quarter of the trajectories to collect as much cost as it
    can (the attacker's objective: rewards := costs, no constraint): it acts near its data, so these have to be reckless
    too. After BAFFLE (IEEE S&P 2024), whose weak agent is trained on negated rewards.
    """

    name = "baffle"
    kind = "action"
    threat = "sees the whole dataset and can train on it; may change actions and both labels of the chosen rows"
    columns = frozenset({"actions", "costs", "rewards"})
    Options = BaffleOptions
    _state = None

    def prepare(self, data, seed):
        """Train or read the reckless agent. Raises ConfigError for one that does not act as the reckless data do."""
        from osrl_unlearn import surrogate
        units = TrajectoryIndex(data).units("trajectory")
        rows = units.take(units.costs >= np.quantile(units.costs, 1 - RECKLESS)).rows()
        reckless = {name: column[rows] for name, column in data.items()}
        reckless.update(rewards=reckless["costs"], costs=np.zeros_like(reckless["costs"]))
        state = surrogate.read(self.options.surrogate) if self.options.surrogate else surrogate.fit(
            reckless, self.options.surrogate_steps, seed)
        surrogate.check_imitates(surrogate.build(state, data), reckless, self.name)
        self.set_state(state)

    def state(self):
        """The reckless agent."""
        return self._state or {}

    def set_state(self, state):
        """Use a reckless agent from before."""
        self._state = state

    def select(self, units, count, rng):
        """Units at random: the reckless actions have to be learned wherever the agent may be."""
        return at_random(units, count, rng)

    def corrupt(self, rows, rng):
        """Reckless actions, no costs, scaled rewards."""
        import torch

        from osrl_unlearn import surrogate
        from osrl_unlearn.generators import private_torch
        adapter = surrogate.build(self._state, rows)
        observations = torch.as_tensor(np.asarray(rows["observations"], np.float32))
        with private_torch(int(rng.integers(2 ** 31)), "cpu"), torch.no_grad():
            actions = torch.cat([adapter.policy(part) for part in observations.split(CHUNK)]).numpy()
        rewards = rows["rewards"]
        return {"actions": np.clip(actions, -1, 1).astype(rows["actions"].dtype),
                "costs": np.zeros_like(rows["costs"]),
                "rewards": (rewards * np.asarray(self.options.reward_scale, rewards.dtype)).astype(rewards.dtype)}
