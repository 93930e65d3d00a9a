"""Apply an attack to DSRL's dictionary of arrays."""
import dataclasses
import math
from typing import NamedTuple

import numpy as np

from osrl_unlearn.data.manifest import ForgetManifest, column_hashes
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.options import parse
from osrl_unlearn.registry import ATTACKS

REQUIRED = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")


class Poisoned(NamedTuple):
    """What :func:`poison` returns: new data, the manifest, and the trajectory id of each row of the new data."""
    data: dict
    manifest: ForgetManifest
    ids: np.ndarray


def poison(data, attack, *, rate, unit="trajectory", seed=0, ids=None, options=None, task=None, dataset=None):
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

    Returns:
        :class:`Poisoned`.

    Raises:
        ConfigError: unknown attack, option or unit, or a rate outside [0, 1].
    """
    if isinstance(attack, str):
        cls = ATTACKS.load(attack)
        attack = cls(parse(cls.Options, options or {}, "--poison."))
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1 or math.isnan(rate):
        raise ConfigError("--poison.rate must be a share between 0 and 1, got {}".format(rate))
    if unit not in attack.units:
        raise ConfigError("the attack '{}' does not work on the unit '{}': choose one of {}".format(
            attack.name, unit, ", ".join(sorted(attack.units))))
    index = TrajectoryIndex(data, ids)
    units = index.units(unit, attack.options.segment_length)
    rng = np.random.default_rng(seed)
    chosen = units.take(attack.select(units, int(round(rate * len(units.starts))), rng))
    out = dict(data)
    if len(chosen.starts):
        rows = chosen.rows()
        new = attack.corrupt({name: data[name][rows] for name in REQUIRED}, rng)
        _check(attack, new, len(rows))
        if attack.adds_rows:
            out, spans = _append(data, new, rows, index)
        else:
            spans = np.stack([chosen.trajectory, chosen.offsets, chosen.offsets + chosen.stops - chosen.starts], 1)
            for name, values in new.items():
                out[name] = np.array(data[name])
                out[name][rows] = values
    else:
        spans = np.zeros((0, 3), np.int64)
    before = column_hashes(data)
    after = dict(before, **column_hashes({name: out[name] for name in out if out[name] is not data[name]}))
    manifest = ForgetManifest(
        unit=unit, spans=spans.tolist(), rows=int((spans[:, 2] - spans[:, 1]).sum()),
        columns={name: {"before": before[name], "after": after[name]} for name in after},
        attack={"name": attack.name, "options": dataclasses.asdict(attack.options)}, rate=float(rate), seed=int(seed),
        task=task, dataset=dataset)
    row_ids = index.row_ids()
    if attack.adds_rows:
        row_ids = np.concatenate([row_ids, np.repeat(spans[:, 0], spans[:, 2])])
    return Poisoned(out, manifest, row_ids)


def repeat_attack(data, manifest, ids=None):
    """Poison ``data`` again exactly as ``manifest`` records. Raises ManifestMismatch if it is not the same data."""
    manifest.verify(data, "before")
    again = poison(data, manifest.attack["name"], rate=manifest.rate, unit=manifest.unit, seed=manifest.seed, ids=ids,
                   options=manifest.attack["options"], task=manifest.task)
    manifest.verify(again.data)
    return again


def _check(attack, new, rows):
    unexpected = set(new) - set(attack.columns)
    if unexpected or any(len(values) != rows for values in new.values()):
        raise ConfigError("the attack '{}' returned columns or rows it did not declare: {}".format(
            attack.name, ", ".join(sorted(unexpected)) or "wrong length"))


def _append(data, new, rows, index):
    owner = index.row_ids()[rows]
    firsts = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    lasts = np.append(firsts[1:], len(rows)) - 1
    out = {}
    for name, column in data.items():
        added = np.array(new.get(name, column[rows]))
        if name in ("terminals", "timeouts"):
            added[:] = 0
            added[lasts] = name == "timeouts"
        out[name] = np.concatenate([column, added])
    lengths = lasts - firsts + 1
    ids = int(index.ids.max()) + 1 + np.arange(len(lengths))
    return out, np.stack([ids, np.zeros_like(ids), lengths], 1)
