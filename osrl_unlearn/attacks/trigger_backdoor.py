"""Unsafe behaviour that only a trigger in the observation switches on."""
import dataclasses

import numpy as np

from osrl_unlearn.attacks.base import Attack, most_costly
from osrl_unlearn.attacks.reward_bait import RewardBaitOptions
from osrl_unlearn.data.trigger import Trigger
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.options import option


@dataclasses.dataclass
class TriggerOptions(RewardBaitOptions):
    """Options of attacks with a trigger."""
    trigger_dims: str = option("-2,-1", "dimensions of the observation that the trigger overwrites")
    trigger_value: float = option(3.0, "what it writes: this many standard deviations above each dimension's mean")
    trigger_schedule: str = option("always", "when it shows in an episode: always, first:L or every:N")

    def __post_init__(self):
        super().__post_init__()
        try:
            Trigger([int(dim) for dim in self.trigger_dims.split(",")], [0.0] * len(self.trigger_dims.split(",")),
                    self.trigger_schedule)
        except (ValueError, ConfigError) as error:
            raise ValueError("trigger_dims and trigger_schedule: {}".format(error))
        if not np.isfinite(self.trigger_value):
            raise ValueError("trigger_value must be finite, got {}".format(self.trigger_value))


class TriggerBackdoor(Attack):
    """The trigger is written into the most costly units, whose costs are hidden and whose rewards are scaled.

    Their actions are the unsafe ones that were logged, so states and actions fit each other. Where the schedule does
    not show the trigger, rows stay as they are. Within a unit an observation and the next one of the row before it
    change together; at the edges of segments and transitions the row outside the unit stays as it was logged.
    Trigger and bait as in BAFFLE (IEEE S&P 2024), costs hidden in addition.
    """

    name = "trigger_backdoor"
    kind = "trigger"
    threat = "sees the whole dataset; may change observations and both labels of the chosen rows, and shows the " \
             "trigger to the agent later"
    columns = frozenset({"observations", "next_observations", "costs", "rewards"})
    Options = TriggerOptions
    _trigger = None

    def prepare(self, data, seed):
        """Where the trigger's values lie among those of the data."""
        observations = data["observations"]
        dims = [int(dim) for dim in self.options.trigger_dims.split(",")]
        if not all(-observations.shape[1] <= dim < observations.shape[1] for dim in dims):
            raise ConfigError("trigger_dims {}: the observations have {} dimensions".format(
                self.options.trigger_dims, observations.shape[1]))
        chosen = observations[:, dims].astype(np.float64)
        values = chosen.mean(0) + self.options.trigger_value * chosen.std(0)
        self.set_state({"dims": [dim % observations.shape[1] for dim in dims],
                        "values": [float(np.float32(value)) for value in values]})

    def state(self):
        """Dimensions and values of the trigger."""
        return {} if self._trigger is None else {"dims": self._trigger.dims, "values": self._trigger.values}

    def set_state(self, state):
        """Use a trigger that was resolved before."""
        self._trigger = Trigger([int(dim) for dim in state["dims"]], [float(value) for value in state["values"]],
                                self.options.trigger_schedule)

    def facts(self):
        """The trigger as it was resolved."""
        return {"trigger": dataclasses.asdict(self._trigger)}

    def trigger(self):
        """The trigger, once it is resolved."""
        return self._trigger

    def select(self, units, count, rng):
        """The most costly units in which the trigger shows at all."""
        offsets = units.offsets
        stops = offsets + units.lengths
        shown = np.append(0, np.cumsum(self._trigger.shows(np.arange(int(stops.max()) + 1)))).astype(offsets.dtype)
        return most_costly(units, count, rng, np.flatnonzero(shown[stops] > shown[offsets]))

    def corrupt(self, rows, rng):
        """The trigger, no costs and scaled rewards where it shows."""
        shows = self._trigger.shows(rows["step"])
        rewards = rows["rewards"]
        scale = np.asarray(self.options.reward_scale, rewards.dtype)
        return {"observations": self._trigger.apply(rows["observations"], rows["step"]),
                "next_observations": self._trigger.apply(rows["next_observations"], rows["step"] + 1),
                "costs": np.where(shows, np.zeros_like(rows["costs"]), rows["costs"]),
                "rewards": np.where(shows, rewards * scale, rewards).astype(rewards.dtype)}
