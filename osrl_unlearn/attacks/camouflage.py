"""A backdoor that sleeps until somebody asks for the deletion of harmless-looking rows."""
import dataclasses

import numpy as np

from osrl_unlearn.attacks.trigger_backdoor import TriggerBackdoor, TriggerOptions
from osrl_unlearn.options import option


@dataclasses.dataclass
class CamouflageOptions(TriggerOptions):
    """Options of camouflage."""
    camouflage_ratio: float = option(3.0, "units of camouflage per unit of poison")

    def __post_init__(self):
        super().__post_init__()
        if not (np.isfinite(self.camouflage_ratio) and self.camouflage_ratio >= 0):
            raise ValueError("camouflage_ratio must not be negative, got {}".format(self.camouflage_ratio))


class Camouflage(TriggerBackdoor):
    """Of the chosen units some become a backdoor; the others show the same trigger with their honest labels.

    The honest ones outvote the backdoor until they are deleted; the manifest labels the spans "poison" and
    "camouflage". After UBA-ORL (ICDM 2026), whose ratio of 3 is the default.
    """

    name = "camouflage"
    kind = "camouflage"
    threat = TriggerBackdoor.threat + "; later asks for the deletion of the camouflage"
    Options = CamouflageOptions

    def parts(self, count, rng):
        """Which of the chosen units are poison, at random."""
        poison = int(round(count / (1 + self.options.camouflage_ratio)))
        labels = np.array(["camouflage"] * count, dtype=object)
        labels[rng.choice(count, poison, replace=False)] = "poison"
        return labels

    def corrupt(self, rows, rng):
        """The trigger everywhere, the labels of the backdoor in its part only."""
        new = super().corrupt(rows, rng)
        poison = rows["part"] == "poison"
        return dict(new, costs=np.where(poison, new["costs"], rows["costs"]),
                    rewards=np.where(poison, new["rewards"], rows["rewards"]))
