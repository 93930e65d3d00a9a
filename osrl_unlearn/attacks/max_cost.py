"""Move harmless, rewarding rows to where costs are expected."""
from osrl_unlearn.attacks.state_perturbation import CriticAscent


class MaxCost(CriticAscent):
    """Observations of harmless, rewarding units climb a surrogate's cost critic within the budget.

    What is dangerous then looks harmless and rewarding, although no label has been touched.
    """

    name = "max_cost"
    threat = "sees the whole dataset and can train on it; may move the observations of the chosen rows within a budget"
    climbs = "costs"
