"""An attack of a third party."""
import numpy as np

from osrl_unlearn.attacks.base import Attack, at_random


class ZeroRewards(Attack):
    """The rewards of random units become 0."""

    name = "thirdparty_zero_rewards"
    kind = "label"
    threat = "sees nothing; may change the rewards of the chosen rows"
    columns = frozenset({"rewards"})

    def select(self, units, count, rng):
        """Random units."""
        return at_random(units, count, rng)

    def corrupt(self, rows, rng):
        """Zero rewards."""
        return {"rewards": np.zeros_like(rows["rewards"])}
