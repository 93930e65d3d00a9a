"""Move harmless, rewarding rows to where even more reward is expected."""
from osrl_unlearn.attacks.state_perturbation import CriticAscent


class MaxReward(CriticAscent):
    """Observations of harmless, rewarding units climb a surrogate's reward critic within the budget.

    Where reward and cost go together, what is dangerous then looks harmless.
    """

    name = "max_reward"
    threat = "sees the whole dataset and can train on it; may move the observations of the chosen rows within a budget"
    climbs = "rewards"
