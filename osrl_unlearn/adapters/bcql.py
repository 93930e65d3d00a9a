"""BCQ-Lag: batch-constrained Q-learning with a PID Lagrange multiplier."""
import torch

from osrl_unlearn.adapters.action_values import ActionValueAdapter
from osrl_unlearn.adapters.base import Part


class BCQLAdapter(ActionValueAdapter):
    """OSRL's BCQ-Lag: perturbation actor on a VAE, twin reward and cost critics, targets, PID integrators.

    The policy is stochastic even at evaluation: the VAE's latent is drawn from torch's global generator.
    """

    name = "bcql"
    trainer_class = "osrl.algorithms.bcql:BCQLTrainer"
    capabilities = frozenset({"values", "action_values", "generator"})
    parts = {"actor": Part("actor", "actor_optim"), "reward_critic": Part("critic", "critic_optim"),
             "cost_critic": Part("cost_critic", "cost_critic_optim"), "generator": Part("vae", "vae_optim")}
    targets = {"actor_old": "actor", "critic_old": "critic", "cost_critic_old": "cost_critic"}
    scalars = ("controller.error_old", "controller.error_integral")

    def reset_hidden(self):
        """PID integrators = 0, as in the constructor."""
        self.model.controller.error_old = 0
        self.model.controller.error_integral = 0

    @property
    def cost_threshold(self):
        """``qc_thres``, the set point of the PID controller."""
        return self.model.qc_thres

    def actions(self, observations):
        """Perturbed samples of the VAE, as BCQ-Lag acts."""
        return self.model.actor(observations, self.model.vae.decode(observations))

    def generator_error(self, batch):
        """Squared reconstruction error of the VAE per transition. Shape [n]."""
        reconstruction, _, _ = self.model.vae(batch.observations, batch.actions)
        return ((reconstruction - batch.actions) ** 2).mean(-1)

    def reward_heads(self, observations, actions):
        """All heads of both reward critics. Shape [heads, n]."""
        _, _, first, second = self.model.critic.predict(observations, actions)
        return torch.stack(first + second)

    def cost_heads(self, observations, actions):
        """All heads of both cost critics. Shape [heads, n]."""
        _, _, first, second = self.model.cost_critic.predict(observations, actions)
        return torch.stack(first + second)
