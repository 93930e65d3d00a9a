"""BCQ-Lag: batch-constrained Q-learning with a PID Lagrange multiplier."""
from osrl_unlearn.adapters.action_values import PIDLagrangianAdapter
from osrl_unlearn.adapters.base import Part


class BCQLAdapter(PIDLagrangianAdapter):
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

    def policy(self, observations):
        """Perturbed samples of the VAE, as BCQ-Lag acts."""
        return self.model.actor(observations, self.model.vae.decode(observations))
