"""Everything that can be seen without knowing the attack."""
import numpy as np

from osrl_unlearn.detectors.base import Detector, ModelOptions, ratios


class Ensemble(Detector):
    """The detectors that need no agent, each calibrated by itself; the one that suspects a trajectory most decides.

    What was found by then has no part in the models that follow, so costs, the hardest to settle, come last, and once
    more without those that they exposed, which clears the honest that these had drawn into suspicion. Two are left out
    because they did harm or no good where they were measured: value_gap, since the critics of a poisoned agent side
    with hidden costs and accuse the honest, and behaviour_density, which found nothing that the others had not.
    """

    name = "ensemble"
    floor = (1.0, 1.0)
    Options = ModelOptions
    members = ("trigger_scan", "dynamics_consistency", "reward_consistency", "cost_consistency",
               "cost_consistency")

    def parts(self, data, index, seed, **agent):
        """[(detector, scores [rows]), ...] of all members."""
        from osrl_unlearn.registry import DETECTORS
        out, known = {}, np.zeros(len(index.starts), bool)
        for name in self.members:
            if name in out and np.array_equal(known, out[name][0].without):
                continue
            cls = DETECTORS.load(name)
            member = cls(cls.Options(steps=self.options.steps)) if issubclass(cls.Options, ModelOptions) else cls()
            # More than half cannot be the poisoned minority.
            member.without = known if known.mean() < 0.5 else np.zeros_like(known)
            member.label = self.label and name
            out[name] = member, member.scores(data, index, seed, **agent)
            known = known | (ratios(out[name][1], index, member.floor) >= 1)
        return list(out.values())

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """The highest score of the members, each in units of what is worth attention in a few rows. Shape [rows]."""
        return np.max([scores / member.floor[1] for member, scores in self.parts(data, index, seed)], 0)
