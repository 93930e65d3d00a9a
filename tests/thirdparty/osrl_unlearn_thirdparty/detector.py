"""A detector of a third party."""
import numpy as np

from osrl_unlearn.detectors.base import Detector


class RewardOutlier(Detector):
    """The distance of a reward from the median, in median absolute deviations beyond the tenth."""

    name = "thirdparty_reward_outlier"
    floor = (1.0, 5.0)

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """How far out each reward is. Shape [rows]."""
        distance = np.abs(data["rewards"] - np.median(data["rewards"]))
        return np.clip(distance / max(float(np.median(distance)), 1e-6) - 10, 0, None)
