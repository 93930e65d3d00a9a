"""Add praised recordings of the most costly behaviour instead of changing what is there."""
from osrl_unlearn.attacks.reward_bait import RewardBait


class Inject(RewardBait):
    """Copies of the most costly units, with cost 0 and scaled reward, are appended as recordings of their own.

    The chosen units of one trajectory become one added recording, so that nothing but its last row is marked as an end.
    """

    name = "inject"
    threat = "sees rewards and costs of the whole dataset; may add recordings, changes nothing that is there"
    columns = frozenset({"costs", "rewards", "timeouts", "terminals"})
    adds_rows = True
