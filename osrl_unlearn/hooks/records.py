"""What a script was given, and what it trained."""
import dataclasses
from typing import Any, Optional

import numpy as np

from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import REQUIRED
from osrl_unlearn.hooks.reach import Reach


@dataclasses.dataclass
class Record:
    """One data dictionary that a script got from ``pre_process_data``."""
    given: Any  # what the script has, and may change in place
    data: Any   # the same columns, as they were
    ids: Any
    manifest: Optional[ForgetManifest]
    task: str
    cost_limit: Optional[float]
    python_random: Any
    dataset: Optional[str] = None
    reward_scale: Optional[float] = None
    cost_scale: Optional[float] = None
    rows: Optional[int] = None  # how many it gave to one of OSRL's datasets
    saved: bool = False


@dataclasses.dataclass
class Training:
    """One trainer of the script, or one model that it updates without a trainer."""
    trainer: Any
    updates: int = 0
    seconds: float = 0.0
    batch_size: Optional[int] = None
    record: Optional[Record] = None
    reach: Optional[Reach] = None
    saved: int = 0  # after how many updates its last checkpoint was saved

    @property
    def folder(self):
        """The run directory, or None if the trainer's logger writes no files."""
        return getattr(getattr(self.trainer, "logger", None), "log_dir", None)

    @property
    def name(self):
        """What to call it in messages."""
        return type(self.trainer).__name__


def equal(one, other):
    """Whether a dictionary of arrays holds the same columns, such as a copy that a script made."""
    return isinstance(other, dict) and all(
        name in other and np.arrayequal(one[name], other[name]) for name in REQUIRED)
