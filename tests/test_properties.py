"""Properties that hold for any trajectory lengths, rates and seeds; hypothesis looks for counterexamples."""
import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import make_attack, poison
from osrl_unlearn.data.trajectories import UNITS, TrajectoryIndex, to_go
from osrl_unlearn.data.trigger import Trigger
from osrl_unlearn.errors import ConfigError, DataError, ManifestMismatch
from osrl_unlearn.registry import ATTACKS

few = settings(max_examples=30, deadline=None, derandomize=True)
CHEAP = sorted(name for name in ATTACKS.builtins if not hasattr(ATTACKS.load(name).Options, "surrogate_steps"))
COSTLY_ONLY = {"cost_hide", "reward_bait", "inject", "trigger_backdoor", "camouflage"}  # choose no unit without a cost
seeds = st.integers(0, 2 ** 32 - 1)
lengths_of_trajectories = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def make_data(lengths, tail, seed):
    """Random data of trajectories of these lengths; with ``tail`` the last one has no end."""
    rng = np.random.default_rng(seed)
    rows, stops = sum(lengths), np.cumsum(lengths)
    observations = rng.normal(size=(rows + 1, 3)).astype(np.float32)
    terminals, timeouts = np.zeros(rows, bool), np.zeros(rows, bool)
    terminals[stops - 1] = rng.random(len(lengths)) < 0.5
    timeouts[stops - 1] = ~terminals[stops - 1] | (rng.random(len(lengths)) < 0.2)
    if tail:
        terminals[-1] = timeouts[-1] = False
    return {"observations": observations[:-1], "next_observations": observations[1:],
            "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
            "rewards": rng.normal(size=rows).astype(np.float32),
            "costs": (rng.random(rows) < 0.4).astype(np.float32), "terminals": terminals, "timeouts": timeouts}


datasets = st.builds(make_data, lengths_of_trajectories, st.booleans(), seeds)


@few
@given(lengths_of_trajectories, st.booleans(), seeds, st.sampled_from(UNITS), st.integers(1, 12))
def test_units_partition_every_trajectory_in_order(lengths, tail, seed, unit, segment_length):
    data = make_data(lengths, tail, seed)
    index = TrajectoryIndex(data)
    assert np.array_equal(index.stops - index.starts, lengths) and index.rows == sum(lengths)
    assert np.array_equal(index.row_ids(), np.repeat(np.arange(len(lengths)), lengths))
    units = index.units(unit, segment_length)
    size = {"trajectory": max(lengths), "segment": segment_length, "transition": 1}[unit]
    expected, start = [], 0
    for number, length in enumerate(lengths):
        for offset in range(0, length, size):
            stop = min(offset + size, length)
            expected.append((number, start + offset, start + stop, offset))
        start += length
    found = zip(units.trajectory, units.starts, units.stops, units.offsets)
    assert [tuple(map(int, one)) for one in found] == expected
    assert np.array_equal(units.rows(), np.arange(index.rows))
    for sums, column in ((units.returns, "rewards"), (units.costs, "costs")):
        naive = [data[column][a:b].astype(np.float64).sum() for a, b in zip(units.starts, units.stops)]
        assert np.allclose(sums, naive, atol=1e-12, rtol=0)


@few
@given(lengths_of_trajectories, st.booleans(), seeds, st.floats(0, 1))
def test_to_go_is_the_discounted_sum_to_the_end(lengths, tail, seed, gamma):
    data = make_data(lengths, tail, seed)
    done = data["terminals"] | data["timeouts"]
    expected, following = np.zeros(len(done)), 0.0
    for row in reversed(range(len(done))):
        following = expected[row] = float(data["rewards"][row]) + (0.0 if done[row] else gamma * following)
    assert np.allclose(to_go(data["rewards"], done, gamma), expected, atol=1e-9, rtol=0)


@few
@given(st.lists(st.integers(0, 30), max_size=12), st.sets(st.integers(-4, 3), min_size=1, max_size=3),
       st.one_of(st.just("always"), st.builds("{}:{}".format, st.sampled_from(["first", "every"]), st.integers(1, 9))))
def test_a_trigger_writes_its_values_where_its_schedule_says(steps, dims, schedule):
    trigger = Trigger(sorted(dims), [10.0 + dim for dim in sorted(dims)], schedule)
    kind, _, number = schedule.partition(":")
    before = np.random.default_rng(0).normal(size=(len(steps), 4)).astype(np.float32)
    expected = before.copy()
    for row, step in enumerate(steps):
        shows = kind == "always" or (step < int(number) if kind == "first" else step % int(number) == 0)
        assert trigger.shows(np.array([step]))[0] == shows
        for dim in trigger.dims if shows else ():
            expected[row, dim] = 10.0 + dim
    given_rows = before.copy()
    after = trigger.apply(given_rows, np.array(steps, int))
    assert np.array_equal(after, expected) and after.dtype == before.dtype and np.array_equal(given_rows, before)


# Manifests ------------------------------------------------------------------------------------------------------------


span = st.tuples(st.integers(0, 99), st.integers(0, 50), st.integers(1, 50)).map(lambda s: [s[0], s[1], s[1] + s[2]])


@few
@given(st.lists(span, max_size=6), st.sampled_from(UNITS), st.floats(0, 1), seeds, st.booleans(), st.booleans())
def test_a_manifest_survives_its_file(tmp_path_factory, spans, unit, rate, seed, labelled, removed):
    manifest = ForgetManifest(
        unit=unit, spans=spans, rows=len({(one, row) for one, a, b in spans for row in range(a, b)}),
        columns={"costs": {"before": None, "after": "a"}},
        attack={"name": "x", "options": {"a": rate}, "facts": {"b": [1.5]}}, rate=rate, seed=seed, task="T",
        parts=["p"] * len(spans) if labelled else None, removed=spans if removed else None)
    path = str(tmp_path_factory.getbasetemp() / "forget.json")
    manifest.save(path)
    assert ForgetManifest.load(path) == manifest


@st.composite
def data_ids_and_spans(draw):
    """Data, ids of the trajectories in any order, and spans [id, first, stop] within them."""
    lengths = draw(lengths_of_trajectories)
    names = draw(st.lists(st.integers(0, 50), min_size=len(lengths), max_size=len(lengths), unique=True))
    spans = []
    for _ in range(draw(st.integers(1, 6))):
        which = draw(st.integers(0, len(lengths) - 1))
        first = draw(st.integers(0, lengths[which] - 1))
        spans.append([names[which], first, draw(st.integers(first + 1, lengths[which]))])
    return make_data(lengths, draw(st.booleans()), 0), lengths, names, spans


@few
@given(data_ids_and_spans(), st.integers(1, 5))
def test_row_numbers_are_the_sorted_union_of_the_spans(case, past):
    data, lengths, names, spans = case
    ids = np.repeat(names, lengths)
    manifest = ForgetManifest(unit="segment", spans=spans, rows=0, columns={})
    starts = dict(zip(names, np.cumsum([0] + lengths)))
    expected = sorted({starts[name] + row for name, a, b in spans for row in range(a, b)})
    assert manifest.row_numbers(data, ids).tolist() == expected
    assert ForgetManifest.of(data, spans).rows == len(expected)
    name, first, _ = spans[-1]
    too_far = spans[:-1] + [[name, first, lengths[names.index(name)] + past]]
    with pytest.raises(ManifestMismatch, match="past the end of trajectory {}".format(name)):
        dataclasses.replace(manifest, spans=too_far).row_numbers(data, ids)
    with pytest.raises(ManifestMismatch, match="no trajectory of that id"):
        dataclasses.replace(manifest, spans=spans + [[51, 0, 1]]).row_numbers(data, ids)


# Poisoning ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHEAP)
@few
@given(lengths_of_trajectories, st.booleans(), seeds, st.floats(0, 1), st.sampled_from(UNITS), st.integers(1, 12))
def test_exactly_what_the_manifest_says_is_poisoned(name, lengths, tail, seed, rate, unit, segment_length):
    data = make_data(lengths, tail, seed)
    before = copy.deepcopy(data)
    names = np.random.default_rng(seed).permutation(len(lengths) + 3)[:len(lengths)]
    ids = np.repeat(names, lengths)
    attack = make_attack(name, {"segment_length": segment_length})
    unit = unit if unit in attack.units else "trajectory"
    units = TrajectoryIndex(data, ids).units(unit, segment_length)
    count = round(rate * len(units.starts))
    eligible = units.take(units.costs > 0 if name in COSTLY_ONLY else slice(None))
    count = min(count, len(eligible.starts))
    call = dict(rate=rate, unit=unit, seed=seed, ids=ids)
    if attack.removes_rows and count == len(lengths):
        with pytest.raises(ConfigError, match="whole dataset"):
            poison(data, attack, **call)
        return
    if attack.adds_rows and tail and count:
        with pytest.raises(DataError, match="end within a trajectory"):
            poison(data, attack, **call)
        return
    result = poison(data, attack, **call)
    for column in before:
        assert np.array_equal(data[column], before[column])
        assert result.data[column].dtype == before[column].dtype
    manifest, rows = result.manifest, result.manifest.row_numbers(result.data, result.ids)
    assert manifest.rows == len(rows)
    if attack.removes_rows:
        assert len(manifest.removed) == count and not len(rows)
        gone = dataclasses.replace(manifest, spans=manifest.removed).row_numbers(data, ids)
        for column in before:
            assert np.array_equal(result.data[column], np.delete(before[column], gone, 0))
        assert np.array_equal(result.ids, np.delete(ids, gone))
        return
    if attack.adds_rows:
        assert np.array_equal(rows, np.arange(len(ids), len(result.ids)))
        done = result.data["terminals"] | result.data["timeouts"]
        assert done[rows].sum() == len(manifest.spans) == manifest.trajectories <= count
        assert not set(result.ids[rows]) & set(names)
    else:
        assert len(manifest.spans) == count
        wanted = {(int(t), int(o), int(o + b - a)) for t, a, b, o in zip(*eligible[:4])}
        assert set(map(tuple, manifest.spans)) <= wanted
    for column in before:
        differ = (result.data[column][:len(ids)] != before[column]).reshape(len(ids), -1).any(1)
        assert not differ[np.setdiff1d(np.arange(len(ids)), rows)].any()
        assert column in attack.columns or not differ.any()
    again = poison(data, make_attack(name, {"segment_length": segment_length}), **call)
    assert again.manifest == manifest
