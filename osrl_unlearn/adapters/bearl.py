"""BEAR-Lag: bootstrapping error accumulation reduction with a PID Lagrange multiplier."""
import torch

from osrl_unlearn.adapters.action_values import PIDLagrangianAdapter, squashed_log_prob
from osrl_unlearn.adapters.base import Part


class BEARLAdapter(PIDLagrangianAdapter):
    """OSRL's BEAR-Lag: squashed Gaussian actor near a VAE (MMD), double reward and cost critics, targets.

    The actor is trained by the MMD of its samples, not by a likelihood: its standard deviation falls to thousandths.
    ``log_alpha``, the PID integrators and ``n_train_steps``, which delays the actor's use of the critics, are training
    state that OSRL's checkpoints leave out.
    """

    name = "bearl"
    trainer_class = "osrl.algorithms.bearl:BEARLTrainer"
    capabilities = frozenset({"values", "action_values", "log_prob", "generator"})
    parts = {"actor": Part("actor", "actor_optim"), "reward_critic": Part("critic", "critic_optim"),
             "cost_critic": Part("cost_critic", "cost_critic_optim"), "generator": Part("vae", "vae_optim")}
    targets = {"actor_old": "actor", "critic_old": "critic", "cost_critic_old": "cost_critic"}
    tensors = ("log_alpha",)
    scalars = ("controller.error_old", "controller.error_integral", "n_train_steps")
    narrow = True

    def reset_hidden(self):
        """log_alpha, PID integrators and the count of updates = 0, as in the constructor."""
        with torch.no_grad():
            self.model.log_alpha.zero_()
        self.model.controller.error_old = 0
        self.model.controller.error_integral = 0
        self.model.n_train_steps = 0

    def advance(self, updates):
        """The actor has passed its ``start_update_policy_step`` in training already, if it has."""
        self.model.n_train_steps = updates
        return ("n_train_steps",)

    def policy(self, observations):
        """Deterministic actions, scaled by max_action."""
        return self.model._actor_forward(observations, True, False)[0]

    def normal(self, batch):
        """The actor's Gaussian before tanh."""
        return self.model.actor(batch.observations, False, True, True)[-1]

    def log_prob(self, batch):
        """Log-density of the logged actions under the squashed Gaussian. Shape [n]."""
        return squashed_log_prob(self.normal(batch), batch.actions, self.model.max_action)
