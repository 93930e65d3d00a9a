"""Traffic that nobody seeds."""
import enum

import numpy as np


class TrafficMode(enum.Enum):
    Hybrid = "hybrid"


class TrafficManager:
    def __init__(self):
        self.np_random = np.random.RandomState()
