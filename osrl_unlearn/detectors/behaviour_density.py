"""Actions that the others would hardly have taken."""
import numpy as np
import torch

from osrl_unlearn.detectors import models
from osrl_unlearn.detectors.base import Detector, ModelOptions
from osrl_unlearn.detectors.networks import Networks

COMPONENTS, DRAWS = 4, 8
LEAST_SPREAD = 0.05  # in units of the action's range / 2: actions at their bounds would have no spread at all


class BehaviourDensity(Detector):
    """By how much -log p(a | s) exceeds its mean over actions drawn from p itself, in nats per dimension; not below 0.

    p is a mixture of Gaussians whose parameters a network gives for each state (Bishop, "Mixture Density Networks",
    1994), fitted out of fold. Where many actions are usual each is improbable; that alone is nothing to suspect. Nor
    is acting as few do, so all trajectories are learned from alike: actions of which there are many are not found.
    """

    name = "behaviour_density"
    floor = (1.0, 6.0)
    Options = ModelOptions

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """How improbable each action is. Shape [rows]."""
        dim = data["actions"].shape[1]
        bound = max(float(np.abs(data["actions"]).max()), 1e-6)
        read = models.columns(data, ("actions",))
        noise = torch.randn(DRAWS, dim, generator=torch.Generator().manual_seed(seed))

        def mixture(prediction):
            weight, mean, spread = prediction.split([COMPONENTS, COMPONENTS * dim, COMPONENTS * dim], -1)
            return (torch.log_softmax(weight, -1), mean.unflatten(-1, (COMPONENTS, dim)),
                    LEAST_SPREAD + torch.nn.functional.softplus(spread.unflatten(-1, (COMPONENTS, dim))))

        def improbable(log_weight, mean, spread, actions):
            log_p = -0.5 * ((actions[..., None, :] - mean) / spread) ** 2 - torch.log(spread)
            return -torch.logsumexp(log_weight + log_p.sum(-1), -1) / dim

        def excess(prediction, target):
            log_weight, mean, spread = mixture(prediction)
            drawn = mean[..., None, :] + spread[..., None, :] * noise  # [n, components, draws, dim]
            each = improbable(log_weight[:, None, None], mean[:, None, None], spread[:, None, None], drawn).mean(-1)
            usual = (log_weight.exp() * each).sum(-1)
            return (improbable(log_weight, mean, spread, target) - usual).clamp(min=0)

        learner = Networks(self.options.steps, COMPONENTS * (1 + 2 * dim),
                           lambda prediction, target: improbable(*mixture(prediction), target))
        found = models.out_of_fold(models.columns(data, ("observations",)), lambda rows: read(rows) / bound, index,
                                   seed, learner, excess, majority=False, label=self.label)
        return found.clip(0, 20)
