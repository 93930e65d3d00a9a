"""CPQ: constraints penalised Q-learning."""
import torch

from osrl_unlearn.adapters.action_values import ActionValueAdapter, squashed_log_prob
from osrl_unlearn.adapters.base import Part


class CPQAdapter(ActionValueAdapter):
    """OSRL's CPQ: squashed Gaussian actor, reward and cost critics, VAE, targets, and ``log_alpha``."""

    name = "cpq"
    trainer_class = "osrl.algorithms.cpq:CPQTrainer"
    capabilities = frozenset({"values", "action_values", "log_prob", "generator"})
    parts = {"actor": Part("actor", "actor_optim"), "reward_critic": Part("critic", "critic_optim"),
             "generator": Part("vae", "vae_optim"), "cost_critic": Part("cost_critic", "cost_critic_optim")}
    targets = {"actor_old": "actor", "critic_old": "critic", "cost_critic_old": "cost_critic"}
    tensors = ("log_alpha",)

    def reset_hidden(self):
        """log_alpha = 0, as in the constructor."""
        with torch.no_grad():
            self.model.log_alpha.zero_()

    @property
    def cost_threshold(self):
        """``q_thres``: the one that gates CPQ's Bellman backups and actor (``qc_thres`` only feeds a log)."""
        return self.model.q_thres

    def policy(self, observations):
        """Deterministic actions, scaled by max_action."""
        return self.model._actor_forward(observations, True, False)[0]

    def normal(self, batch):
        """The actor's Gaussian before tanh."""
        return self.model.actor(batch.observations, False, True, True)[-1]

    def log_prob(self, batch):
        """Log-density of the logged actions under the squashed Gaussian. Shape [n]."""
        return squashed_log_prob(self.normal(batch), batch.actions, self.model.max_action)

    def reward_heads(self, observations, actions):
        """Heads of the reward critic. Shape [heads, n]."""
        return torch.stack(self.model.critic.predict(observations, actions)[1])

    def cost_heads(self, observations, actions):
        """Heads of the cost critic. Shape [heads, n]."""
        return torch.stack(self.model.cost_critic.predict(observations, actions)[1])
