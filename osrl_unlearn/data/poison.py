"""Apply an attack to DSRL's dictionary of arrays."""
import dataclasses
import math
from typing import Callable, NamedTuple, Optional

import numpy as np

from osrl_unlearn.attacks.base import Attack
from osrl_unlearn.data.manifest import ForgetManifest, column_hashes
from osrl_unlearn.data.trajectories import TrajectoryIndex, Units
from osrl_unlearn.errors import ConfigError, DataError
from osrl_unlearn.options import parse
from osrl_unlearn.registry import ATTACKS

REQUIRED = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
BLOCK = 1 << 16   # chosen rows that an attack sees at a time
SAMPLE = 1 << 17  # rows that an attack may learn from


class Poisoned(NamedTuple):
    """What :func:`poison` returns: new data, the manifest, and the trajectory id of each row of the new data."""
    data: dict
    manifest: ForgetManifest
    ids: np.ndarray


def make_attack(name, options=None):
    """The attack called ``name`` with ``options`` (a mapping). Raises ConfigError."""
    cls = ATTACKS.load(name)
    return cls(parse(cls.Options, options or {}, "--poison."))


def poison(data, attack, *, rate, unit="trajectory", seed=0, ids=None, options=None, task=None, dataset=None,
           state=None):
    """Poison a copy of ``data``; only the columns that the attack touches are copied.

    Args:
        data: DSRL's dictionary of arrays with the same number of rows; it is not changed.
        attack: name of an attack, or an :class:`~osrl_unlearn.attacks.base.Attack`.
        rate: share of the units, in [0, 1], that the attacker may use.
        unit: "trajectory", "segment" or "transition".
        seed: seed of the attack's own generator; no global generator is used.
        ids: trajectory id of each row, shape [rows]; default: counted in file order.
        options: the attack's options, as a mapping, if ``attack`` is a name.
        task, dataset: recorded in the manifest.
        state: what the attack learned before (:meth:`~osrl_unlearn.attacks.base.Attack.state`), to repeat it exactly.

    Returns:
        :class:`Poisoned`. The manifest of an attack that removes rows names nothing to forget, but what is gone.

    Raises:
        ConfigError: unknown attack, option or unit, or a rate outside [0, 1].
        DataError: rows are to be added, but the data end within a trajectory.
    """
    attack = make_attack(attack, options) if isinstance(attack, str) else attack
    index = TrajectoryIndex(data, ids)
    plan = Plan.make(attack, index, lambda rows: {name: data[name][rows] for name in REQUIRED}, rate=rate, unit=unit,
                     seed=seed, state=state)
    out, row_ids = dict(data), index.row_ids()
    if len(plan.chosen.starts):
        if attack.removes_rows:
            keep = np.ones(index.rows, bool)
            keep[plan.chosen.rows()] = False
            out = {name: column[keep] for name, column in data.items()}
            row_ids = row_ids[keep]
        elif attack.adds_rows:
            if not (data["terminals"][-1] or data["timeouts"][-1]):
                raise DataError("the data end within a trajectory, which rows that are added would continue: mark the "
                                "last row in 'timeouts', or leave the tail out")
            blocks = list(plan.blocks())
            for name, column in data.items():
                out[name] = np.concatenate(
                    [column] + [new[name] if name in new else column[rows] for rows, new in blocks])
            row_ids = np.concatenate([row_ids, plan.added_ids()])
        else:
            for rows, new in plan.blocks():
                for name, values in new.items():
                    if out[name] is data[name]:
                        out[name] = np.array(data[name])
                    out[name][rows] = values
    before = column_hashes(data)
    after = dict(before, **column_hashes({name: out[name] for name in out if out[name] is not data[name]}))
    manifest = plan.manifest({name: {"before": before[name], "after": after[name]} for name in after}, task, dataset)
    return Poisoned(out, manifest, row_ids)


@dataclasses.dataclass
class Plan:
    """Which units an attack has chosen; what it does to them comes in blocks, so that data need not fit in memory."""
    attack: Attack
    index: TrajectoryIndex
    read: Callable  # row numbers in ascending order -> {column: array}
    chosen: Units
    parts: Optional[list]
    rate: float
    unit: str
    seed: int

    @classmethod
    def make(cls, attack, index, read, *, rate, unit, seed, state=None):
        """Let ``attack`` learn and choose. ``read`` gives DSRL's columns at row numbers. Raises ConfigError."""
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1 or math.isnan(rate):
            raise ConfigError("the rate must be a share between 0 and 1, got {}".format(rate))
        if unit not in attack.units:
            raise ConfigError("the attack '{}' does not work on the unit '{}': choose one of {}".format(
                attack.name, unit, ", ".join(sorted(attack.units))))
        units = index.units(unit, attack.options.segment_length)
        count = int(round(rate * len(units.starts)))
        if state:
            attack.set_state(state)
        elif count and type(attack).prepare is not Attack.prepare:
            attack.prepare(read(_sample(index)), seed)
        rng = np.random.default_rng(seed)
        where = np.unique(attack.select(units, count, rng)) if count else np.zeros(0, np.int64)
        if attack.removes_rows and len(where) == len(units.starts):
            raise ConfigError("a rate of {} would remove the whole dataset".format(rate))
        return cls(attack, index, read, units.take(where), attack.parts(len(where), rng), float(rate), unit, int(seed))

    @classmethod
    def recorded(cls, manifest, data, ids=None):
        """What ``manifest`` records of an attack that changed rows of ``data``, which are poisoned already."""
        attack = make_attack(manifest.attack["name"], manifest.attack["options"])
        index = TrajectoryIndex(data, ids)
        units = index.units(manifest.unit, attack.options.segment_length)
        spans = {(trajectory, start) for trajectory, start, _ in manifest.spans}
        where = [n for n, unit in enumerate(zip(units.trajectory.tolist(), units.offsets.tolist())) if unit in spans]
        return cls(attack, index, lambda rows: {name: data[name][rows] for name in REQUIRED}, units.take(where),
                   manifest.parts, manifest.rate, manifest.unit, manifest.seed)

    def blocks(self):
        """(row numbers, the attack's new columns) of about BLOCK chosen rows at a time, cut between trajectories.

        Where rows are added, the new columns hold the ends of the recordings too.
        """
        for units, rows, given, rng in self.draws():
            yield rows, self._corrupt(units, rows, given, rng)

    def draws(self):
        """(units, their row numbers, what the attack is given, its generator) of the same blocks."""
        first = np.flatnonzero(np.concatenate([[True], np.diff(self.chosen.trajectory) != 0]))
        filled = np.cumsum(self.chosen.stops - self.chosen.starts)
        blocks = np.concatenate([[0], filled])[first] // BLOCK
        cuts = np.append(first[np.flatnonzero(np.concatenate([[True], np.diff(blocks) != 0]))], len(filled))
        for number, (a, b) in enumerate(zip(cuts[:-1], cuts[1:])):
            units = self.chosen.take(slice(a, b))
            rows, lengths = units.rows(), units.stops - units.starts
            given = dict(self.read(rows), step=rows - np.repeat(units.starts - units.offsets, lengths))
            if self.parts is not None:
                given["part"] = np.repeat(np.asarray(self.parts[a:b]), lengths)
            # For block 0 the same as default_rng(self.seed), which chose the units.
            yield units, rows, given, np.random.default_rng([self.seed, number])

    def _corrupt(self, units, rows, given, rng):
        lengths = units.stops - units.starts
        new = self.attack.corrupt(given, rng)
        unexpected = set(new) - set(self.attack.columns)
        if unexpected or any(len(values) != len(rows) for values in new.values()):
            raise ConfigError("the attack '{}' returned columns or rows it did not declare: {}".format(
                self.attack.name, ", ".join(sorted(unexpected)) or "wrong length"))
        if self.attack.adds_rows:
            # The last row of each recording is its only end.
            last = np.append(np.diff(np.repeat(units.trajectory, lengths)) != 0, True)
            new = dict(new, terminals=np.zeros(len(rows), bool), timeouts=last)
        return {name: np.asarray(values).astype(given[name].dtype, copy=False) for name, values in new.items()}

    def added_ids(self):
        """Ids of the recordings that the chosen rows become when they are appended: new ones. Shape [chosen rows]."""
        owner = np.repeat(self.chosen.trajectory, self.chosen.stops - self.chosen.starts)
        return int(self.index.ids.max()) + 1 + np.searchsorted(np.unique(owner), owner)

    def manifest(self, columns, task, dataset):
        """The forget manifest, or for an attack that removes rows the record of what is gone."""
        spans = np.stack([self.chosen.trajectory, self.chosen.offsets,
                          self.chosen.offsets + self.chosen.stops - self.chosen.starts], 1)
        if self.attack.adds_rows and len(spans):
            ids, lengths = np.unique(self.added_ids(), return_counts=True)
            spans = np.stack([ids, np.zeros_like(ids), lengths], 1)
        gone = spans if self.attack.removes_rows else None
        spans = spans[:0] if self.attack.removes_rows else spans
        attack = {"name": self.attack.name, "options": dataclasses.asdict(self.attack.options)}
        facts = self.attack.facts() if len(self.chosen.starts) else {}
        return ForgetManifest(
            unit=self.unit, spans=spans.tolist(), rows=int((spans[:, 2] - spans[:, 1]).sum()), columns=columns,
            attack=dict(attack, facts=facts) if facts else attack, rate=self.rate, seed=self.seed, task=task,
            dataset=dataset, parts=None if self.parts is None else [str(part) for part in self.parts],
            removed=None if gone is None else gone.tolist())


def _sample(index):
    """Rows of whole trajectories at equal distances, about SAMPLE at most."""
    count = len(index.starts)
    wanted = min(count, max(1, int(count * SAMPLE / index.rows)))
    which = np.unique(np.linspace(0, count - 1, wanted).astype(np.int64))
    return np.concatenate([np.arange(index.starts[i], index.stops[i]) for i in which])


def repeat_attack(data, manifest, ids=None, state=None):
    """Poison ``data`` again exactly as ``manifest`` records. Raises ManifestMismatch if it is not the same data."""
    manifest.verify(data, "before")
    again = poison(data, manifest.attack["name"], rate=manifest.rate, unit=manifest.unit, seed=manifest.seed, ids=ids,
                   options=manifest.attack["options"], task=manifest.task, state=state)
    manifest.verify(again.data)
    return again
