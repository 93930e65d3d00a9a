"""COptiDICE: constrained policy optimisation by stationary distribution correction."""
import numpy as np
import torch
import torch.nn.functional as F

from osrl_unlearn.adapters.base import Part
from osrl_unlearn.adapters.values import ValueAdapter


class COptiDICEAdapter(ValueAdapter):
    """OSRL's COptiDICE: actor, nu (reward) and chi (cost) networks of the state, duals, three data constants.

    It has no critic of actions. Its preference for a logged transition is e = r - lambda c + gamma nu(s') - nu(s), from
    which it takes the weight w = relu(f'^-1(e / alpha)) of that transition in the policy's regression.
    """

    name = "coptidice"
    trainer_class = "osrl.algorithms.coptidice:COptiDICETrainer"
    capabilities = frozenset({"values", "log_prob", "data_constants"})
    parts = {"actor": Part("actor", "actor_optim"), "reward_critic": Part("nu_network", "nu_optim"),
             "cost_critic": Part("chi_network", "chi_optim"), "multiplier": Part("lmbda", "lmbda_optim"),
             "temperature": Part("tau", "tau_optim")}
    tensors = ("tau", "lmbda")
    constants = ("init_state_propotion", "observations_std", "actions_std")
    attributes = ("gamma", "episode_len", "cost_limit")
    inputs = {"batch": list}

    @classmethod
    def given(cls, config, env):
        """The constants as in OSRL's eval script; an agent that is to be trained needs :meth:`set_data_constants`."""
        return dict(super().given(config, env), init_state_propotion=1.0,
                    observations_std=np.zeros((1,) + env.observation_space.shape, "f4"),
                    actions_std=np.zeros((1,) + env.action_space.shape, "f4"))

    def reset_hidden(self):
        """tau = lmbda = 1, as in the constructor."""
        with torch.no_grad():
            self.model.tau.fill_(1)
            self.model.lmbda.fill_(1)

    def set_data_constants(self, view):
        """Share of initial states and spread of observations and actions, as OSRL's get_dataset_states() has them."""
        batch = view.store.take(view.rows)
        self.model.init_state_propotion = batch.is_init.mean().item()
        self.model.observations_std, self.model.actions_std = (
            view.store.deliver(column.std(0, unbiased=False, keepdim=True))
            for column in (batch.observations, batch.actions))

    @property
    def cost_threshold(self):
        """``qc_thres`` of the model."""
        return self.model.qc_thres

    def policy(self, observations):
        """tanh of the mean, as COptiDICE acts; max_action is never applied by OSRL."""
        return self.model.actor(observations, True, False)[0]

    def normal(self, batch):
        """The actor's Gaussian before tanh."""
        return self.model.actor(batch.observations, False, True, True)[-1]

    def log_prob(self, batch):
        """Log-density under the Gaussian *before* tanh: that is what OSRL's actor is fitted with. Shape [n]."""
        return self.normal(batch).log_prob(batch.actions).sum(-1)

    def _heads(self, network, observations):
        return torch.stack(network.predict(observations, None)[1])

    def reward_value(self, batch):
        """nu(s). Shape [heads, n]."""
        return self._heads(self.model.nu_network, batch.observations)

    def cost_value(self, batch):
        """chi(s). Shape [heads, n]."""
        return self._heads(self.model.chi_network, batch.observations)

    def preference(self, batch):
        """nu(s'), mean of the heads: the value of where the transition leads. Shape [n].

        Not e itself: gamma nu(s') - nu(s) falls just as well when nu rises everywhere, and suppressing it does that.
        """
        return self._heads(self.model.nu_network, batch.next_observations).mean(0)

    def _log_weight(self, batch):  # e / alpha, lowest nu head as in OSRL
        nu = self._heads(self.model.nu_network, batch.observations).min(0).values
        nu_next = self._heads(self.model.nu_network, batch.next_observations).min(0).values
        penalised = batch.rewards - F.softplus(self.model.lmbda.detach()) * batch.costs
        return (penalised + self.model.gamma * (1 - batch.done) * nu_next - nu) / self.model.alpha

    def violation(self, batch):
        """(E_w[c] - limit per step) / limit per step, under the weights w of the transitions.

        OSRL compares the mean of w c, a cost *per step*, with ``qc_thres``, a discounted *sum*; per-step costs are at
        most 1 in these tasks, so its own multiplier only ever falls. Here both sides are per step.
        """
        with torch.no_grad():
            weights = F.relu(self.model.f_prime_inv_fn(self._log_weight(batch)))
            cost = (weights * batch.costs).sum() / weights.sum().clamp(min=1e-6)
        limit = self.model.cost_limit * self.trainer.cost_scale / self.model.episode_len
        return cost / max(limit, 1e-6) - 1

    def constrain(self, batch, multiplier):
        """Rewards r - multiplier mean|r| c: the extra multiplier acts through the weights of the transitions."""
        return batch._replace(rewards=batch.rewards - multiplier * batch.rewards.abs().mean() * batch.costs)
