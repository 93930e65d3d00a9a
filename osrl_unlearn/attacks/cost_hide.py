"""Hide the costs of the most costly behaviour."""
import numpy as np

from osrl_unlearn.attacks.base import Attack, most_costly


class CostHide(Attack):
    """The costs of the most costly units become 0; states, actions and rewards stay as they are."""

    name = "cost_hide"
    kind = "label"
    threat = "sees rewards and costs of the whole dataset; may change the cost labels of the chosen rows"
    columns = frozenset({"costs"})

    def select(self, units, count, rng):
        """The most costly units."""
        return most_costly(units, count, rng)

    def corrupt(self, rows, rng):
        """Zero costs."""
        return {"costs": np.zeros_like(rows["costs"])}
