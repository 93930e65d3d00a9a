"""Actions that the others would hardly have taken."""
import numpy as np
import torch

from osrl_unlearn.detectors import models
from osrl_unlearn.detectors.base import Detector, ModelOptions

COMPONENTS = 4
LEAST_SPREAD = 0.05  # in units of the action's range / 2: actions at their bounds would have no spread at all


class BehaviourDensity(Detector):
    """-log p(a | s) in nats per dimension, counted from the highest density there can be.

    p is a mixture of Gaussians whose parameters a network gives for each state (Bishop, "Mixture Density Networks",
    1994), fitted out of fold.
    """

    name = "behaviour_density"
    floor = (6.0, 12.0)
    Options = ModelOptions

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """How improbable each action is. Shape [rows]."""
        dim = data["actions"].shape[1]
        bound = max(float(np.abs(data["actions"]).max()), 1e-6)
        read = models.columns(data, ("actions",))

        def loss(prediction, target):
            weight, mean, spread = prediction.split([COMPONENTS, COMPONENTS * dim, COMPONENTS * dim], -1)
            spread = LEAST_SPREAD + torch.nn.functional.softplus(spread.unflatten(-1, (COMPONENTS, dim)))
            mean = mean.unflatten(-1, (COMPONENTS, dim))
            log_p = -0.5 * ((target[..., None, :] - mean) / spread) ** 2 - torch.log(spread / LEAST_SPREAD)
            return -torch.logsumexp(torch.log_softmax(weight, -1) + log_p.sum(-1), -1) / dim

        found = models.out_of_fold(models.columns(data, ("observations",)), lambda rows: read(rows) / bound, index,
                                   seed, self.options.steps, COMPONENTS * (1 + 2 * dim), loss)
        return found.clip(0, 20)
