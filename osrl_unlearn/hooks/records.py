"""What a script was given, and what it trained."""
import dataclasses
from typing import Any, List, Optional

import numpy as np
import torch

from osrl_unlearn.data.manifest import ForgetManifest, column_hashes
from osrl_unlearn.data.poison import BLOCK, REQUIRED
from osrl_unlearn.errors import RunError
from osrl_unlearn.hooks.reach import Reach


@dataclasses.dataclass
class Record:
    """One data dictionary that a script got from ``pre_process_data``."""
    given: Any  # what the script has, and may change in place
    data: Any   # the same columns, which share their memory with it
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
    hashes: Any = None  # of the columns, as they were; empty if it does not matter what becomes of them
    datasets: List[Any] = dataclasses.field(default_factory=list)  # (dataset, its cost_reverse), not seen in use

    def __post_init__(self):
        if self.hashes is None:
            self.hashes = column_hashes(self.data) if self.manifest is None else {
                name: digests["after"] for name, digests in self.manifest.columns.items()}

    def reach(self):
        """A new :class:`Reach` for the rows that are to be found."""
        return Reach(self.data, np.empty(0, np.int64) if self.manifest is None else
                     self.manifest.row_numbers(self.data, self.ids))

    def check_intact(self):
        """Raise RunError if the script has changed the data in place: nothing could be told from them any more."""
        found = column_hashes(self.data)
        changed = [name for name in sorted(self.hashes) if found[name] != self.hashes[name]]
        if changed:
            raise RunError("the script changed {} in place after pre_process_data(), so it is not known what of the "
                           "data is poisoned or to be forgotten: train on the data as they are".format(
                               ", ".join(changed)))

    def check_datasets(self):
        """Raise RunError if one of OSRL's datasets that got these data holds others: the script replaced them."""
        for dataset, cost_reverse in self.datasets:
            reach, rows, known = self.reach(), 0, 0.0
            for columns in _blocks(dataset.dataset, cost_reverse):
                size, share = len(columns["observations"]), reach.known(columns)
                rows += size
                if share is not None:  # otherwise they have another size
                    known += size * share
                    reach.look(columns, 1.0, 1.0)
            if rows and (not known or reach.rows and not reach.reached
                         or self.manifest.removed is not None and round(known) < rows):
                raise RunError("the script replaced the data of its {}, so what it trained is not known to be "
                               "poisoned".format(type(dataset).__name__))


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


def _blocks(held, cost_reverse):
    """What one of OSRL's datasets holds, which is columns or a list of trajectories, as batches of tensors."""
    parts = held if isinstance(held, (list, tuple)) else [held]
    for part in parts if all(isinstance(part, dict) and "observations" in part for part in parts) else ():
        for start in range(0, len(part["observations"]), BLOCK):
            columns = {name: torch.as_tensor(np.array(part[name][start:start + BLOCK], np.float32))
                       for name in ("observations", "actions", "rewards", "costs") if name in part}
            if cost_reverse:
                columns["costs"] = 1 - columns["costs"]
            yield columns


def equal(one, other):
    """Whether a dictionary of arrays holds the same columns, such as a copy that a script made."""
    return isinstance(other, dict) and all(
        name in other and np.array_equal(one[name], other[name]) for name in REQUIRED)
