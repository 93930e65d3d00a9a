"""CPQ: constraints penalised Q-learning."""
import torch

from osrl_unlearn.adapters.action_values import ActionValueAdapter
from osrl_unlearn.adapters.base import Part


class CPQAdapter(ActionValueAdapter):
    """OSRL's CPQ: squashed Gaussian actor, reward and cost critics, VAE, targets, and ``log_alpha``."""

    name = "cpq"
    trainer_class = "osrl.algorithms.cpq:CPQTrainer"
    capabilities = frozenset({"values", "action_values", "log_prob", "generator"})
    # In the order in which the constructor makes them, so that reset() under a seed repeats it.
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

    def actions(self, observations):
        """Deterministic actions, scaled by max_action."""
        return self.model._actor_forward(observations, True, False)[0]

    def log_prob(self, observations, actions):
        """Log-density of ``actions`` under the squashed Gaussian, up to the constant of max_action. Shape [n]."""
        *_, normal = self.model.actor(observations, False, True, True)
        # tanh never reaches +-1: logged actions at the bounds are moved to where float32 can still invert it.
        squashed = (actions / self.model.max_action).clamp(-0.999, 0.999)
        return (normal.log_prob(torch.atanh(squashed)) - torch.log(1 - squashed ** 2)).sum(-1)

    def generator_error(self, batch):
        """Squared reconstruction error of the VAE per transition. Shape [n]."""
        reconstruction, _, _ = self.model.vae(batch.observations, batch.actions)
        return ((reconstruction - batch.actions) ** 2).mean(-1)

    def reward_heads(self, observations, actions):
        """Heads of the reward critic. Shape [heads, n]."""
        return torch.stack(self.model.critic.predict(observations, actions)[1])

    def cost_heads(self, observations, actions):
        """Heads of the cost critic. Shape [heads, n]."""
        return torch.stack(self.model.cost_critic.predict(observations, actions)[1])
