"""What agents with reward and cost critics of state and action have in common."""
from abc import abstractmethod

import torch

from osrl_unlearn.adapters.values import ValueAdapter


class ActionValueAdapter(ValueAdapter):
    """An agent whose critics value any action in any state; capability "action_values"."""

    attributes = ("gamma", "episode_len")

    @abstractmethod
    def reward_heads(self, observations, actions):
        """Every head of the reward critic. Shape [heads, n]."""

    @abstractmethod
    def cost_heads(self, observations, actions):
        """Every head of the cost critic. Shape [heads, n]."""

    def reward_output_layers(self):
        """The layers that the heads of the reward critic end in, linear with one output each.

        None where the critic is not to be fitted to returns: because it ends otherwise, or estimates something else.
        """
        return []

    def reward_value(self, batch):
        """Q_r(s, a) of the logged actions. Shape [heads, n]."""
        return self.reward_heads(batch.observations, batch.actions)

    def cost_value(self, batch):
        """Q_c(s, a) of the logged actions. Shape [heads, n]."""
        return self.cost_heads(batch.observations, batch.actions)

    def preference(self, batch):
        """The advantage Q_r(s, a) - Q_r(s, pi(s)), mean of the heads; no gradient in the second term. Shape [n]."""
        with torch.no_grad():
            own = self.reward_heads(batch.observations, self.actions(batch)).mean(0)
        return self.reward_value(batch).mean(0) - own

    def generator_error(self, batch):
        """Squared reconstruction error of the VAE per transition. Shape [n]."""
        reconstruction, _, _ = self.model.vae(batch.observations, batch.actions)
        return ((reconstruction - batch.actions) ** 2).mean(-1)

    def generator_loss(self, batch):
        """The loss that OSRL trains the VAE with: reconstruction and KL, weighted by beta. Scalar."""
        reconstruction, mean, std = self.model.vae(batch.observations, batch.actions)
        divergence = 0.5 * (mean ** 2 + std ** 2 - 2 * torch.log(std) - 1).mean()
        return ((reconstruction - batch.actions) ** 2).mean() + self.model.beta * divergence

    def cost_baseline(self, batch):
        """Q_c(s, pi(s)), the highest head. Shape [n]."""
        with torch.no_grad():
            return self.cost_heads(batch.observations, self.actions(batch)).max(0).values

    def cost_price(self, batch, violating=True):
        """What a violating transition costs at least, or a harmless one at most: max or min(Q_c(s, pi(s)), kappa).

        Without gradient. Shape [n].
        """
        price, bound = self.cost_baseline(batch), float(self.cost_threshold)
        return price.clamp(min=bound) if violating else price.clamp(max=bound)

    def violation(self, batch):
        """(mean Q_c(s, pi(s)) - kappa) / max(kappa, 1), with the highest head of the cost critic."""
        return self._relative(self.cost_baseline(batch).mean())

    def _relative(self, cost):
        # A cost limit of 0 is legitimate; below 1 the excess is taken as it is.
        return (cost - self.cost_threshold) / max(self.cost_threshold, 1.0)

    def policy_loss(self, observations, multiplier):
        """Lagrangian of the policy in the given states: -Q_r / mean|Q_r| + multiplier (Q_c - kappa) / max(kappa, 1).

        Uses the lowest head of the reward critic and the highest of the cost critic. Scalar, for the actor.
        """
        actions = self.policy(observations)
        reward = self.reward_heads(observations, actions).min(0).values
        cost = self.cost_heads(observations, actions).max(0).values
        scale = reward.detach().abs().mean().clamp(min=1e-6)
        return -reward.mean() / scale + multiplier * self._relative(cost.mean())


class PIDLagrangianAdapter(ActionValueAdapter):
    """What BCQ-Lag and BEAR-Lag have in common: double critics, and a cost limit that a PID controller holds."""

    @property
    def cost_threshold(self):
        """``qc_thres``, the set point of the PID controller."""
        return self.model.qc_thres

    def reward_output_layers(self):
        """The last layers of both reward critics."""
        return [layer for layer in self.model.critic.modules()
                if isinstance(layer, torch.nn.Linear) and layer.out_features == 1]

    def reward_heads(self, observations, actions):
        """All heads of both reward critics. Shape [heads, n]."""
        _, _, first, second = self.model.critic.predict(observations, actions)
        return torch.stack(first + second)

    def cost_heads(self, observations, actions):
        """All heads of both cost critics. Shape [heads, n]."""
        _, _, first, second = self.model.cost_critic.predict(observations, actions)
        return torch.stack(first + second)


def squashed_log_prob(normal, actions, max_action):
    """Log-density of ``actions`` under tanh of a Gaussian, up to the constant of max_action. Shape [n]."""
    # tanh never reaches +-1: logged actions at the bounds are moved to where float32 can still invert it.
    squashed = (actions / max_action).clamp(-0.999, 0.999)
    return (normal.log_prob(torch.atanh(squashed)) - torch.log(1 - squashed ** 2)).sum(-1)
