"""What attacks on observations have in common: a budget in units of the data's own spread."""
import dataclasses
from abc import abstractmethod

import numpy as np

from osrl_unlearn.attacks.base import Attack, AttackOptions, least_costly
from osrl_unlearn.options import option

CHUNK = 1 << 14


@dataclasses.dataclass
class PerturbationOptions(AttackOptions):
    """Options of attacks on observations."""
    epsilon: float = option(1.0, "budget, in standard deviations of each dimension of the observation")
    norm: str = option("linf", "linf: every dimension by at most epsilon; l2: epsilon in all")

    def __post_init__(self):
        super().__post_init__()
        if not (np.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError("epsilon must be positive, got {}".format(self.epsilon))
        if self.norm not in ("linf", "l2"):
            raise ValueError("norm must be linf or l2, got '{}'".format(self.norm))


@dataclasses.dataclass
class GradientOptions(PerturbationOptions):
    """Options of attacks that climb a critic."""
    pgd_steps: int = option(10, "steps of projected gradient ascent, each of 2.5 epsilon / pgd_steps")
    surrogate: str = option("", "run directory of a trained BCQ-Lag or CPQ agent; empty: the attack trains one")
    surrogate_steps: int = option(4000, "updates of the surrogate that the attack trains")

    def __post_init__(self):
        super().__post_init__()
        if self.pgd_steps < 1 or self.surrogate_steps < 1:
            raise ValueError("pgd_steps and surrogate_steps must be at least 1")


class StatePerturbation(Attack):
    """The observations of harmless, rewarding units move within a ball; actions and labels stay as they were logged.

    A next observation moves with the observation of the following row if that row is chosen too, as if the sensor had
    been off during the recording.
    """

    kind = "state"
    columns = frozenset({"observations", "next_observations"})
    _spread = None

    def prepare(self, data, seed):
        """The spread of each dimension. Shape [obs_dim]."""
        self._spread = np.maximum(data["observations"].std(0, dtype=np.float64), 1e-6)

    def state(self):
        """The spread."""
        return {} if self._spread is None else {"spread": [float(value) for value in self._spread]}

    def set_state(self, state):
        """Use a spread from before."""
        self._spread = np.asarray(state["spread"])

    def select(self, units, count, rng):
        """The least costly and most rewarding units: wherever they are moved looks harmless and rewarding."""
        return least_costly(units, count, rng)

    @abstractmethod
    def directions(self, rows, rng):
        """Offsets within the ball, in units of the spread. Shape [rows, obs_dim]."""

    def corrupt(self, rows, rng):
        """Moved observations, and next observations that fit them."""
        observations, following = rows["observations"], np.array(rows["next_observations"])
        moved = (observations + self._spread * self.directions(rows, rng)).astype(observations.dtype)
        joined = (np.diff(rows["step"]) == 1) & (rows["next_observations"][:-1] == observations[1:]).all(1)
        following[:-1][joined] = moved[1:][joined]
        return {"observations": moved, "next_observations": following}

    def project(self, offsets):
        """The nearest offsets within the budget; works on arrays and tensors. Shape [n, obs_dim]."""
        if self.options.norm == "linf":
            return offsets.clip(-self.options.epsilon, self.options.epsilon)
        norms = (offsets ** 2).sum(-1) ** 0.5
        return offsets * (self.options.epsilon / norms.clip(self.options.epsilon))[:, None]


class CriticAscent(StatePerturbation):
    """Projected gradient ascent on a trained surrogate's critic of ``climbs`` ("costs" or "rewards") at (s + d, a).

    After the state attacks of Liu et al. (ICLR 2023), which climb the same critics of the victim when it acts.
    """

    climbs: str
    Options = GradientOptions
    _surrogate = None

    def prepare(self, data, seed):
        """The spread, and a surrogate that is checked to be trained. Raises ConfigError."""
        from osrl_unlearn import surrogate
        super().prepare(data, seed)
        self._surrogate = surrogate.read(self.options.surrogate) if self.options.surrogate else surrogate.fit(
            data, self.options.surrogate_steps, seed)
        surrogate.check_trained(surrogate.build(self._surrogate, data), data, self.climbs, self.name)

    def state(self):
        """The spread and the surrogate."""
        return {} if self._surrogate is None else dict(super().state(), surrogate=self._surrogate)

    def set_state(self, state):
        """Use a surrogate from before."""
        super().set_state(state)
        self._surrogate = state["surrogate"]

    def directions(self, rows, rng):
        """Ascent from a random start."""
        import torch

        from osrl_unlearn import surrogate
        adapter = surrogate.build(self._surrogate, rows)
        heads = adapter.cost_heads if self.climbs == "costs" else adapter.reward_heads
        spread = torch.as_tensor(self._spread, dtype=torch.float32)
        start = self.project(rng.uniform(-1, 1, rows["observations"].shape) * self.options.epsilon)
        out = []
        for where in range(0, len(start), CHUNK):
            observations, actions = (torch.as_tensor(np.asarray(rows[key][where:where + CHUNK], np.float32))
                                     for key in ("observations", "actions"))
            offsets = torch.as_tensor(start[where:where + CHUNK], dtype=torch.float32)
            for _ in range(self.options.pgd_steps):
                offsets.requires_grad_(True)
                value = heads(observations + spread * offsets, actions).mean(0).sum()
                gradient, = torch.autograd.grad(value, offsets)
                step = gradient.sign() if self.options.norm == "linf" else gradient / gradient.norm(
                    dim=-1, keepdim=True).clip(min=1e-12)
                offsets = self.project(offsets.detach() + 2.5 * self.options.epsilon / self.options.pgd_steps * step)
            out.append(offsets.numpy())
        return np.concatenate(out)
