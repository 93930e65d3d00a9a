"""Small data in DSRL's format, for tests."""
import numpy as np


def toy_data(trajectories=12, length=15, obs_dim=8, act_dim=2, seed=0):
    """A dictionary of DSRL's columns: later trajectories move further out, earn more and cost more.

    Trajectories differ in length; odd ones end by ``terminals``, even ones by ``timeouts``. Shapes [rows] and
    [rows, dim]; float32 and bool.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(trajectories):
        rows = length + number % 3
        boldness = number / trajectories
        observations = rng.normal(boldness, 1, (rows + 1, obs_dim))
        actions = np.clip(rng.normal(boldness, 0.3, (rows, act_dim)), -1, 1)
        last = np.arange(rows) == rows - 1
        parts.append({
            "observations": observations[:-1], "next_observations": observations[1:], "actions": actions,
            "rewards": boldness + 0.1 * rng.normal(size=rows), "costs": rng.random(rows) < 0.6 * boldness,
            "terminals": last & bool(number % 2), "timeouts": last & (not number % 2)})
    data = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return {key: column if column.dtype == bool and key != "costs" else column.astype(np.float32)
            for key, column in data.items()}
