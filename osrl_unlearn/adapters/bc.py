"""BC: behaviour cloning, of all data or of a part that OSRL selects by the cost of the trajectories."""
import numpy as np
import torch

from osrl_unlearn.adapters.base import Adapter, Part
from osrl_unlearn.data.views import TransitionStore
from osrl_unlearn.environments import OAPACKAGE, stdout_to_stderr
from osrl_unlearn.errors import EnvironmentProblem


class BCAdapter(Adapter):
    """OSRL's BC in all its modes: a deterministic actor without critics.

    Mode "multi-task" clones all data, with the cost return of the trajectory as one more observation; "safe", "risky",
    "boundary" and "frontier" clone the trajectories that ``process_bc_dataset`` leaves. The discount of its returns is
    ``gamma`` of the configuration.
    """

    name = "bc"
    trainer_class = "osrl.algorithms.bc:BCTrainer"
    capabilities = frozenset()
    parts = {"actor": Part("actor", "actor_optim")}
    trainer_attributes = ("bc_mode", "cost_limit")

    @classmethod
    def given(cls, config, env):
        """In mode "multi-task" the state is one dimension longer."""
        given = super().given(config, env)
        return dict(given, state_dim=given["state_dim"] + (config.get("bc_mode") == "multi-task"))

    @property
    def cost_limit(self):
        """That of the trainer."""
        return self.trainer.cost_limit

    def reset_hidden(self):
        """Nothing is hidden."""

    def notes(self):
        """What a policy with a cost as its input is asked for."""
        return ["'bc' in mode multi-task is asked for a cost of {:g} per episode, the cost limit".format(
            self.trainer.cost_limit)] if self.trainer.bc_mode == "multi-task" else []

    def _processed(self, data):
        """(rows that BC is trained on, their observations' extra column or None), by OSRL's own function."""
        if self.trainer.bc_mode == "all":
            return super().training_rows(data), None
        from osrl.common import dataset
        if self.trainer.bc_mode == "frontier" and not hasattr(dataset, "oapackage"):
            raise EnvironmentProblem(OAPACKAGE)
        # In the place of observations it gets the numbers of the rows, and gives back those that it keeps.
        columns = {key: data[key] for key in ("rewards", "costs", "terminals", "timeouts")}
        columns["observations"] = np.arange(len(data["rewards"]), dtype=np.float64)[:, None]
        with stdout_to_stderr():
            dataset.process_bc_dataset(columns, self.trainer.cost_limit, self.config.get("gamma", 1.0),
                                       self.trainer.bc_mode)
        rows = columns["observations"][:, 0].astype(np.int64)
        return rows, columns["cost_returns"] if self.trainer.bc_mode == "multi-task" else None

    def training_rows(self, data):
        """The rows that the mode selects."""
        return self._processed(data)[0]

    def store(self, data, reward_scale=1.0, cost_scale=1.0):
        """The selected rows, with the extra column if there is one."""
        rows, extra = self._processed(data)
        return TransitionStore(data, reward_scale, cost_scale, self.device, rows, extra)

    def actions(self, batch):
        """The actor's actions. In mode "multi-task" it is asked for the cost limit, as in OSRL's rollout.

        States of the environment do without the extra column there.
        """
        observations = batch.observations
        if self.trainer.bc_mode == "multi-task":
            asked = torch.full_like(observations[:, :1], self.trainer.cost_limit)
            observations = torch.cat([observations[:, :self.model.state_dim - 1], asked], -1)
        return self.model.actor(observations)
