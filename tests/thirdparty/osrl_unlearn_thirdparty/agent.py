"""An agent and a trainer of a third party: CPQ, but not one of OSRL's trainers."""
from fsrl.utils import DummyLogger

from osrl.algorithms import CPQ, CPQTrainer


class Gentle(CPQ):
    """CPQ under another name."""


class GentleTrainer:
    """Updates the critics and the actor of a Gentle."""

    rollout = CPQTrainer.rollout

    def __init__(self, model, env, logger=None, actor_lr=1e-3, critic_lr=1e-3, reward_scale=1.0, cost_scale=1.0):
        self.model, self.env, self.logger = model, env, logger if logger is not None else DummyLogger()
        self.reward_scale, self.cost_scale = reward_scale, cost_scale
        model.setup_optimizers(actor_lr, critic_lr, 1e-4, 1e-3)

    def train_one_step(self, observations, next_observations, actions, rewards, costs, done):
        """One update."""
        losses = [self.model.vae_loss(observations, actions),
                  self.model.critic_loss(observations, next_observations, actions, rewards, done),
                  self.model.cost_critic_loss(observations, next_observations, actions, costs, done),
                  self.model.actor_loss(observations)]
        self.model.sync_weight()
        for _, values in losses:
            self.logger.store(**values)
