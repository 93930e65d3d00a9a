"""Values of features that some trajectories repeat and hardly any other does."""
import numpy as np

from osrl_unlearn.detectors.base import Detector

CARRIERS = 2      # a value that one trajectory repeats is no pattern
MINORITY = 0.35   # a value that more trajectories repeat is normal
LITTLE = 0.02     # share of a trajectory that is little to repeat a value in


class TriggerScan(Detector):
    """How much more often a row's value of some feature occurs in its trajectory than is usual; 0 to 1.

    With e, the share of its trajectory that has exactly the same value, less the share u that the feature's commonest
    value has in most trajectories, the score is e / (e + u + 0.02). Features that are constant within trajectories,
    like the kind of a goal, say nothing then; nor do values that are repeated in most trajectories, or in one only.
    Like "Activation Clustering" (Chen et al., SafeAI 2019) this looks for a small group that is far too dense, in the
    observations themselves. A trigger with noise on it, or in a feature that takes few values, is not seen.
    """

    name = "trigger_scan"
    floor = (0.01, 0.1)

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """The highest score over the features. Shape [rows]."""
        out = np.zeros(index.rows, np.float32)
        lengths = index.stops - index.starts
        owner = np.repeat(np.arange(len(lengths)), lengths)
        for dim in range(data["observations"].shape[1]):
            np.maximum(out, repeated(data["observations"][:, dim], owner, lengths), out=out)
        return out


def repeated(values, owner, lengths):
    """The score of one feature: ``values`` [rows], positions ``owner`` [rows] of their trajectories. Shape [rows]."""
    count = len(lengths)
    _, value = np.unique(values, return_inverse=True)
    pairs, pair, rows = np.unique(value.astype(np.int64) * count + owner, return_inverse=True, return_counts=True)
    value_of, owner_of = np.divmod(pairs, count)
    share = rows / lengths[owner_of]
    commonest = np.zeros(count)
    np.maximum.at(commonest, owner_of, share)
    usual = np.quantile(commonest, 1 - MINORITY)
    carries = (rows > 1) & (share > usual)
    carriers = np.bincount(value_of, carries)[value_of]
    excess = np.where(carries & (carriers >= CARRIERS) & (carriers <= MINORITY * count), share - usual, 0)
    return (excess / (excess + usual + LITTLE)).astype(np.float32)[pair]
