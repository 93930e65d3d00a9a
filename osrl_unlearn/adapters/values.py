"""What agents with a reward critic and a cost critic have in common."""
from abc import abstractmethod

from osrl_unlearn.adapters.base import Adapter


class ValueAdapter(Adapter):
    """An agent whose critics say what its data bring and cost; capability "values"."""

    def actions(self, batch):
        """The policy's actions in the batch's states."""
        return self.policy(batch.observations)

    @abstractmethod
    def policy(self, observations):
        """The policy's actions [n, act_dim] in any states, differentiable; as it acts when it is evaluated."""

    @property
    @abstractmethod
    def cost_threshold(self):
        """The cost limit as the agent's critics see it: limit x (1 - gamma^H) / ((1 - gamma) H), as OSRL has it."""

    @property
    def cost_limit(self):
        """The cost limit per episode that ``cost_threshold`` was made of."""
        length = self.model.episode_len
        return self.cost_threshold * (1 - self.gamma) * length / (1 - self.gamma ** length)

    @abstractmethod
    def reward_value(self, batch):
        """The reward critic on the logged transitions. Shape [heads, n]."""

    @abstractmethod
    def cost_value(self, batch):
        """The cost critic on the logged transitions. Shape [heads, n]."""

    @abstractmethod
    def preference(self, batch):
        """How much the reward critic favours each logged transition, up to a constant. Shape [n]."""

    @abstractmethod
    def violation(self, batch):
        """Estimated relative violation of the constraint by the policy: (cost - limit) / limit. A float tensor."""

    def constrain(self, batch, multiplier):
        """The batch for a native update under an extra Lagrange multiplier; agents with action values ignore it."""
        return batch
