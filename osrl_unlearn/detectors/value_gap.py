"""Rows whose returns and costs to go are not what the agent's critics expect."""
import numpy as np
import torch
from scipy.stats import theilslopes

from osrl_unlearn.data.trajectories import to_go
from osrl_unlearn.detectors import models
from osrl_unlearn.detectors.base import Detector
from osrl_unlearn.errors import ConfigError

FEW = 2000  # rows that the line is fitted to


class ValueGap(Detector):
    """|what the rest of the trajectory brings - what Q(s, a) says|, in robust standard deviations; reward or cost.

    Critics are biased and discount; a line fitted by Theil and Sen's median of slopes takes that out. A trained agent
    has learned from the poison too, so the gap shows only poison that it could not fit; where many costs are hidden,
    its critic sides with the poison, and it is the honest trajectories that show.
    """

    name = "value_gap"
    needs = frozenset({"agent"})
    floor = (3.0, 6.0)

    def check(self, adapter):
        """The critics have to be of actions."""
        if adapter is None or "action_values" not in adapter.capabilities:
            raise ConfigError("the detector 'value_gap' needs a trained agent with critics of actions (BCQ-Lag, "
                              "BEAR-Lag or CPQ), got {}: choose another detector, or give the --run of such an "
                              "agent".format("none" if adapter is None else adapter.name))

    def scores(self, data, index, seed, adapter=None, reward_scale=1.0, cost_scale=1.0):
        """The larger gap of both critics. Shape [rows]."""
        self.check(adapter)
        done = np.zeros(index.rows, bool)
        done[index.stops - 1] = True
        out = np.zeros(index.rows, np.float32)

        def read(key, block):
            return torch.as_tensor(np.asarray(data[key][block], np.float32), device=adapter.device)

        few = np.random.default_rng(seed).choice(index.rows, min(FEW, index.rows), replace=False)
        for heads, column, scale in ((adapter.reward_heads, "rewards", reward_scale),
                                     (adapter.cost_heads, "costs", cost_scale)):
            truth = (scale * to_go(data[column], done, adapter.gamma)).astype(np.float32)
            value = np.empty(index.rows, np.float32)
            with torch.no_grad():
                for first in range(0, index.rows, models.CHUNK):
                    block = slice(first, first + models.CHUNK)
                    value[block] = heads(read("observations", block), read("actions", block)).mean(0).cpu().numpy()
            line = theilslopes(truth[few], value[few]) if np.ptp(value[few]) > 0 else (0.0, np.median(truth[few]))
            gap = np.abs(truth - line[0] * value - line[1])
            np.maximum(out, gap / max(1.4826 * float(np.median(gap)), 1e-6), out=out)
        return out
