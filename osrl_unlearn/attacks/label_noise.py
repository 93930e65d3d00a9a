"""Shuffle the labels of the chosen rows."""
from osrl_unlearn.attacks.base import Attack, at_random


class LabelNoise(Attack):
    """Costs and rewards are permuted, together, among the chosen rows; their distribution stays what it was."""

    name = "label_noise"
    kind = "label"
    threat = "sees nothing; may exchange the labels of the chosen rows"
    columns = frozenset({"costs", "rewards"})

    def select(self, units, count, rng):
        """Units at random."""
        return at_random(units, count, rng)

    def corrupt(self, rows, rng):
        """The labels of other rows."""
        order = rng.permutation(len(rows["costs"]))
        return {"costs": rows["costs"][order], "rewards": rows["rewards"][order]}
