"""Rewards that contradict what other trajectories say."""
from osrl_unlearn.detectors.consistency import Consistency


class RewardConsistency(Consistency):
    """The distance of a reward from what (s, a, s') earns elsewhere, in units of the rewards' robust spread."""

    name = "reward_consistency"
    given = ("observations", "actions", "next_observations")
    delta = 0.2
    floor = (0.3, 1.2)

    def logged(self, data, rows):
        """Rewards. Shape [n, 1]."""
        return data["rewards"][rows][:, None]
