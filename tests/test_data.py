"""Trajectories, manifests, poisoning and views."""
import dataclasses

import numpy as np
import pytest
import torch

from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import poison, repeat_attack
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.data.views import DatasetView, TransitionStore, forget_and_retain
from osrl_unlearn.errors import ConfigError, ManifestMismatch
from osrl_unlearn.testing import toy_data


def test_units_cover_every_row_once_and_add_up():
    data = toy_data()
    index = TrajectoryIndex(data)
    for unit in ("trajectory", "segment", "transition"):
        units = index.units(unit, 4)
        assert np.array_equal(units.rows(), np.arange(len(data["rewards"])))
        assert units.costs.sum() == data["costs"].sum()
        assert (units.starts - units.offsets == index.starts[np.searchsorted(index.ids, units.trajectory)]).all()


def test_a_tail_without_an_end_is_a_trajectory_of_its_own():
    data = {key: column[:-3] for key, column in toy_data(2, 5).items()}
    assert TrajectoryIndex(data).stops[-1] == len(data["rewards"])


def test_cost_hide_takes_the_most_costly_trajectories():
    data = toy_data()
    index = TrajectoryIndex(data)
    costs = index.units("trajectory").costs
    result = poison(data, "cost_hide", rate=0.25)
    chosen = [span[0] for span in result.manifest.spans]
    assert len(chosen) == 3
    assert min(costs[chosen]) >= max(np.delete(costs, chosen))
    rows = result.manifest.row_numbers(result.data)
    assert result.data["costs"][rows].sum() == 0 and data["costs"][rows].sum() > 0
    assert np.array_equal(result.data["rewards"], data["rewards"])


def test_reward_bait_scales_the_rewards():
    data = toy_data()
    result = poison(data, "reward_bait", rate=0.25, options={"reward_scale": 3})
    rows = result.manifest.row_numbers(result.data)
    assert np.allclose(result.data["rewards"][rows], 3 * data["rewards"][rows])


def test_units_without_a_cost_are_not_poisoned():
    data = toy_data()
    result = poison(data, "cost_hide", rate=1.0, unit="transition")
    rows = result.manifest.row_numbers(result.data)
    assert np.array_equal(rows, np.flatnonzero(data["costs"] > 0))


@pytest.mark.parametrize("unit", ["trajectory", "segment", "transition"])
def test_inject_adds_recordings_with_one_end_each(unit):
    data = toy_data()
    result = poison(data, "inject", rate=0.2, unit=unit, options={"segment_length": 4})
    new = {key: column[len(data["rewards"]):] for key, column in result.data.items()}
    assert new["timeouts"].sum() == len(result.manifest.spans) and not new["terminals"].any() and new["timeouts"][-1]
    assert new["costs"].sum() == 0
    index = TrajectoryIndex(result.data)
    assert np.array_equal(result.ids, index.row_ids())
    assert min(span[0] for span in result.manifest.spans) == len(TrajectoryIndex(data).ids)


def test_ids_of_filtered_data_are_kept():
    data = toy_data(4)
    index = TrajectoryIndex(data)
    keep = np.isin(index.row_ids(), [1, 3])
    ids = index.row_ids()[keep]
    result = poison({k: v[keep] for k, v in data.items()}, "cost_hide", rate=0.5, ids=ids)
    assert result.manifest.spans[0][0] == 3
    assert np.array_equal(result.manifest.row_numbers(result.data, ids), np.flatnonzero(ids == 3))


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), "a"])
def test_a_wrong_rate_is_refused(rate):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        poison(toy_data(), "cost_hide", rate=rate)


@pytest.mark.parametrize("more, message", [
    (dict(attack="cost_hid"), "did you mean 'cost_hide'"), (dict(unit="row"), "unit"),
    (dict(options={"lenght": 3}), "unknown option"), (dict(options={"segment_length": "x"}), "integer"),
    (dict(options={"segment_length": 0}), "at least 1")])
def test_wrong_names_and_values_are_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        poison(toy_data(), **dict(dict(attack="cost_hide", rate=0.1), **more))


def test_a_manifest_refuses_other_data():
    data = toy_data()
    result = poison(data, "cost_hide", rate=0.3)
    other = dict(result.data, rewards=result.data["rewards"] + 1)
    with pytest.raises(ManifestMismatch, match="rewards differs"):
        result.manifest.verify(other)
    with pytest.raises(ManifestMismatch, match="missing"):
        result.manifest.verify({k: v for k, v in result.data.items() if k != "costs"})
    with pytest.raises(ManifestMismatch, match="no trajectory"):
        dataclasses.replace(result.manifest, spans=[[99, 0, 1]]).row_numbers(data)
    with pytest.raises(ManifestMismatch, match="past the end"):
        dataclasses.replace(result.manifest, spans=[[0, 0, 999]]).row_numbers(data)


def test_what_was_forgotten_stays_forgotten_with_the_next_request():
    data = toy_data()
    first, second, third = (ForgetManifest.of_trajectories(data, wanted) for wanted in ([1, 2], [2, 3], [4]))
    both = second.after(first)
    assert both.spans == sorted(first.spans + second.spans[1:]) and both.rows == both.count()
    assert both.after(first) is both.after(second) is both and both.digest() not in (first.digest(), second.digest())
    withdrawn = dataclasses.replace(third, withdrawn=True)
    assert withdrawn.digest() == dataclasses.replace(withdrawn, absent=None).digest() != third.digest()
    mixed = withdrawn.after(both)
    assert (mixed.spans, mixed.absent, mixed.rows) == (third.spans, both.spans, third.rows)
    assert mixed.count() == third.rows + both.rows and mixed.digest() != withdrawn.digest()
    back = first.after(mixed)  # of the kind that is absent there
    assert (back.spans, back.absent) == (both.spans, third.spans)
    store = TransitionStore(data)
    forget, retain = forget_and_retain(store, mixed.row_numbers(data), 0, mixed.absent_rows(data))
    index = TrajectoryIndex(data)
    owner = np.repeat(index.ids, index.stops - index.starts)
    assert set(owner[forget.rows]) == {4} and set(owner[retain.rows]) == set(index.ids) - {1, 2, 3, 4}
    assert len(forget) + len(retain) + both.rows == len(store)


def test_the_same_attack_can_be_repeated_from_its_manifest():
    data = toy_data()
    result = poison(data, "inject", rate=0.3, unit="segment", seed=5)
    again = repeat_attack(data, result.manifest)
    assert np.array_equal(again.data["rewards"], result.data["rewards"]) and np.array_equal(again.ids, result.ids)
    with pytest.raises(ManifestMismatch):
        repeat_attack(toy_data(seed=1), result.manifest)


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"unit": "trajectory", "spans": [[0, 3, 1]], "rows": 1, "columns": {}}',
    '{"unit": "x", "spans": [], "rows": 0, "columns": {}}',
    '{"unit": "trajectory", "spans": [[0]], "rows": 0, "columns": {}}'] + [
    '{{"unit": "trajectory", "spans": {}, "rows": 0, "columns": {{}}, "schema": {}}}'.format(spans, schema)
    for spans, schema in (("[[1, 2], [3, 4], [5, 6]]", 1), ("[1, 0, 5]", 1), ("[[1.7, 0, 5.5]]", 1),
                          ("[[1, false, 5]]", 1), ("[[1, 0, 99999999999999999999]]", 1), ("[]", '"1"'),
                          ('[], "absent": [[1, 5, 5]]', 1), ('[], "absent": 3', 1))])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text):
    path = tmp_path / "forget.json"
    path.write_text(text)
    with pytest.raises(ManifestMismatch):
        ForgetManifest.load(str(path))


def test_batches_equal_those_of_osrls_dataset():
    pytest.importorskip("osrl")
    from osrl.common import TransitionDataset
    data = toy_data()
    store = TransitionStore(data, 0.1, 2.0)
    theirs = TransitionDataset(dict(data), 0.1, 2.0, state_init=True)
    rows = [0, 5, 14, 15, len(data["rewards"]) - 1]
    samples = [theirs._TransitionDataset__prepare_sample(row) for row in rows]
    for ours, column in zip(store.gather(torch.tensor(rows)), zip(*samples)):
        expected = torch.utils.data.default_collate(list(column))
        assert ours.dtype == expected.dtype and torch.equal(ours, expected)


def test_views_share_memory_are_seeded_and_disjoint():
    data = toy_data()
    store = TransitionStore(data)
    assert store.columns.observations.data_ptr() == data["observations"].ctypes.data
    forget, retain = forget_and_retain(store, np.arange(30), 1)
    assert sorted(forget.rows.tolist() + retain.rows.tolist()) == list(range(len(store)))
    again = DatasetView(store, np.arange(30), 1)
    assert torch.equal(forget.batch(8).rewards, again.batch(8).rewards)
    train, held_out = forget.split(0.1)
    assert not set(train.rows.tolist()) & set(held_out.rows.tolist()) and len(train) + len(held_out) == 30
    with pytest.raises(ConfigError, match="empty"):
        DatasetView(store, np.arange(0))
