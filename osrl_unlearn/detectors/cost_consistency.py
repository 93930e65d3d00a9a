"""Costs that contradict what other trajectories say."""
from osrl_unlearn.detectors.consistency import Consistency


class CostConsistency(Consistency):
    """The distance of a cost from what (s, a, s') costs elsewhere, in units of a typical cost that is not 0."""

    name = "cost_consistency"
    given = ("observations", "actions", "next_observations")
    delta = 1.0
    floor = (0.1, 0.7)

    @staticmethod
    def doubt(prediction, target):
        """How far a prediction is from both no cost and a typical one. Shape [..., n]."""
        p = prediction[..., 0].clamp(0, 1)
        return p * (1 - p)

    def logged(self, data, rows):
        """Costs. Shape [n, 1]."""
        return data["costs"][rows][:, None]
