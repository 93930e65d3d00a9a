"""Everything that can be seen without knowing the attack."""
import numpy as np

from osrl_unlearn.detectors.base import Detector, ModelOptions


class Ensemble(Detector):
    """The detectors that need no agent, and value_gap if there is an agent with critics of actions.

    Each is calibrated by itself; a trajectory is as suspicious as the detector says that suspects it most.
    """

    name = "ensemble"
    floor = (1.0, 1.0)
    Options = ModelOptions
    members = ("cost_consistency", "reward_consistency", "dynamics_consistency", "trigger_scan")

    def parts(self, data, index, seed, adapter=None, **scales):
        """[(detector, scores [rows]), ...] of all members that can be used."""
        from osrl_unlearn.registry import DETECTORS
        critics = adapter is not None and "action_values" in adapter.capabilities
        out = []
        for name in self.members + (("value_gap",) if critics else ()):
            cls = DETECTORS.load(name)
            member = cls(cls.Options(steps=self.options.steps)) if cls.Options is ModelOptions else cls()
            out.append((member, member.scores(data, index, seed, adapter=adapter, **scales)))
        return out

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """The highest score of the members, each in units of what is worth attention in a few rows. Shape [rows]."""
        return np.max([scores / member.floor[1] for member, scores in self.parts(
            data, index, seed, adapter=adapter, reward_scale=reward_scale, cost_scale=cost_scale)], 0)
