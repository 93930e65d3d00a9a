"""Everything that can be seen without knowing the attack."""
import numpy as np

from osrl_unlearn.detectors.base import Detector, ModelOptions, ratios


class Ensemble(Detector):
    """The detectors that need no agent, and value_gap if there is an agent with critics of actions.

    Each is calibrated by itself; a trajectory is as suspicious as the detector says that suspects it most. What was
    found by then has no part in the models that follow, so costs, the hardest to settle, come last.
    behaviour_density is left out: of the attacks tried it showed none that the others do not.
    """

    name = "ensemble"
    floor = (1.0, 1.0)
    Options = ModelOptions
    members = ("trigger_scan", "dynamics_consistency", "reward_consistency", "cost_consistency")

    def parts(self, data, index, seed, adapter=None, **scales):
        """[(detector, scores [rows]), ...] of all members that can be used."""
        from osrl_unlearn.registry import DETECTORS
        critics = adapter is not None and "action_values" in adapter.capabilities
        out, known = [], np.zeros(len(index.starts), bool)
        for name in self.members + (("value_gap",) if critics else ()):
            cls = DETECTORS.load(name)
            member = cls(cls.Options(steps=self.options.steps)) if cls.Options is ModelOptions else cls()
            # More than half cannot be the poisoned minority.
            member.without = known if known.mean() < 0.5 else None
            out.append((member, member.scores(data, index, seed, adapter=adapter, **scales)))
            known = known | (ratios(out[-1][1], index, member.floor) >= 1)
        return out

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """The highest score of the members, each in units of what is worth attention in a few rows. Shape [rows]."""
        return np.max([scores / member.floor[1] for member, scores in self.parts(
            data, index, seed, adapter=adapter, reward_scale=reward_scale, cost_scale=cost_scale)], 0)
