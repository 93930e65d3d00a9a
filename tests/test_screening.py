"""Requests to forget that are attacks."""
import dataclasses

import numpy as np
import pytest

from osrl_unlearn.data.poison import poison
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.errors import ConfigError, RunError
from osrl_unlearn.screening import screen
from osrl_unlearn.testing import toy_data

LIMIT = 4.0


@pytest.fixture(scope="module")
def data():
    return toy_data(trajectories=120, length=20)


def rows_of(data, trajectories):
    index = TrajectoryIndex(data)
    return np.concatenate([np.arange(index.starts[i], index.stops[i]) for i in sorted(trajectories)])


def test_deleting_the_camouflage_is_warned_of_and_deleting_its_poison_is_not(data):
    result = poison(data, "camouflage", rate=0.2)
    for part, harmful in (("camouflage", True), ("poison", False)):
        rows = result.manifest.part(part).row_numbers(result.data)
        found = screen(result.data, rows, cost_limit=LIMIT)
        assert bool(found["warnings"]) == harmful, (part, found)
    assert found["cost_evidence"]["fall"] < 0


def test_an_equally_large_deletion_of_clean_rows_is_the_control(data):
    count = int(0.15 * 120)
    chosen = np.random.default_rng(0).choice(120, count, replace=False)
    found = screen(data, rows_of(data, chosen), cost_limit=LIMIT)
    assert found["warnings"] == []
    assert abs(found["cost_evidence"]["fall"]) < 0.25


def test_removing_most_of_the_safe_evidence_is_warned_of(data):
    units = TrajectoryIndex(data).units("trajectory")
    safe = np.flatnonzero(units.costs <= LIMIT)
    found = screen(data, rows_of(data, safe[len(safe) // 4:]), cost_limit=LIMIT)
    assert found["safe_evidence"] > 0.5
    assert any("safe and rewarding" in warning for warning in found["warnings"])


@pytest.mark.parametrize("attack", ["cost_hide", "reward_bait", "trigger_backdoor"])
def test_hidden_costs_are_no_evidence_of_safety(data, attack):
    # By their own labels these trajectories are most of what is safe and rewarding.
    result = poison(data, attack, rate=0.3)
    units = TrajectoryIndex(result.data).units("trajectory")
    poisoned = np.isin(np.arange(120), [span[0] for span in result.manifest.spans])
    limit = float(np.quantile(units.costs[~poisoned], 0.2))
    assert poisoned[units.costs <= limit].mean() > 0.5
    found = screen(result.data, result.manifest.row_numbers(result.data), cost_limit=limit)
    assert found["safe_evidence"] < 0.2 and found["warnings"] == []


def test_no_trajectory_within_the_limit_means_no_figure(data):
    costly = dict(data, costs=np.ones_like(data["costs"]))
    assert screen(costly, rows_of(data, [0, 1]), cost_limit=LIMIT)["safe_evidence"] is None


def test_it_is_seeded_and_changes_nothing(data):
    before = {name: column.copy() for name, column in data.items()}
    rows = rows_of(data, range(10))
    state = np.random.get_state()[1].copy()
    assert screen(data, rows, cost_limit=LIMIT, seed=3) == screen(data, rows, cost_limit=LIMIT, seed=3)
    assert np.array_equal(np.random.get_state()[1], state)
    assert all(np.array_equal(data[name], before[name]) for name in data)


def test_the_part_of_a_manifest(data):
    manifest = poison(data, "camouflage", rate=0.2).manifest
    parts = [manifest.part(name) for name in ("poison", "camouflage")]
    assert sum(part.rows for part in parts) == manifest.rows
    assert [len(part.spans) for part in parts] == [6, 18]
    with pytest.raises(Exception, match="no part 'x'"):
        manifest.part("x")
    with pytest.raises(Exception, match="not labelled"):
        dataclasses.replace(manifest, parts=None).part("poison")


def test_a_request_that_names_nothing_is_refused_before_it_is_screened(tmp_path):
    from agents import make_trainer

    from osrl_unlearn.adapters import adapt
    from osrl_unlearn.data.manifest import ForgetManifest
    from osrl_unlearn.unlearning import Trained, UnlearnConfig, run_unlearning
    data = toy_data()
    agent, index = adapt(make_trainer("coptidice")), TrajectoryIndex(data)
    everything = [[int(i), 0, int(b - a)] for i, a, b in zip(index.ids, index.starts, index.stops)]
    for spans, reason in (([], "nothing to forget"), (everything, "names every row")):
        trained = Trained(agent, data, None, ForgetManifest.of(data, spans), str(tmp_path), None, "toy", 5.0, 0.1, 1.0,
                          10, 1.0, 32)
        with pytest.raises(ConfigError, match=reason):
            run_unlearning(trained, UnlearnConfig("fine_tune", steps=1, eval_episodes=0), progress=False)
    assert not list(tmp_path.iterdir())


def test_strict_refuses_what_is_otherwise_warned_of(tmp_path, data):
    from agents import make_trainer

    from osrl_unlearn.adapters import adapt
    from osrl_unlearn.unlearning import Trained, UnlearnConfig, run_unlearning
    result = poison(data, "camouflage", rate=0.2)
    trained = Trained(adapt(make_trainer("coptidice")), result.data, None, result.manifest.part("camouflage"),
                      str(tmp_path), {}, "toy", LIMIT, 0.1, 1.0, 10, 1.0, 32)
    with pytest.raises(RunError, match="refused .strict.: .*says that its behaviour is costly"):
        run_unlearning(trained, UnlearnConfig("fine_tune", steps=1, eval_episodes=0, strict=True), progress=False)
    assert not list(tmp_path.iterdir())
