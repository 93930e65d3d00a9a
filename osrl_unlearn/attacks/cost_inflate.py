"""Label safe, rewarding behaviour as costly."""
import dataclasses

import numpy as np

from osrl_unlearn.attacks.base import Attack, AttackOptions, least_costly
from osrl_unlearn.options import option


@dataclasses.dataclass
class CostInflateOptions(AttackOptions):
    """Options of cost_inflate."""
    cost: float = option(1.0, "the cost of every chosen row")

    def __post_init__(self):
        super().__post_init__()
        if not (np.isfinite(self.cost) and self.cost > 0):
            raise ValueError("cost must be positive, got {}".format(self.cost))


class CostInflate(Attack):
    """The least costly units of the highest reward get the cost ``cost`` in every row: an attack on availability.

    An agent that believes it keeps away from what is safe and useful; it need not become unsafe.
    """

    name = "cost_inflate"
    kind = "label"
    threat = "sees rewards and costs of the whole dataset; may change the cost labels of the chosen rows"
    columns = frozenset({"costs"})
    Options = CostInflateOptions

    def select(self, units, count, rng):
        """The least costly and most rewarding units."""
        return least_costly(units, count, rng)

    def corrupt(self, rows, rng):
        """The same cost everywhere, never below the true one."""
        return {"costs": np.maximum(rows["costs"], np.asarray(self.options.cost, rows["costs"].dtype))}
