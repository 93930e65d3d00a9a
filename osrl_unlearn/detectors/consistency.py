"""What labels and next states that contradict the other trajectories have in common: a robust model out of fold."""
import dataclasses
from abc import abstractmethod

import numpy as np

from osrl_unlearn.detectors import models
from osrl_unlearn.detectors.base import Detector, ModelOptions
from osrl_unlearn.detectors.networks import Networks
from osrl_unlearn.detectors.trees import Trees
from osrl_unlearn.options import option

CAP = 4.0  # in units of a column's scale: more than this is no stronger evidence
MODELS = ("networks", "trees")


@dataclasses.dataclass
class ConsistencyOptions(ModelOptions):
    """What predicts labels and next states."""
    model: str = option("networks", "networks, or trees: gradient-boosted trees of scikit-learn, which take longer and "
                                    "no steps")

    def __post_init__(self):
        super().__post_init__()
        if self.model not in MODELS:
            raise ValueError("model must be one of {}, got {}".format(", ".join(MODELS), self.model))


class Consistency(Detector):
    """The distance of what was logged from its prediction, in units of its own robust scale, at most CAP.

    Subclasses name the columns ``given`` to the model and say what it has to predict. ``delta`` is where Huber's loss
    turns linear: small follows the majority at once, large lets the weights of trajectories decide who that is.
    ``doubt`` is explained in :func:`~osrl_unlearn.detectors.models.out_of_fold`.
    """

    given: tuple
    delta: float
    doubt = None
    Options = ConsistencyOptions

    @abstractmethod
    def logged(self, data, rows):
        """What has to be predicted. Shape [n, dim]."""

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """Mean distance from the prediction over the dimensions. Shape [rows]."""
        location, scale = models.location_and_scale(self.logged(data, models.sample(index.rows)))

        def targets(rows):
            return ((self.logged(data, rows) - location) / scale).clip(-CAP, CAP).astype(np.float32)

        learner = Trees() if self.options.model == "trees" else Networks(
            self.options.steps, len(scale), models.huber(self.delta))
        found = models.out_of_fold(models.columns(data, self.given), targets, index, seed, learner, models.distance,
                                   self.doubt, self.without, label=self.label)
        return found.clip(0, CAP)
