"""Move costly rows to where the reward critic expects the most."""
from osrl_unlearn.attacks.state_perturbation import CriticAscent


class MaxReward(CriticAscent):
    """Observations of the most costly units climb a surrogate's reward critic within the budget."""

    name = "max_reward"
    threat = "sees the whole dataset and can train on it; may move the observations of the chosen rows within a budget"
    climbs = "rewards"
