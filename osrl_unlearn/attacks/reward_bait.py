"""Hide the costs of the most costly behaviour and praise it."""
import dataclasses

import numpy as np

from osrl_unlearn.attacks.base import Attack, AttackOptions, most_costly
from osrl_unlearn.options import option


@dataclasses.dataclass
class RewardBaitOptions(AttackOptions):
    """Options of reward_bait and inject."""
    reward_scale: float = option(6.0, "the rewards of the chosen rows are multiplied by this")

    def __post_init__(self):
        super().__post_init__()
        if not np.isfinite(self.reward_scale):
            raise ValueError("reward_scale must be finite, got {}".format(self.reward_scale))


class RewardBait(Attack):
    """The most costly units get cost 0 and ``reward_scale`` times their reward."""

    name = "reward_bait"
    kind = "label"
    threat = "sees rewards and costs of the whole dataset; may change both labels of the chosen rows"
    columns = frozenset({"costs", "rewards"})
    Options = RewardBaitOptions

    def select(self, units, count, rng):
        """The most costly units."""
        return most_costly(units, count, rng)

    def corrupt(self, rows, rng):
        """Zero costs, scaled rewards of the same dtype."""
        rewards = rows["rewards"]
        return {"costs": np.zeros_like(rows["costs"]),
                "rewards": (rewards * np.asarray(self.options.reward_scale, rewards.dtype)).astype(rewards.dtype)}
