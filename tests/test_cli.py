"""Bad input: one clear line, exit status 2, nothing written. Every mistake is made through the real command line."""
import contextlib
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from agents import make_trainer, subprocess_environment

from osrl_unlearn import cli, resources, rundir
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.poison import poison
from osrl_unlearn.files import save_tensors, sha256_state
from osrl_unlearn.testing import toy_data

SHIPPED = os.path.join(resources.folder("datasets"), "BallCircle.hdf5")


@pytest.fixture
def fails(capfd, tmp_path, monkeypatch):
    """Run a command line; check that it fails with one line that matches, and that no file appeared."""
    monkeypatch.chdir(tmp_path)

    def call(*argv, match):
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert cli.main([str(a) for a in argv]) == 2
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("osrl-unlearn: error: ")]
        assert len(lines) == 1 and "Traceback" not in err and out == ""
        assert match in lines[0]
        assert sorted(tmp_path.rglob("*")) == before
        return lines[0]
    return call


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("open('it_ran', 'w').close()\n")
    return path


def write(path, data, **attributes):
    with h5py.File(str(path), "w") as file:
        for key, column in data.items():
            file[key] = column
        file.attrs.update(attributes)
    return path


@pytest.mark.parametrize("flags, match", [
    (["--poison", "reward_bate"], "did you mean 'reward_bait'"),
    (["--unlearn", "safe_rul"], "did you mean 'safe_rule'"),
    (["--poison", "cost_hide", "--poison.rat", "0.1"], "did you mean 'rate'"),
    (["--poison", "cost_hide", "--poison.rate", "1.5"], "between 0 and 1"),
    (["--poison", "cost_hide", "--poison.rate", "many"], "a number"),
    (["--poison", "cost_hide", "--poison.unit", "row"], "one of trajectory"),
    (["--poison", "cost_hide", "--poison.seed", "1.5"], "an integer"),
    (["--poison", "cost_hide", "--poison.seed", "-1"], "the seed must be a whole number from 0 to 2147483647, got -1"),
    (["--unlearn", "safe_rule", "--unlearn.seed", "2147483648"], "the seed must be a whole number"),
    (["--poison", "reward_bait", "--poison.segment_length", "0"], "at least 1"),
    (["--poison", "cost_hide", "--poison.reward_scale", "2"], "unknown option --poison.reward_scale"),
    (["--poison.rate", "0.1"], "needs --poison NAME"),
    (["--poison"], "needs a value"),
    (["--poison", "nowhere.yaml"], "no file at nowhere.yaml"),
    (["--unlern", "safe_rule"], "did you mean --unlearn"),
    (["--unlearn", "safe_rule", "--unlearn.sigma", "2"], "1, 0 or -1"),
    (["--unlearn", "safe_rule", "--unlearn.margin", "-1"], "must not be negative"),
    (["--unlearn", "safe_rule", "--unlearn.steps", "5", "--unlearn.budget", "0.1"], "exclude each other"),
    (["--unlearn", "safe_rule", "--unlearn.steps", "0"], "the steps must be at least 1"),
    (["--unlearn", "safe_rule", "--unlearn.budget", "inf"], "positive share of the training updates, got inf"),
    (["--unlearn", "safe_rule", "--unlearn.eval_episodes", "-1"], "must not be negative"),
    (["--unlearn", "safe_rule", "--unlearn.forget", "nowhere.json"], "no forget manifest at nowhere.json"),
    (["--poison", "cost_hide", "--unlearn", "safe_rule", "--unlearn.reference", "nowhere"],
     "no run directory at nowhere"),
    (["--unlearn", "safe_rule", "--unlearn.from", "nowhere"], "no run directory at nowhere"),
    (["--poison", "cost_hide", "--unlearn", "shards", "--unlearn.previous", "nowhere"], "no shards at nowhere"),
    (["--unlearn", "safe_rule"], "nothing to forget"),
    (["--unlearn", "safe_rule", "--poison", "cost_hide", "--poison.rate", "0"], "nothing to forget"),
    (["--dataset", "nowhere.hdf5"], "no dataset at nowhere.hdf5"),
])
def test_wrong_flags_stop_before_the_script_runs(fails, script, tmp_path, flags, match):
    fails(script, *flags, match=match)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("task, match", [
    ("SafetyBallCircle-v0", "is no task of DSRL: did you mean 'OfflineBallCircle-v0'"),
    ("CartPole-v1", "is no task of DSRL: known: OfflineAntCircle-v0")])
def test_a_task_that_is_not_dsrls(fails, task, match):
    fails("detect", "--task", task, "--out", "found.json", match="'{}' {}".format(task, match))


def test_a_manifest_without_rows_stops_before_the_script_runs(fails, script, tmp_path):
    for name, removed, match in (("none", None, "names no rows"), ("removed", [[0, 0, 5]], "only removed rows")):
        path = str(tmp_path / (name + ".json"))
        ForgetManifest.of(toy_data(), [], removed=removed).save(path)
        fails("--unlearn", "safe_rule", "--unlearn.forget", path, script, match=match)
    assert not (tmp_path / "it_ran").exists()


def test_quiet_may_stand_before_a_command(fails, capfd):
    fails("--quiet", "unlearn", "nowhere", match="no run directory at nowhere")
    assert cli.main(["--quiet", "run", "--help"]) == 0 and "usage:" in capfd.readouterr().out
    fails("--quiet", "nowhere.py", match="no script at")


@pytest.mark.parametrize("command", ["plugins", "doctor"])
def test_a_command_whose_output_is_closed(tmp_path, command):
    done = subprocess.run([shutil.which("sh"), "-c", 'exec "$0" -m osrl_unlearn "$1" >&-', sys.executable, command],
                          cwd=str(tmp_path), env=subprocess_environment(), text=True, stderr=subprocess.PIPE)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("end, status, text", [("| true", 141, None), ("> /dev/full", 2, "No space left on device")])
def test_output_that_nobody_takes(tmp_path, end, status, text):
    command = '"$0" -u -m osrl_unlearn plugins {}; exit "${{PIPESTATUS[0]}}"'.format(end)
    done = subprocess.run([shutil.which("bash"), "-c", command, sys.executable], cwd=str(tmp_path),
                          env=subprocess_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == status and "Traceback" not in done.stderr and (text or "") in done.stderr, done.stderr


@pytest.mark.parametrize("command", [
    ["demo"], ["poison", "--dataset", SHIPPED, "--attack", "cost_hide", "--out", "poisoned.hdf5"]])
def test_a_seed_that_not_every_generator_takes(fails, command):
    fails(*command, "--seed", "-1", match="the seed must be a whole number from 0 to 2147483647, got -1")


def test_wrong_targets(fails):
    fails(match="no script")
    fails("nowhere.py", match="no script at")
    fails("-m", "nowhere.module", match="nowhere")


def test_an_agent_without_an_adapter_is_refused_before_its_script_runs(fails, tmp_path):
    path = tmp_path / "train_mine.py"
    path.write_text("from osrl.algorithms import MyTrainer\nopen('it_ran', 'w').close()\n")
    assert "CPQTrainer" in fails("--poison", "cost_hide", "--unlearn", "safe_rule", path, match="MyTrainer")


@pytest.mark.parametrize("change, match", [
    (lambda d: d.pop("costs"), "lacks the dataset costs"),
    (lambda d: d.update(rewards=d["rewards"][:-1]), "'rewards' has shape"),
    (lambda d: d.update(actions=d["actions"][:, 0]), "'actions' has shape"),
    (lambda d: d.update(timeouts=d["timeouts"][:, None]), "'timeouts' has shape"),
    (lambda d: d.update(costs=np.array([b"x"] * len(d["costs"]))), "'costs' has dtype"),
    (lambda d: {k: d.update({k: d[k][:0]}) for k in list(d)}, "has shape"),
])
def test_broken_datasets(fails, script, tmp_path, change, match):
    data = toy_data()
    change(data)
    fails("--dataset", write(tmp_path / "broken.hdf5", data), script, match=match)


def test_a_truncated_dataset(fails, script, tmp_path):
    with open(SHIPPED, "rb") as file:
        (tmp_path / "cut.hdf5").write_bytes(file.read(100_000))
    fails("--dataset", tmp_path / "cut.hdf5", script, match="perhaps truncated")


LOADS = """
import bullet_safety_gym, dsrl, gymnasium
env = gymnasium.make("OfflineBallCircle-v0")
env.get_dataset()
open('it_went_on', 'w').close()
"""


@pytest.mark.parametrize("change, attributes, match", [
    (lambda d: d["rewards"].__setitem__(7, np.nan), {}, "'rewards' holds NaN or infinity, first in row 7"),
    (lambda d: d.update(terminals=d["terminals"] & False, timeouts=d["timeouts"] & False), {}, "no trajectory ends"),
    (lambda d: d.update(observations=d["observations"][:, :5], next_observations=d["observations"][:, :5]), {},
     "is not a dataset of OfflineBallCircle-v0"),
    (lambda d: None, {"task": "OfflineCarRun-v0"}, "it was made for OfflineCarRun-v0"),
])
def test_datasets_that_only_the_task_can_refuse(fails, tmp_path, change, attributes, match):
    data = toy_data()
    change(data)
    path = write(tmp_path / "data.hdf5", data, **attributes)
    (tmp_path / "loads.py").write_text(LOADS)
    # In a process of its own: Bullet-Safety-Gym cannot be imported while pytest has replaced sys.stderr.
    done = subprocess.run([sys.executable, "-m", "osrl_unlearn", "--dataset", str(path), "--poison", "cost_hide",
                           str(tmp_path / "loads.py")], cwd=str(tmp_path), env=subprocess_environment(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    errors = [line for line in done.stderr.splitlines() if line.startswith("osrl-unlearn: error: ")]
    assert done.returncode == 2 and len(errors) == 1 and match in errors[0] and "Traceback" not in done.stderr
    assert not (tmp_path / "it_went_on").exists()


# Run directories ------------------------------------------------------------------------------------------------------

CONFIG = dict(task="OfflineBallCircle-v0", seed=0, cost_limit=5, episode_len=15, reward_scale=0.1, cost_scale=1,
              a_hidden_sizes=[16, 16], c_hidden_sizes=[16, 16], vae_hidden_sizes=16, sample_action_num=3, gamma=0.99,
              tau=0.005, beta=1.5, num_q=2, num_qc=2, qc_scalar=1.5, update_steps=20, batch_size=16)


@pytest.fixture
def run_dir(few_steps, tmp_path):
    """A run directory of an untrained CPQ without side state, and a manifest of a part of the shipped data."""
    folder = tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    torch.save({"model_state": make_trainer("cpq").model.state_dict()}, str(folder / "checkpoint" / "model.pt"))
    with h5py.File(SHIPPED, "r") as file:
        data = {key: file[key][:] for key in file}
    poison(data, "cost_hide", rate=0.1, task=CONFIG["task"], dataset=SHIPPED).manifest.save(
        rundir.manifest_path(str(folder)))
    return folder


def test_a_run_made_without_us_is_unlearned_and_says_what_was_missing(run_dir, capfd):
    assert cli.main(["unlearn", str(run_dir), "--method", "fine_tune", "--eval-episodes", "1", "--steps", "3"]) == 0
    out, err = capfd.readouterr()
    assert "optimisers' moments start from zero" in err and "'log_alpha' is not in OSRL's checkpoint" in err
    result = run_dir / "unlearned" / "fine_tune"
    assert out.splitlines()[-1] == "Report: {}".format(result / "report.md")
    with open(str(result / "report.json")) as file:
        assert any("log_alpha" in note for note in json.load(file)["notes"])


def test_the_report_notes_where_the_policy_was_anchored(run_dir):
    with h5py.File(SHIPPED, "r") as file:
        data = {key: file[key][:] for key in file}
    poison(data, "trigger_backdoor", rate=0.1, task=CONFIG["task"], dataset=SHIPPED).manifest.save(
        rundir.manifest_path(str(run_dir)))
    assert cli.main(["unlearn", str(run_dir), "--eval-episodes", "0", "--steps", "3"]) == 0
    with open(str(run_dir / "unlearned" / "safe_rule" / "report.json")) as file:
        report = json.load(file)
    assert any("the policy is anchored" in note for note in report["notes"])
    assert all(entry["anchored"] == 1 for entry in report["trace"])


def unlearn(fails, run_dir, *more, match):
    return fails("unlearn", run_dir, "--eval-episodes", "0", *more, match=match)


def interrupted(*args):
    raise KeyboardInterrupt


def test_what_is_complete_is_not_done_again_and_quiet_silences_what_is_only_said(run_dir, capfd, monkeypatch):
    command = ["unlearn", str(run_dir), "--method", "fine_tune", "--eval-episodes", "1", "--steps", "3"]
    assert cli.main(command + ["--quiet"]) == 0
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if "osrl-unlearn" in line or "fine_tune" in line or "evaluate" in line]
    assert all("warning" in line for line in lines) and "Normalized as in DSRL: (reward - 0.383122)" in out
    model = run_dir / "unlearned" / "fine_tune" / "checkpoint" / "model.pt"
    before = model.stat().st_mtime_ns
    assert cli.main(command) == 0
    again, err = capfd.readouterr()
    assert again == out and "fine_tune is complete" in err and model.stat().st_mtime_ns == before
    os.unlink(str(run_dir / "unlearned" / "fine_tune" / "report.json"))
    assert cli.main(command) == 0 and model.stat().st_mtime_ns > before  # a result without its report is not one
    before = model.stat().st_mtime_ns
    assert cli.main(command[:-1] + ["4"]) == 0
    assert "is complete" not in capfd.readouterr().err and model.stat().st_mtime_ns > before
    progress = (run_dir / "unlearned" / "fine_tune" / "progress.txt").read_text().splitlines()
    rows = [dict(zip(progress[0].split("\t"), line.split("\t"))) for line in progress[1:]]
    assert [int(row["Steps"]) for row in rows] == [20, 21, 22, 23, 24]  # the training took 20 updates
    assert [row["eval/Cost"] != "nan" for row in rows] == [True, False, False, False, True]
    report = json.loads((run_dir / "unlearned" / "fine_tune" / "report.json").read_text())
    assert float(rows[-1]["eval/NormalizedCost"]) == report["unlearned"]["normalized_cost"]
    assert float(rows[0]["eval/NormalizedReward"]) == report["poisoned"]["normalized_reward"]
    assert float(rows[0]["normalization/reward_max"]) == report["normalization"]["reward_max"]
    monkeypatch.setattr("osrl_unlearn.unlearning.write_report", interrupted)
    assert (run_dir / "unlearned" / "fine_tune" / ".complete").exists() and cli.main(command[:-1] + ["5"]) == 130
    assert not (run_dir / "unlearned" / "fine_tune" / ".complete").exists()


def test_a_result_is_complete_with_this_agent_and_this_reference_only(run_dir, tmp_path, capfd):
    reference = shutil.copytree(str(run_dir), str(tmp_path / "reference"))
    weights = rundir.read_weights(reference)
    weights["actor.mu_layer.bias"] -= 1
    torch.save({"model_state": weights}, rundir.model_path(reference))
    result = rundir.unlearned_dir(str(run_dir), "fine_tune")

    def again():
        assert cli.main(["unlearn", str(run_dir), "--method", "fine_tune", "--eval-episodes", "0", "--steps", "1",
                         "--reference", reference]) == 0
        return "is complete" in capfd.readouterr().err

    assert [again(), again()] == [False, True]
    for folder in (reference, result):
        weights = rundir.read_weights(folder)
        weights["actor.mu_layer.bias"] += 1
        torch.save({"model_state": weights}, rundir.model_path(folder))
        assert [again(), again()] == [False, True]
    with open(rundir.model_path(result), "w"):
        pass
    assert not again()


def test_what_was_interrupted_is_continued_for_the_same_agent_only(fails, run_dir, capfd):
    path = rundir.unlearned_dir(str(run_dir), "fine_tune") + "/osrl_unlearn/resume.pt"
    command = ["unlearn", str(run_dir), "--method", "fine_tune", "--eval-episodes", "0", "--steps", "1"]
    save_tensors(path, {"i": 1, "about": {}, "model": sha256_state(rundir.read_weights(str(run_dir)))})
    fails(*command, match="interrupted run with other settings")
    save_tensors(path, {"i": 1, "about": {}, "model": "of what was trained before"})
    assert cli.main(command) == 0
    assert "interrupted run on another agent: it is not used" in capfd.readouterr().err and not os.path.exists(path)


def test_a_list_of_trajectories_becomes_a_forget_manifest(fails, run_dir, tmp_path, capfd):
    lists = {"lines.txt": "7\n3\n3\n", "list.json": "[3, 7]\n"}
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert cli.main(["manifest", str(tmp_path / name), "--run", str(run_dir), "--out", name + ".out"]) == 0
        manifest = ForgetManifest.load(name + ".out")
        assert manifest.spans == [[3, 0, 200], [7, 0, 200]] and manifest.task == CONFIG["task"]
    assert "names 2 trajectories, 400 of 84,000 rows" in capfd.readouterr().out
    # The run's data are poisoned, the list says nothing of that.
    fails("verify", "lines.txt.out", match="poisons its data as it loads them, give --run RUN_DIR")
    assert cli.main(["verify", "lines.txt.out", "--run", str(run_dir)]) == 0
    assert "400 rows in 2 trajectories of the data that {} was trained on".format(run_dir) in capfd.readouterr().out
    assert cli.main(["unlearn", str(run_dir), "--method", "fine_tune", "--steps", "1", "--eval-episodes", "0",
                     "--forget", "lines.txt.out"]) == 0
    by_file = ["manifest", tmp_path / "list.json", "--dataset", SHIPPED, "--out", tmp_path / "by_file.json"]
    assert cli.main([str(arg) for arg in by_file]) == 0
    assert ForgetManifest.load(str(tmp_path / "by_file.json")).spans == manifest.spans
    (tmp_path / "words.txt").write_text("3, seven")
    (tmp_path / "spans.json").write_text("[[1, 0, 5]]")
    (tmp_path / "high.txt").write_text("3 420")
    (tmp_path / "empty.txt").write_text("")
    out = ["--out", "new.json"]
    fails("manifest", "words.txt", "--dataset", SHIPPED, *out, match="found 'seven'")
    fails("manifest", "spans.json", "--dataset", SHIPPED, *out, match="found '[1'")
    fails("manifest", "empty.txt", "--dataset", SHIPPED, *out, match="empty.txt names no trajectory")
    fails("manifest", "high.txt", "--dataset", SHIPPED, *out, match="no trajectory 420: theirs are 420 of 0 to 419")
    fails("manifest", "nowhere.txt", "--dataset", SHIPPED, *out, match="cannot be read (No such file")
    fails("manifest", "list.json", *out, match="trajectories of what?")
    fails("manifest", "list.json", "--dataset", SHIPPED, "--out", tmp_path, match="is a folder")
    fails("manifest", "list.json", "--dataset", SHIPPED, "--out", "by_file.json", match="by_file.json exists already")


def test_a_manifest_of_a_file_has_the_hashes_of_what_dsrl_reads(fails, tmp_path, capfd):
    (tmp_path / "list.json").write_text("[3]")
    with h5py.File(SHIPPED, "r") as file:  # of double precision, and recording stopped before the last end
        data = {key: file[key][:1990].astype(np.float64 if file[key].dtype.kind == "f" else bool) for key in file}
    for name, attributes in (("says.hdf5", {"task": CONFIG["task"]}), ("silent.hdf5", {})):
        path = str(write(tmp_path / name, data, **attributes))
        assert cli.main(["manifest", "list.json", "--dataset", path, "--out", name + ".json"]) == 0
        assert cli.main(["verify", name + ".json", "--task", CONFIG["task"]]) == 0
    assert "names 1 trajectories, 200 of 1,800 rows" in capfd.readouterr().out
    assert cli.main(["verify", "says.hdf5.json"]) == 0
    edited = json.loads((tmp_path / "says.hdf5.json").read_text())
    (tmp_path / "edited.json").write_text(json.dumps(dict(edited, spans=[[3, 0, 201]])))
    fails("verify", "edited.json", match="past the end of trajectory 3")
    fails("verify", "silent.hdf5.json", match="records no task, so its dataset cannot be read: give --task TASK")
    fails("verify", "says.hdf5.json", "--task", "OfflineCarRun-v0", match="says.hdf5.json is for OfflineBallCircle-v0")


def test_a_run_of_bc_scales_no_rewards(run_dir, tmp_path):
    (run_dir / "config.yaml").write_text(yaml.safe_dump(dict(
        {key: CONFIG[key] for key in ("task", "cost_limit", "episode_len", "a_hidden_sizes", "gamma")}, bc_mode="all")))
    torch.save({"model_state": make_trainer("bc").model.state_dict()}, str(run_dir / "checkpoint" / "model.pt"))
    (tmp_path / "list.json").write_text("[3]")
    out = str(tmp_path / "out.json")
    assert cli.main(["manifest", str(tmp_path / "list.json"), "--run", str(run_dir), "--out", out]) == 0
    assert (ForgetManifest.load(out).reward_scale, ForgetManifest.load(out).cost_scale) == (1, 1)


def test_trajectories_that_are_withdrawn(fails, run_dir, tmp_path):
    (tmp_path / "ids.json").write_text("[3, 7]")
    result = os.path.join(rundir.unlearned_dir(str(run_dir), "safe_rule"), "osrl_unlearn", "forget.json")
    for more, withdrawn in (([], False), (["--withdrawn"], True)):
        assert cli.main(["unlearn", str(run_dir), "--steps", "2", "--eval-episodes", "0", "--forget",
                         str(tmp_path / "ids.json")] + more) == 0
        manifest = ForgetManifest.load(result)
        assert manifest.spans == [[3, 0, 200], [7, 0, 200]] and manifest.withdrawn is withdrawn
        assert manifest.attack is None and manifest.task == CONFIG["task"]
    assert cli.main(["manifest", str(tmp_path / "ids.json"), "--run", str(run_dir), "--withdrawn", "--out",
                     str(tmp_path / "forget.json")]) == 0
    assert ForgetManifest.load(str(tmp_path / "forget.json")).withdrawn is True
    (tmp_path / "ids.json").write_text("[3, 420]")
    fails("unlearn", str(run_dir), "--forget", str(tmp_path / "ids.json"), match="no trajectory 420")
    (tmp_path / "ids.json").write_text("[3, x]")
    fails("unlearn", str(run_dir), "--forget", str(tmp_path / "ids.json"), match="numbers, 0 or more; found 'x'")


def test_what_an_earlier_request_named_stays_forgotten_when_another_one_follows(run_dir, tmp_path, capfd):
    def unlearn(folder, numbers, method, *more):
        (tmp_path / "ids.json").write_text(json.dumps(numbers))
        assert cli.main(["unlearn", str(folder), "--steps", "2", "--eval-episodes", "0", "--method", method, "--forget",
                         str(tmp_path / "ids.json"), *more]) == 0
        return rundir.unlearned_dir(str(folder), method)
    # Both lists at once, retrained, so that only what is retained decides about the weights.
    at_once = rundir.read_weights(unlearn(run_dir, [3, 5, 7, 9], "retrain"))
    for first, second in ([], []), ([], ["--withdrawn"]), (["--withdrawn"], []):
        before = unlearn(run_dir, [3, 7], "fine_tune", *first)
        capfd.readouterr()
        result = unlearn(before, [5, 7, 9], "retrain", *second)
        weights = rundir.read_weights(result)
        assert all(torch.equal(tensor, at_once[name]) for name, tensor in weights.items())
        assert "200 more rows, which earlier requests named, stay forgotten" in capfd.readouterr().err
        manifest = ForgetManifest.load(rundir.manifest_path(result))
        named = sorted(span[0] for span in manifest.spans)
        assert manifest.withdrawn is bool(second)
        if first == second:
            assert named == [3, 5, 7, 9] and manifest.absent is None and manifest.rows == 800
        else:
            assert named == [5, 7, 9] and [span[0] for span in manifest.absent] == [3, 7] and manifest.rows == 600
        # A third request, of the first kind again.
        third = ForgetManifest.load(rundir.manifest_path(unlearn(result, [11], "fine_tune", *first)))
        assert {span[0] for span in third.spans + (third.absent or [])} == {3, 5, 7, 9, 11}
        assert {3, 7, 11} <= {span[0] for span in third.spans}
    capfd.readouterr()
    assert cli.main(["verify", rundir.manifest_path(result), "--run", result]) == 0
    said = capfd.readouterr().out  # of the last case
    assert "600 rows in 3 trajectories" in said and "and 400 rows that are absent by earlier requests;" in said
    # From the run itself: what the result there had forgotten is not among what is forgotten now.
    capfd.readouterr()
    unlearn(run_dir, [7, 9], "fine_tune")
    assert "200 rows that it names are not named this time: for them to stay forgotten, stop" in capfd.readouterr().err
    # Again without a list: what the agent has forgotten so far.
    assert cli.main(["unlearn", result, "--steps", "2", "--eval-episodes", "0", "--method", "fine_tune"]) == 0
    again = ForgetManifest.load(rundir.manifest_path(rundir.unlearned_dir(result, "fine_tune")))
    assert (again.spans, again.absent) == (manifest.spans, manifest.absent)


def test_a_further_requests_budget_is_a_share_of_the_training_alone(run_dir):
    spent, folder = [], str(run_dir)
    for method in "fine_tune", "retrain", "fine_tune":
        assert cli.main(["unlearn", folder, "--eval-episodes", "0", "--method", method]) == 0
        folder = rundir.unlearned_dir(folder, method)
        with open(os.path.join(folder, "report.json")) as file:
            spent.append(json.load(file)["updates"])
    assert spent == [{"train": 20, "unlearn": 1, "ratio": 0.05}, {"train": 20, "unlearn": 20, "ratio": 1},
                     {"train": 20, "unlearn": 1, "ratio": 0.05}]
    state = rundir.load(folder).state
    assert (state["updates"], state["unlearned"]) == (42, 22)  # the steps in the logs go on


@pytest.fixture
def own_file(run_dir, tmp_path):
    """The file that ``run_dir`` was trained on, as its side state records: the first 20 shipped trajectories."""
    with h5py.File(SHIPPED, "r") as file:
        path = write(tmp_path / "own.hdf5", {key: file[key][:4000] for key in file})
    os.unlink(rundir.manifest_path(str(run_dir)))
    save_tensors(rundir.state_path(str(run_dir)), rundir.side_state(
        rundir.load(str(run_dir)).adapter, updates=20, batch_size=16, train_seconds=1, reward_scale=0.1, cost_scale=1,
        dataset=str(path)))
    return path


def test_without_a_manifest_the_file_counts_that_the_run_was_trained_on(fails, run_dir, own_file, tmp_path, capfd):
    (tmp_path / "ids.json").write_text("[3]")
    by_numbers = ["unlearn", str(run_dir), "--steps", "1", "--eval-episodes", "0", "--forget",
                  str(tmp_path / "ids.json")]
    detect = ["detect", "--run", str(run_dir), "--detector", "trigger_scan", "--out", str(tmp_path / "found.json")]
    assert cli.main(by_numbers) == cli.main(detect) == 0
    assert "dataset {} (given or recorded)".format(own_file) in capfd.readouterr().err
    with open(str(run_dir / "unlearned" / "safe_rule" / "report.json")) as file:
        assert json.load(file)["forget"]["share"] == 0.05
    for path in (rundir.manifest_path(str(run_dir / "unlearned" / "safe_rule")), str(tmp_path / "found.json")):
        assert ForgetManifest.load(path).dataset == str(own_file)
    os.unlink(str(tmp_path / "found.json"))
    os.rename(str(own_file), str(tmp_path / "moved.hdf5"))
    for command in (by_numbers, detect):
        fails(*command, match="trained on {}, which is not there: give it with --dataset FILE".format(own_file))
    assert cli.main(detect + ["--dataset", "moved.hdf5"]) == 0
    assert ForgetManifest.load(str(tmp_path / "found.json")).dataset == str(tmp_path / "moved.hdf5")
    by_manifest = ["--method", "fine_tune", "--dataset", "moved.hdf5", "--forget", str(tmp_path / "plain.json")]
    with h5py.File("moved.hdf5", "r") as file:
        ForgetManifest.of({key: file[key][:] for key in file}, [[3, 0, 5]]).save(by_manifest[-1])
    assert cli.main(by_numbers[:-2] + by_manifest) == 0
    result = str(run_dir / "unlearned" / "fine_tune")
    assert ForgetManifest.load(rundir.manifest_path(result)).dataset == str(tmp_path / "moved.hdf5")
    assert rundir.load(result).state["dataset"] == str(tmp_path / "moved.hdf5")


def test_side_state_of_other_weights_is_pointed_out(run_dir, own_file):
    assert rundir.load(str(run_dir)).notes == []
    weights = {name: tensor + 1 for name, tensor in rundir.read_weights(str(run_dir)).items()}
    save_tensors(rundir.model_path(str(run_dir)), {"model_state": weights})  # as a training without our flags does
    note, = rundir.load(str(run_dir)).notes
    assert "belongs to other weights than the checkpoint" in note


def test_the_exit_status_of_a_command_after_ctrl_c_and_after_a_wrong_option(monkeypatch, capfd):
    from osrl_unlearn.commands import plugins
    monkeypatch.setattr(plugins, "main", interrupted)
    assert cli.main(["plugins"]) == 130 and capfd.readouterr().err == "osrl-unlearn: interrupted\n"
    with pytest.raises(SystemExit) as stop:
        cli.main(["plugins", "--jsn"])
    assert stop.value.code == 2


COMPLETE = """
source "$0"
COMP_WORDS=(osrl-unlearn $1)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
registered=$(complete -p osrl-unlearn)
function=${registered##*-F }
${function%% *}
echo "${COMPREPLY[*]}"
"""


@pytest.mark.parametrize("words, completed", [
    ("unl", "unlearn"), ("unlearn --met", "--method"), ("unlearn --method safe", "safe_rule"),
    ("run --poison re", "reward_bait"), ("run --unlearn.multiplier_m", "--unlearn.multiplier_max"),
    ("bench attacks --ta", "--table"), ("verify list", "list.json"), ("audit a_", "a_folder")])
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(words, completed, completion, tmp_path):
    (tmp_path / "list.json").write_text("")
    (tmp_path / "a_folder").mkdir()
    done = subprocess.run(["bash", "-c", COMPLETE, completion, words], cwd=str(tmp_path), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout.strip() == completed, done.stderr


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    """The script for bash."""
    pytest.importorskip("shtab")
    path = tmp_path_factory.mktemp("completion") / "script"
    with open(str(path), "w") as file, contextlib.redirect_stdout(file):
        assert cli.main(["completion", "bash"]) == 0
    return str(path)


def test_without_shtab_there_is_no_completion(fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    fails("completion", "zsh", match="osrl-unlearn[completion]")


def test_incomplete_run_directories(fails, run_dir, tmp_path):
    unlearn(fails, tmp_path / "nowhere", match="no run directory")
    unlearn(fails, run_dir, "--forget", "nowhere.json", match="no forget manifest")
    shutil.rmtree(str(run_dir / "osrl_unlearn"))
    unlearn(fails, run_dir, match="--forget MANIFEST")
    os.unlink(str(run_dir / "config.yaml"))
    unlearn(fails, run_dir, match="has no config.yaml")


def test_a_missing_checkpoint(fails, run_dir):
    os.unlink(str(run_dir / "checkpoint" / "model.pt"))
    unlearn(fails, run_dir, match="no checkpoint at")


def test_a_checkpoint_of_another_architecture(fails, run_dir):
    (run_dir / "config.yaml").write_text(yaml.safe_dump(dict(CONFIG, a_hidden_sizes=[32, 32])))
    unlearn(fails, run_dir, match="another architecture")


def test_a_checkpoint_of_an_unknown_agent(fails, run_dir):
    torch.save({"model_state": {"mystery.weight": torch.zeros(1)}}, str(run_dir / "checkpoint" / "model.pt"))
    unlearn(fails, run_dir, match="no adapter knows the agent")
    torch.save({"something": 1}, str(run_dir / "checkpoint" / "model.pt"))
    unlearn(fails, run_dir, match="holds no 'model_state'")


class Malicious:
    """Unpickling this writes a file."""

    def __reduce__(self):
        return open, ("it_ran_code", "w")


@pytest.mark.parametrize("content", [Malicious(), None])
def test_a_checkpoint_that_is_not_plain_tensors_is_never_unpickled(fails, run_dir, tmp_path, content):
    path = run_dir / "checkpoint" / "model.pt"
    path.write_bytes(b"not a checkpoint") if content is None else torch.save({"model_state": content}, str(path))
    unlearn(fails, run_dir, match="not a plain tensor checkpoint")
    assert not (tmp_path / "it_ran_code").exists()


def test_what_this_agent_lacks_is_said_before_its_data_are_read(fails, run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("osrl_unlearn.commands.unlearn.load_data", None)
    other = tmp_path / "other"
    shutil.copytree(str(run_dir), str(other))
    (other / "config.yaml").write_text(yaml.safe_dump(dict(CONFIG, task="OfflineCarRun-v0")))
    unlearn(fails, run_dir, "--reference", other, match="holds cpq on OfflineCarRun-v0, the agent is cpq on")
    torch.save({"model_state": make_trainer("bc").model.state_dict()}, str(run_dir / "checkpoint" / "model.pt"))
    unlearn(fails, run_dir, "--method", "grad_diff", match="'grad_diff' needs action_values")
    unlearn(fails, run_dir, "--forget", "detect", "--detector", "value_gap", match="critics of actions")
    unlearn(fails, run_dir, "--reference", other, match="holds cpq on OfflineCarRun-v0, the agent is bc on")


def test_damaged_files_of_a_run(fails, run_dir):
    weights = run_dir / "checkpoint" / "model.pt"
    whole = weights.read_bytes()
    for content in (b"", whole[:len(whole) // 2]):
        weights.write_bytes(content)
        unlearn(fails, run_dir, match="model.pt is damaged, empty or cut off")
    weights.write_bytes(whole)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(dict(CONFIG, cost_limit="abc")))
    unlearn(fails, run_dir, match="config.yaml: cost_limit must be a number, got 'abc'")
    for content, match in (("[1]", "it holds no mapping"), ('{"unit": "row", "spans": []}', "lacks columns, rows")):
        (run_dir / "osrl_unlearn" / "forget.json").write_text(content)
        fails("verify", rundir.manifest_path(str(run_dir)), match=match)


def test_the_agent_before_unlearning_is_no_reference(fails, run_dir):
    unlearn(fails, run_dir, "--reference", run_dir, match="has the weights of the agent before unlearning")


def test_an_agent_that_diverged(fails, run_dir):
    weights = rundir.read_weights(str(run_dir))
    weights["actor.mu_layer.bias"][0] = np.nan
    torch.save({"model_state": weights}, str(run_dir / "checkpoint" / "model.pt"))
    unlearn(fails, run_dir, match="first in 'actor.mu_layer.bias': its training diverged")


def test_a_manifest_of_other_data(fails, run_dir, tmp_path):
    path = rundir.manifest_path(str(run_dir))
    with open(path) as file:
        manifest = json.load(file)
    manifest["columns"]["rewards"] = {"before": "0" * 64, "after": "0" * 64}
    with open(path, "w") as file:
        json.dump(manifest, file)
    unlearn(fails, run_dir, match="belongs to other data: rewards")
    fails("verify", path, match="belongs to other data")


def test_options_of_the_unlearn_command(fails, run_dir):
    unlearn(fails, run_dir, "--steps", "0", match="at least 1")
    unlearn(fails, run_dir, "--budget", "-1", match="positive share")
    unlearn(fails, run_dir, "--seed", "-1", match="the seed must be")
    unlearn(fails, run_dir, "--set", "margin", match="OPTION=VALUE")
    unlearn(fails, run_dir, "--set", "marge=1", match="did you mean 'margin'")
    unlearn(fails, run_dir, "--method", "forget_it", match="unknown method")


@pytest.mark.parametrize("module", ["dsrl", "dsrl.offline_env", "osrl.algorithms", "bullet_safety_gym"])
def test_a_package_that_is_not_installed(fails, run_dir, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    unlearn(fails, run_dir, match="doctor")


def test_the_command_line_without_torch(tmp_path, script):
    # In a process of its own: here torch, and what of ours has imported it, are loaded already.
    code = ("import sys; sys.modules['torch'] = None; from osrl_unlearn import cli;"
            "sys.exit(cli.main(['--poison', 'cost_hide', {!r}]))".format(str(script)))
    done = subprocess.run([sys.executable, "-c", code], cwd=str(tmp_path), env=subprocess_environment(),
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "torch is not installed" in done.stderr
    assert not (tmp_path / "it_ran").exists()
