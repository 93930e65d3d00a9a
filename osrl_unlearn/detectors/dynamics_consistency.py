"""Next states that do not follow from states and actions."""
import numpy as np

from osrl_unlearn.detectors import models
from osrl_unlearn.detectors.consistency import CAP, Consistency


class DynamicsConsistency(Consistency):
    """The distance of s' - s from what (s, a) leads to elsewhere, in units of the robust spread of each dimension.

    Where s' is not the state of the row that follows in the same trajectory, the gap counts for both rows.
    """

    name = "dynamics_consistency"
    given = ("observations", "actions")
    delta = 0.2
    floor = (0.6, 1.5)

    def logged(self, data, rows):
        """Steps s' - s. Shape [n, obs_dim]."""
        return data["next_observations"][rows] - data["observations"][rows]

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """Distance from the predicted step, or the gap to the following row if that is larger. Shape [rows]."""
        out = super().scores(data, index, seed)
        _, scale = models.location_and_scale(self.logged(data, models.sample(index.rows)))
        last = np.zeros(index.rows, bool)
        last[index.stops - 1] = True
        for first in range(0, index.rows - 1, models.CHUNK):
            rows = np.arange(first, min(first + models.CHUNK, index.rows - 1))
            rows = rows[~last[rows]]
            gap = np.abs(data["next_observations"][rows] - data["observations"][rows + 1]) / scale
            gap = gap.clip(0, CAP).mean(1)
            out[rows] = np.maximum(out[rows], gap)
            out[rows + 1] = np.maximum(out[rows + 1], gap)
        return out
