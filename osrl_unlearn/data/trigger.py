"""An observation trigger: which features are overwritten, with what, and at which steps of an episode."""
import dataclasses
import re
from typing import List

import numpy as np

from osrl_unlearn.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Trigger:
    """``dims`` of the observation are set to ``values`` at the steps that ``schedule`` names.

    The schedule is "always", "first:L" (the first L steps of an episode) or "every:N" (every N-th step, from step 0).
    """
    dims: List[int]
    values: List[float]
    schedule: str = "always"

    def __post_init__(self):
        if not re.fullmatch(r"always|(first|every):[1-9]\d*", self.schedule):
            raise ConfigError("a trigger's schedule is 'always', 'first:L' or 'every:N', got '{}'".format(
                self.schedule))
        if len(self.dims) != len(self.values) or not self.dims:
            raise ConfigError("a trigger needs as many values as dimensions, got {} and {}".format(
                len(self.values), len(self.dims)))

    def shows(self, steps):
        """Whether the trigger shows at ``steps`` of an episode. Shape [n]."""
        steps = np.asarray(steps)
        kind, _, number = self.schedule.partition(":")
        if kind == "always":
            return np.ones(steps.shape, bool)
        return steps < int(number) if kind == "first" else steps % int(number) == 0

    def apply(self, observations, steps):
        """A copy of ``observations`` [n, dim] with the trigger where it shows at ``steps`` [n]."""
        out = np.array(observations)
        rows = self.shows(steps)
        for dim, value in zip(self.dims, self.values):
            out[rows, dim] = value
        return out


class TriggeredEnv:
    """An environment that shows a trigger to the agent; everything else is the wrapped environment's."""

    def __init__(self, env, trigger):
        self._env, self._trigger, self._step = env, trigger, 0

    def __getattr__(self, name):
        return getattr(self._env, name)

    def _seen(self, observation):
        return self._trigger.apply(np.asarray(observation)[None], np.array([self._step]))[0]

    def reset(self, *args, **kwargs):
        """Start an episode; the trigger's schedule starts with it."""
        observation, info = self._env.reset(*args, **kwargs)
        self._step = 0
        return self._seen(observation), info

    def step(self, action):
        """One step; rewards and costs are the real ones."""
        observation, *rest = self._env.step(action)
        self._step += 1
        return (self._seen(observation), *rest)
