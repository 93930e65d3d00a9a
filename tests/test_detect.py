"""Detection: what is poisoned is found without labels, what is clean is left alone, and the road to unlearning."""
import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from agents import QUICK, make_trainer, subprocess_environment
from scipy import stats

from osrl_unlearn import cli, detection, resources, rundir
from osrl_unlearn.adapters import adapt
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import poison
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.detection import detect, measure
from osrl_unlearn.detectors import models, trees
from osrl_unlearn.errors import ConfigError, EnvironmentProblem
from osrl_unlearn.options import parse
from osrl_unlearn.registry import DETECTORS
from osrl_unlearn.testing import DetectorContract, toy_data

CHECKOUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkout")
SHIPPED = os.path.join(resources.folder("datasets"), "BallCircle.hdf5")


def walkers(trajectories=80, length=50, seed=0):
    """Points that are pushed about on a plane: deterministic steps, reward for speed to the right, cost beyond |x| = 1.

    Later trajectories push harder, so they earn and cost more.
    """
    rng = np.random.default_rng(seed)
    place, speed = rng.normal(0, 0.3, (2, trajectories, 2))
    rows = []
    for step in range(length):
        push = np.clip(rng.normal(0.3, 0.6, (trajectories, 2)), -1, 1) * np.linspace(0.3, 1, trajectories)[:, None]
        faster = 0.9 * speed + 0.2 * push
        further = place + 0.2 * faster
        rows.append((np.concatenate([place, speed], 1), np.concatenate([further, faster], 1), push, faster[:, 0],
                     np.abs(further[:, 0]) > 1, np.zeros(trajectories), np.full(trajectories, step == length - 1)))
        place, speed = further, faster
    names = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
    stacked = [np.stack(column, 1) for column in zip(*rows)]
    return {name: column.reshape(trajectories * length, *column.shape[2:]).astype(
        bool if name in ("terminals", "timeouts") else np.float32) for name, column in zip(names, stacked)}


@pytest.fixture(scope="module")
def clean():
    return walkers()


@pytest.fixture(params=sorted(DETECTORS.builtins))
def detector_name(request):
    return request.param


class TestDetectors(DetectorContract):
    @pytest.fixture(autouse=True)
    def _name(self, detector_name):
        self.name = detector_name

    def make(self):
        cls = DETECTORS.load(self.name)
        return cls(parse(cls.Options, {"steps": 20} if hasattr(cls.Options, "steps") else {}, ""))

    def adapter(self):
        return adapt(make_trainer("bcql")) if self.name == "value_gap" else None


# What is found --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector, attack, options", [
    ("cost_consistency", "cost_hide", {}), ("cost_consistency", "cost_inflate", {}),
    ("reward_consistency", "reward_bait", {"reward_scale": 1.5}), ("reward_consistency", "label_noise", {}),
    ("dynamics_consistency", "random_noise", {}),
    ("trigger_scan", "trigger_backdoor", {"trigger_schedule": "every:7"}),
    ("trigger_scan", "camouflage", {}), ("ensemble", "inject", {})])
def test_poisoned_trajectories_are_found_and_few_others(clean, detector, attack, options):
    bad = poison(clean, attack, rate=0.15, options=options)
    steps = {} if detector == "trigger_scan" else {"steps": 800}
    found = measure(detect(bad.data, detector, ids=bad.ids, options=steps), bad.manifest)
    assert found["recall"] >= 0.9 and found["precision"] >= 0.8 and found["auroc"] > 0.95


def test_of_clean_data_hardly_anything_is_flagged(clean):
    # These are few data and few updates; on real datasets of 1,000 trajectories it is less than 1 %.
    manifest = detect(clean, options={"steps": 800})
    assert len(manifest.spans) <= 2 and len(manifest.detection["trajectories"]["score"]) == 80
    assert set(manifest.detection["detectors"]) == {"cost_consistency", "reward_consistency", "dynamics_consistency",
                                                    "trigger_scan"}


def test_gradient_boosted_trees_find_them_too(clean, monkeypatch):
    monkeypatch.setattr(trees, "TREES", 40)  # with 20, scikit-learn 1.3 (of Python 3.8) has four false alarms
    monkeypatch.setattr(trees.Trees, "rounds", 7)
    bad = poison(clean, "cost_hide", rate=0.15)
    found = measure(detect(bad.data, "cost_consistency", ids=bad.ids, options={"model": "trees"}), bad.manifest)
    assert found["recall"] >= 0.9 and found["precision"] >= 0.8 and found["auroc"] > 0.95


def test_trees_are_the_same_with_the_same_seed(clean, monkeypatch):
    monkeypatch.setattr(trees.Trees, "rounds", 1)
    first, same = (detect(clean, "cost_consistency", options={"model": "trees"}).detection for _ in range(2))
    assert first == same and first["options"]["model"] == "trees"


def test_trees_are_not_there(clean, monkeypatch):
    with pytest.raises(ConfigError, match="model must be one of networks, trees, got forest"):
        detect(clean, "cost_consistency", options={"model": "forest"})
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(EnvironmentProblem, match="pip install scikit-learn"):
        detect(clean, "cost_consistency", options={"model": "trees"})


def test_acting_as_few_do_is_not_suspect_and_acting_as_nobody_does_is():
    rng, owner, data = np.random.default_rng(0), np.repeat(np.arange(100), 20), walkers(100, 20)
    noise, side = 0.05 * rng.standard_normal((2000, 2)), np.sign(data["observations"][:, :1] + 1e-9)

    def flagged(actions):
        found = detect(dict(data, actions=actions.astype(np.float32)), "behaviour_density", options={"steps": 2000})
        return {span[0] for span in found.spans}

    few = np.where(owner % 4 == 0, -0.5, 0.5)[:, None]
    assert flagged(few * side + noise) == set()
    nobody = (owner % 20 == 3)[:, None]
    found = flagged(np.where(nobody, rng.uniform(-1, 1, noise.shape), 0.5 * side + noise))
    assert {3, 23, 43, 63, 83} <= found and len(found) <= 6


def test_nothing_found_is_an_empty_manifest(clean):
    manifest = detect(clean, "trigger_scan")
    assert manifest.spans == [] and manifest.rows == 0 and manifest.detection["threshold"] is None


def test_poison_of_a_tenth_of_the_rows_of_a_trajectory_shows(clean):
    index = TrajectoryIndex(clean)
    data = dict(clean, rewards=clean["rewards"].copy())
    for trajectory in range(10):
        first = index.starts[trajectory] + 20
        data["rewards"][first:first + 5] += 4
    manifest = detect(data, "reward_consistency", options={"steps": 800})
    found = {span[0] for span in manifest.spans}
    assert set(range(10)) <= found and len(found) <= 12


def test_a_next_state_that_is_not_the_following_state_counts_for_both_rows(clean):
    data = dict(clean, observations=clean["observations"].copy())
    data["observations"][75] += 5
    cls = DETECTORS.load("dynamics_consistency")
    detector = cls(cls.Options(steps=20))
    scores, before = (detector.scores(d, TrajectoryIndex(d), 0) for d in (data, clean))
    assert (scores[[74, 75]] > 3.9).all() and before[74] < 3.9 and scores[73] < 3.9


def test_features_that_are_constant_within_trajectories_are_no_trigger(clean):
    goal = np.repeat(np.arange(80) % 5, 50).astype(np.float32)[:, None]
    data = dict(clean, observations=np.concatenate([clean["observations"], goal], 1))
    assert detect(data, "trigger_scan").spans == []


def test_value_gap_sees_labels_that_the_critics_do_not_expect():
    data, agent = toy_data(trajectories=40), adapt(make_trainer("bcql"))
    cls = DETECTORS.load("value_gap")
    index = TrajectoryIndex(data)
    bad = slice(index.starts[5], index.stops[5])
    data["rewards"][bad] += 50
    scores = cls().scores(data, index, 0, adapter=agent, reward_scale=0.1)
    assert np.median(scores[bad]) > 10 * np.median(scores)


def test_value_gap_refuses_an_agent_without_critics_of_actions():
    with pytest.raises(ConfigError, match="value_gap.*coptidice"):
        detect(toy_data(), "value_gap", adapter=adapt(make_trainer("coptidice")))


def test_what_is_known_to_be_poisoned_has_no_part_in_the_models(clean):
    index, cls = TrajectoryIndex(clean), DETECTORS.load("reward_consistency")
    bad = dict(clean, rewards=np.where(np.arange(4000) < 2000, -3, clean["rewards"]).astype(np.float32))
    scores = []
    for known in (None, np.arange(80) < 40):
        detector = cls(cls.Options(steps=300))
        detector.without = known
        scores.append(detector.scores(bad, index, 0)[2000:].mean())
    assert scores[1] < 0.5 * scores[0]


def test_scales_are_robust():
    rng = np.random.default_rng(0)
    normal, cost, step = rng.normal(3, 2, 1000), np.zeros(1000), np.full(1000, -1.0)
    normal[:200], cost[:150], step[:10] = 1000, 0.5, 9
    location, scale = models.location_and_scale(np.stack([normal, cost, step, np.ones(1000)], 1))
    assert location[1:].tolist() == [0, -1, 1] and scale[1:].tolist() == [0.5, 10, 1]
    assert abs(location[0] - 3) < 1 and 1.5 < scale[0] < 4


# The decision ---------------------------------------------------------------------------------------------------------


def test_the_clean_majority_is_found_under_a_third_of_poison():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(1, 0.1, 650), rng.normal(5, 2, 350)])
    centre, spread = detection.clean_majority(values)
    assert centre == pytest.approx(1, abs=0.1) and 0.1 <= spread < 0.25
    assert detection.clean_majority(values[:650])[1] == pytest.approx(0.1, rel=0.2)


def test_discoveries_are_benjamini_and_hochbergs():
    p = np.array([0.01, 0.02, 0.03, 0.04, 0.5])
    assert detection.discoveries(p, 0.05).tolist() == [True, True, True, True, False]
    assert not detection.discoveries(p, 0.04).any() and not detection.discoveries(np.ones(3), 0.05).any()
    if hasattr(stats, "false_discovery_control"):  # from scipy 1.11 on
        p = np.random.default_rng(0).random(200) ** 3
        assert np.array_equal(detection.discoveries(p, 0.1), stats.false_discovery_control(p) <= 0.1)


def detected(scores, flagged):
    return ForgetManifest(unit="trajectory", spans=[[i, 0, 5] for i in flagged], rows=5 * len(flagged), columns={},
                          detection={"trajectories": {"id": list(range(len(scores))), "score": scores}})


def test_measure_counts_trajectories():
    true = ForgetManifest(unit="segment", spans=[[0, 0, 2], [0, 3, 4], [1, 0, 2]], rows=5, columns={})
    assert measure(detected([3.0, 1.0, 2.0, 0.5], [0, 2]), true) == {
        "auroc": 0.75, "precision": 0.5, "recall": 0.5, "false_alarms_per_1000": 500.0}
    assert measure(detected([3.0, 1.0], []), ForgetManifest(unit="trajectory", spans=[], rows=0, columns={})) == {
        "auroc": None, "precision": None, "recall": None, "false_alarms_per_1000": 0.0}


def test_spans_that_are_edited_by_hand_count(tmp_path):
    path = str(tmp_path / "detected.json")
    detected([3.0, 1.0, 2.0], [0, 2]).save(path)
    with open(path) as file:
        edited = json.load(file)
    edited["spans"] = [[2, 0, 3]]
    with open(path, "w") as file:
        json.dump(edited, file)
    assert ForgetManifest.load(path).rows == 3


@pytest.mark.parametrize("arguments, match", [
    (dict(detector="ensembl"), "did you mean 'ensemble'"), (dict(fdr=0.0), "false discovery rate"),
    (dict(fdr=1.5), "false discovery rate"), (dict(options={"stps": 1}), "did you mean 'steps'"),
    (dict(options={"steps": 0}), "at least 1"), (dict(detector="value_gap"), "trained agent")])
def test_bad_arguments(clean, arguments, match):
    with pytest.raises(ConfigError, match=match):
        detect(clean, **arguments)


def test_too_few_trajectories_have_no_majority():
    with pytest.raises(ConfigError, match="at least 10 trajectories, the data have 9"):
        detect(toy_data(trajectories=9))


# The command ----------------------------------------------------------------------------------------------------------


def write(path, data):
    with h5py.File(str(path), "w") as file:
        for key, column in data.items():
            file[key] = column
    return str(path)


def test_the_command_finds_writes_and_shows(tmp_path, capsys, clean):
    bad = poison(clean, "trigger_backdoor", rate=0.1)
    file, out, figure = write(tmp_path / "bad.hdf5", bad.data), str(tmp_path / "m.json"), str(tmp_path / "f.png")
    assert cli.main(["detect", "--dataset", file, "--detector", "trigger_scan", "--out", out]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and out in said and "--forget" in said
    assert "8 of 80 trajectories are suspected by trigger_scan at a false discovery rate of 0.05" in said
    manifest = ForgetManifest.load(out)
    assert manifest.spans == bad.manifest.spans and manifest.dataset == file
    manifest.verify(bad.data)
    score = np.array(manifest.detection["trajectories"]["score"])
    assert manifest.detection["threshold"] == score[[span[0] for span in manifest.spans]].min()

    assert cli.main(["detect", "--show", out, "--figure", figure]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[2:10]]
    assert sorted(int(row[0]) for row in table) == [span[0] for span in manifest.spans]
    assert [float(row[3]) for row in table] == sorted((float(row[3]) for row in table), reverse=True)
    row = table[0]
    units = TrajectoryIndex(bad.data).units("trajectory")
    assert float(row[1]) == pytest.approx(units.returns[int(row[0])], abs=0.06) and row[4] == "trigger_scan"
    assert float(row[2]) == units.costs[int(row[0])]
    with open(figure, "rb") as image:
        assert image.read(4) == b"\x89PNG"


def test_options_reach_the_detector_and_nothing_found_is_said(tmp_path, capsys):
    file, out = write(tmp_path / "clean.hdf5", walkers(20, 20)), str(tmp_path / "m.json")
    assert cli.main(["detect", "--dataset", file, "--detector", "cost_consistency", "--set", "steps=7", "--fdr", "0.2",
                     "--seed", "3", "--out", out]) == 0
    about = ForgetManifest.load(out).detection
    assert (about["options"], about["fdr"], about["seed"]) == ({"steps": 7, "model": "networks"}, 0.2, 3)
    if not ForgetManifest.load(out).spans:
        assert "there is nothing to forget" in capsys.readouterr().out


def test_bars_name_what_is_fitted_and_quiet_hides_them(tmp_path, capsys):
    command = ["detect", "--dataset", write(tmp_path / "clean.hdf5", walkers(20, 20)), "--set", "steps=7", "--out",
               str(tmp_path / "m.json")]
    assert cli.main(command) == 0
    error = capsys.readouterr().err
    assert all(name + ":   0%" in error for name in ("dynamics_consistency", "reward_consistency", "cost_consistency"))
    assert cli.main(command) == 2 and "m.json exists already" in capsys.readouterr().err
    (tmp_path / "m.json").unlink()
    assert cli.main(command + ["--quiet"]) == 0 and capsys.readouterr().err == ""


@pytest.mark.parametrize("arguments, match", [
    ([], "nothing to search"), (["--dataset", "nowhere.hdf5", "--out", "m.json"], "no dataset at nowhere.hdf5"),
    (["--dataset", "d.hdf5"], "--out is missing"), (["--dataset", "d.hdf5", "--out", "."], "--out .: give the file"),
    (["--dataset", "d.hdf5", "--out", "m.json", "--detector", "magic"], "unknown detector"),
    (["--dataset", "d.hdf5", "--out", "m.json", "--detector", "value_gap"], "give --run RUN_DIR"),
    (["--dataset", "d.hdf5", "--out", "m.json", "--fdr", "1"], "false discovery rate"),
    (["--dataset", "d.hdf5", "--out", "m.json", "--seed", "-1"], "the seed must be"),
    (["--dataset", "d.hdf5", "--out", "m.json", "--set", "steps"], "expected OPTION=VALUE"),
    (["--dataset", "d.hdf5", "--out", "m.json", "--set", "steps=many"], "--set steps expects an integer"),
    (["--dataset", "d.hdf5", "--out", "m.json", "--figure", "f.png"], "--figure needs --show"),
    (["--run", "nowhere", "--out", "m.json"], "no run directory"), (["--show", "d.json", "--task", "T"], "leave"),
    (["--show", "nowhere.json"], "no forget manifest"), (["--show", "plain.json"], "does not say how")])
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, match):
    monkeypatch.chdir(tmp_path)
    write("d.hdf5", walkers(20, 10))
    ForgetManifest.of(walkers(20, 10), [[0, 0, 5]]).save("plain.json")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["detect"] + arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and match in err
    assert sorted(tmp_path.rglob("*")) == before


# --unlearn.forget detect ----------------------------------------------------------------------------------------------


def run(*args, cwd, status=0):
    done = subprocess.run([sys.executable, "-m", "osrl_unlearn", *args], cwd=str(cwd), text=True,
                          env=subprocess_environment(CHECKOUT, QUICK), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == status, done.stderr[-3000:]
    return done


UNLEARN = ["--unlearn", "fine_tune", "--unlearn.steps", "2", "--unlearn.eval_episodes", "0", "--unlearn.forget",
           "detect"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(run directory, finished process) of a run that was poisoned and unlearned without being told what to forget."""
    folder = tmp_path_factory.mktemp("detected")
    done = run(os.path.join(CHECKOUT, "examples", "train", "train_standin.py"), "--agent", "bcql", "--dataset", SHIPPED,
               "--poison", "trigger_backdoor", "--poison.rate", "0.1", "--unlearn.detector", "trigger_scan",
               "--unlearn.fdr", "0.01", *UNLEARN, cwd=folder)
    return str(folder / "logs" / "standin"), done


def test_a_script_can_unlearn_what_is_detected(finished):
    folder, done = finished
    manifest = ForgetManifest.load(os.path.join(folder, "osrl_unlearn", "detected.json"))
    assert (manifest.detection["detector"], manifest.detection["fdr"]) == ("trigger_scan", 0.01)
    assert manifest.spans == ForgetManifest.load(rundir.manifest_path(folder)).spans
    said, = [line for line in done.stdout.splitlines() if line.startswith("The forget set was detected")]
    assert "42 of 420 trajectories are suspected by trigger_scan at a false discovery rate of 0.01" in said
    assert "precision 1.00, recall 1.00" in said
    result = rundir.unlearned_dir(folder, "fine_tune")
    with open(os.path.join(result, "report.json")) as file:
        report = json.load(file)
    assert report["forget"]["trajectories"] == 42 and any("was detected" in note for note in report["notes"])
    assert report["forget"]["detected"] == {"detector": "trigger_scan", "fdr": 0.01}
    with open(os.path.join(result, "report.md")) as file:
        assert "found by the detector `trigger_scan`" in file.read()


def test_a_detected_manifest_serves_a_run_that_was_poisoned_in_memory(finished, tmp_path, capsys):
    folder, _ = finished
    out = str(tmp_path / "m.json")
    assert cli.main(["detect", "--run", folder, "--detector", "trigger_scan", "--out", out]) == 0
    assert "osrl-unlearn unlearn {} --forget {}".format(folder, out) in capsys.readouterr().out
    assert ForgetManifest.load(out).spans == ForgetManifest.load(rundir.manifest_path(folder)).spans
    unlearn = ["unlearn", folder, "--method", "fine_tune", "--steps", "2", "--eval-episodes", "0", "--forget"]
    assert cli.main(unlearn + [out]) == 0
    assert "report.md" in capsys.readouterr().out.splitlines()[-1]
    os.unlink(os.path.join(folder, "osrl_unlearn", "detected.json"))
    assert cli.main(unlearn + ["detect", "--detector", "trigger_scan"]) == 0
    assert "precision 1.00, recall 1.00" in capsys.readouterr().out
    assert os.path.isfile(os.path.join(folder, "osrl_unlearn", "detected.json"))


def test_when_nothing_is_detected_the_agent_stays(tmp_path):
    done = run(os.path.join(CHECKOUT, "examples", "train", "train_standin.py"), "--agent", "coptidice", "--dataset",
               SHIPPED, "--unlearn.detector", "trigger_scan", *UNLEARN, cwd=tmp_path, status=2)
    folder = tmp_path / "logs" / "standin"
    assert "nothing was detected: 0 of 420 trajectories" in done.stderr and "the agent is unchanged" in done.stderr
    assert (folder / "osrl_unlearn" / "detected.json").exists() and not (folder / "unlearned").exists()


@pytest.mark.parametrize("flags, match", [
    (["--unlearn.detector", "magic"], "unknown detector 'magic'"), (["--unlearn.fdr", "2"], "false discovery rate")])
def test_bad_flags_stop_a_script_before_it_starts(tmp_path, monkeypatch, capsys, flags, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text("open('it_ran', 'w').close()\n")
    assert cli.main(UNLEARN + flags + ["script.py"]) == 2
    assert match in capsys.readouterr().err and not (tmp_path / "it_ran").exists()
