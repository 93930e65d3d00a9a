"""Move costly rows at random: the control for max_cost and max_reward."""
from osrl_unlearn.attacks.state_perturbation import PerturbationOptions, StatePerturbation


class RandomNoise(StatePerturbation):
    """Observations of the most costly units move as far as max_cost may move them, but without a gradient."""

    name = "random_noise"
    threat = "sees costs; may move the observations of the chosen rows within a budget"
    Options = PerturbationOptions

    def directions(self, rows, rng):
        """Random points on the surface of the ball."""
        offsets = rng.normal(size=rows["observations"].shape)
        if self.options.norm == "linf":
            return self.options.epsilon * ((offsets > 0) * 2.0 - 1)
        return self.project(offsets * 1e6)
