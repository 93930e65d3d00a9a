"""Move costly rows to where the cost critic expects even more."""
from osrl_unlearn.attacks.state_perturbation import CriticAscent


class MaxCost(CriticAscent):
    """Observations of the most costly units climb a surrogate's cost critic within the budget.

    The costs are then seen further out than where they arise, and the real boundary looks harmless.
    """

    name = "max_cost"
    threat = "sees the whole dataset and can train on it; may move the observations of the chosen rows within a budget"
    climbs = "costs"
