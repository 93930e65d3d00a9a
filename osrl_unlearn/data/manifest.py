"""The forget manifest: which rows are to be forgotten, where they come from, and of which data they are part."""
import dataclasses
import hashlib
import json
import os
import platform
from typing import Any, Dict, List, Optional

import numpy as np

from osrl_unlearn import __version__
from osrl_unlearn.data.trajectories import UNITS, TrajectoryIndex, Units
from osrl_unlearn.data.trigger import Trigger
from osrl_unlearn.errors import ConfigError, ManifestMismatch
from osrl_unlearn.files import sha256_array, write_json

SCHEMA = 1
EXPECTED = "expected the JSON file that --poison, 'osrl-unlearn detect' or 'osrl-unlearn manifest' writes"
# TransitionDataset writes these into the dictionary it is given; they follow from terminals and timeouts.
DERIVED = frozenset({"done", "is_init"})


def column_hashes(data):
    """{column: sha256} of every column of numbers of a data dictionary that is not derived from others."""
    return {name: sha256_array(data[name]) for name in sorted(data)
            if name not in DERIVED and not np.asarray(data[name]).dtype.hasobject}


def versions():
    """Versions of what a result depends on; packages that are not there are left out."""
    import importlib.metadata
    found = {"python": platform.python_version(), "osrl-unlearn": __version__}
    for package in ("osrl-lib", "dsrl", "fast-safe-rl", "torch", "numpy", "gymnasium", "bullet-safety-gym",
                    "safety-gymnasium"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclasses.dataclass(frozen=True)
class ForgetManifest:
    """What to forget, as JSON on disk.

    ``spans`` holds [trajectory id, first row, one past the last row], rows counted from the start of the trajectory;
    ids count trajectories in file order. ``attack`` is None for a plain deletion request. ``columns`` holds the sha256
    of every column {"before": of the clean data or None, "after": of the data that the agent is trained on}. ``parts``
    labels the spans of an attack that has several parts; ``removed`` holds the spans (of the clean data) of an attack
    that only removes; ``detection`` says how spans were found that nobody named. ``withdrawn`` says that nothing is
    held against the rows: they are to go because somebody wants them back. ``absent`` holds spans that are gone as
    well, by earlier requests of the other kind: they are not retained, and nothing is done about them.
    """
    unit: str
    spans: List[List[int]]
    rows: int
    columns: Dict[str, Dict[str, Optional[str]]]
    attack: Optional[Dict[str, Any]] = None
    rate: Optional[float] = None
    seed: Optional[int] = None
    task: Optional[str] = None
    dataset: Optional[str] = None
    reward_scale: Optional[float] = None
    cost_scale: Optional[float] = None
    cost_limit: Optional[float] = None
    parts: Optional[List[str]] = None
    removed: Optional[List[List[int]]] = None
    detection: Optional[Dict[str, Any]] = None
    withdrawn: bool = False
    absent: Optional[List[List[int]]] = None
    versions: Dict[str, str] = dataclasses.field(default_factory=versions)
    schema: int = SCHEMA

    @classmethod
    def of(cls, data, spans, unit="trajectory", **more):
        """The manifest of a plain deletion request: forget ``spans`` of ``data``."""
        spans = [[int(v) for v in span] for span in spans]
        columns = {name: {"before": None, "after": digest} for name, digest in column_hashes(data).items()}
        return cls(unit=unit, spans=spans, rows=_distinct_rows(spans), columns=columns, **more)

    @classmethod
    def of_trajectories(cls, data, wanted, ids=None, **more):
        """The manifest of whole trajectories, by their ids. Raises ConfigError for one that the data do not have."""
        index = TrajectoryIndex(data, ids)
        unknown = np.setdiff1d(wanted, index.ids)
        if len(unknown):
            raise ConfigError("the data have no trajectory {}: theirs are {:,} of {} to {}".format(
                unknown[0], len(index.ids), min(index.ids), max(index.ids)))
        where = np.flatnonzero(np.isin(index.ids, wanted))
        return cls.of(data, [[index.ids[i], 0, index.stops[i] - index.starts[i]] for i in where], **more)

    def trigger(self):
        """The :class:`~osrl_unlearn.data.trigger.Trigger` of the attack on record, or None."""
        facts = (self.attack or {}).get("facts", {})
        return Trigger(**facts["trigger"]) if "trigger" in facts else None

    def part(self, name):
        """The manifest of the spans that ``parts`` labels ``name``. Raises ManifestMismatch if there are none."""
        spans = [span for span, part in zip(self.spans, self.parts or ()) if part == name]
        if not spans:
            raise ManifestMismatch("the forget manifest has no part '{}': its parts are {}".format(
                name, ", ".join(sorted(set(self.parts or ()))) or "not labelled"))
        return dataclasses.replace(self, spans=spans, rows=_distinct_rows(spans), parts=[name] * len(spans))

    def after(self, earlier):
        """This request, to an agent that has forgotten what ``earlier`` names: that stays forgotten, and is so with it.

        Nothing of it may be retained again. What is of this request's kind, withdrawn or held against, joins its spans.
        """
        same, other = earlier.spans, earlier.absent or []
        if earlier.withdrawn != self.withdrawn:
            same, other = other, same
        spans, absent = _joined(self.spans, same), _joined(self.absent or [], other)
        if (spans, absent) == (self.spans, self.absent or []):
            return self
        return dataclasses.replace(self, spans=spans, rows=_distinct_rows(spans), absent=absent or None, parts=None)

    def digest(self):
        """Hex digest of what is to be forgotten, and of which data."""
        request = [self.spans, self.columns, self.withdrawn] + ([self.absent] if self.absent else [])
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    def count(self):
        """Number of rows that are not retained: those named by this request and those by earlier ones."""
        return _distinct_rows(self.spans + (self.absent or []))

    @property
    def trajectories(self):
        """Number of trajectories that are touched."""
        return len({span[0] for span in self.spans})

    def check_not_empty(self):
        """Raise ConfigError if the manifest names no rows."""
        if not self.rows:
            raise ConfigError("there is nothing to forget: the forget manifest names no rows{}".format(
                ", since its attack only removed rows" if self.removed is not None else ""))

    def save(self, path):
        """Write the manifest as JSON, atomically."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path):
        """Read a manifest. Raises ManifestMismatch when the file is not one."""
        if not os.path.isfile(path):
            raise ManifestMismatch("no forget manifest at {}: {}".format(path, EXPECTED))
        try:
            with open(path, encoding="utf-8") as file:
                value = json.load(file)
            if not isinstance(value, dict):
                raise ValueError("it holds no mapping")
            lacking = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory} - set(value)
            if lacking:
                raise ValueError("it lacks " + ", ".join(sorted(lacking)))
            known = {f.name for f in dataclasses.fields(cls)}
            manifest = cls(**{k: v for k, v in value.items() if k in known})
            if not _whole(manifest.schema):
                raise ValueError("its schema is {!r}".format(manifest.schema))
            # Spans may be edited by hand.
            for span in manifest.spans + (manifest.absent or []):
                if not isinstance(span, list) or len(span) != 3 or not all(map(_whole, span)):
                    raise ValueError("the span {!r} is not [trajectory, start, stop]".format(span))
            spans = np.asarray(manifest.spans + (manifest.absent or []), dtype=np.int64).reshape(-1, 3)
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ManifestMismatch("{} is not a forget manifest ({}): {}".format(path, str(error)[:100], EXPECTED))
        if manifest.schema > SCHEMA:
            raise ManifestMismatch("{} has schema {}, this version reads up to {}: upgrade osrl-unlearn".format(
                path, manifest.schema, SCHEMA))
        if manifest.unit not in UNITS or (spans[:, 1] < 0).any() or (spans[:, 2] <= spans[:, 1]).any():
            raise ManifestMismatch("{}: every span must be [trajectory, start, stop] with 0 <= start < stop and the "
                                   "unit one of {}".format(path, ", ".join(UNITS)))
        return dataclasses.replace(manifest, rows=_distinct_rows(manifest.spans))

    def verify(self, data, stage="after"):
        """Raise ManifestMismatch unless every column of ``data`` has the recorded hash of ``stage``."""
        wanted = {name: digests.get(stage) for name, digests in self.columns.items()}
        if any(digest is None for digest in wanted.values()):
            raise ManifestMismatch("the forget manifest records no hashes of the data {} poisoning".format(
                "before" if stage == "before" else "after"))
        found = column_hashes(data)
        missing = sorted(set(wanted) - set(found))
        if missing:
            raise ManifestMismatch("the forget manifest belongs to other data: the columns {} are missing".format(
                ", ".join(missing)))
        differ = [name for name in sorted(wanted) if wanted[name] != found[name]]
        if differ:
            raise ManifestMismatch(
                "the forget manifest belongs to other data: {} differ{} from what it records{}; use the dataset and "
                "the preprocessing options it was made with".format(
                    ", ".join(differ), "s" if len(differ) == 1 else "",
                    " ({})".format(self.dataset) if self.dataset else ""))

    def absent_rows(self, data, ids=None):
        """Sorted row numbers of what is ``absent``. Shape [rows]. Raises ManifestMismatch."""
        return dataclasses.replace(self, spans=self.absent or []).row_numbers(data, ids)

    def row_numbers(self, data, ids=None):
        """Sorted row numbers of the forget set in ``data``. Shape [forget rows]. Raises ManifestMismatch."""
        index = TrajectoryIndex(data, ids)
        spans = np.asarray(self.spans, dtype=np.int64).reshape(-1, 3)
        position = {int(i): n for n, i in enumerate(index.ids)}
        unknown = [int(i) for i in spans[:, 0] if int(i) not in position]
        if unknown:
            raise ManifestMismatch("the forget manifest names trajectory {}, but the data has no trajectory of that "
                                   "id".format(unknown[0]))
        where = np.array([position[int(i)] for i in spans[:, 0]], dtype=np.int64)
        starts, stops = index.starts[where] + spans[:, 1], index.starts[where] + spans[:, 2]
        if (stops > index.stops[where]).any():
            bad = int(spans[np.argmax(stops > index.stops[where]), 0])
            raise ManifestMismatch("the forget manifest names rows past the end of trajectory {}".format(bad))
        nothing = np.zeros(len(starts))
        return np.unique(Units(spans[:, 0], starts, stops, spans[:, 1], nothing, nothing).rows())


def _whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _joined(spans, more):
    """``spans``, and those of ``more`` that are not among them."""
    known = set(map(tuple, spans))
    new = [span for span in more if tuple(span) not in known]
    return sorted(spans + new) if new else spans


def _distinct_rows(spans):
    """Number of rows that ``spans`` name, which may overlap."""
    total, owner, reached = 0, None, 0
    for trajectory, start, stop in sorted(map(list, spans)):
        if trajectory != owner:
            owner, reached = trajectory, 0
        total += max(0, stop - max(start, reached))
        reached = max(stop, reached)
    return total
