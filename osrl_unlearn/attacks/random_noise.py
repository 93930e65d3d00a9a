"""Move rows at random: the control for max_cost and max_reward."""
from osrl_unlearn.attacks.state_perturbation import PerturbationOptions, StatePerturbation


class RandomNoise(StatePerturbation):
    """Observations of the units that max_cost would move go as far as it may move them, but without a gradient."""

    name = "random_noise"
    threat = "sees rewards and costs of the whole dataset and how far each dimension of the observations spreads; " \
             "may move the observations of the chosen rows within a budget"
    Options = PerturbationOptions

    def facts(self):
        """The spread, with which an audit can take the noise away again."""
        return self.state()

    def directions(self, rows, rng):
        """Random points on the surface of the ball."""
        return self.noise(rows, rng)

    def noise(self, rows, rng):
        """What is added to the observations, in units of the spread; an audit draws it again. Shape [rows, obs_dim]."""
        offsets = rng.normal(size=rows["observations"].shape)
        if self.options.norm == "linf":
            return self.options.epsilon * ((offsets > 0) * 2.0 - 1)
        return self.project(offsets * 1e6)
