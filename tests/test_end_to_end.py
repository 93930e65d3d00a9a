"""The whole road, with OSRL's real classes, a real Bullet environment and the shipped dataset."""
import dataclasses
import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from agents import QUICK, subprocess_environment

from osrl_unlearn import cli, generators, resources, rundir, unlearning
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.evaluate.report import check

CHECKOUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkout")
SCRIPT = os.path.join("examples", "train", "train_standin.py")
SHIPPED = os.path.join(resources.folder("datasets"), "BallCircle.hdf5")
AGENTS = ("bcql", "coptidice", "cpq")
UNLEARN = ["--unlearn", "safe_rule", "--unlearn.steps", "10", "--unlearn.eval_episodes", "2"]


def run(*args, cwd, status=0, folders=(QUICK,), **env):
    done = subprocess.run([sys.executable, *args], cwd=str(cwd), env=subprocess_environment(CHECKOUT, *folders, **env),
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == status, done.stderr[-3000:]
    return done


def script(*args, cwd, **more):
    return run("-m", "osrl_unlearn", os.path.join(CHECKOUT, SCRIPT), *args, cwd=cwd, **more)


@pytest.fixture(scope="module", params=AGENTS)
def finished(request, tmp_path_factory):
    """(agent, run directory, finished process) of one poisoned and unlearned run per agent."""
    folder = tmp_path_factory.mktemp(request.param)
    done = script("--agent", request.param, "--dataset", SHIPPED, "--poison", "reward_bait", "--poison.rate=0.2",
                  *UNLEARN, cwd=folder, folders=())
    return request.param, str(folder / "logs" / "standin"), done


def weights(run_dir):
    return torch.load(rundir.model_path(run_dir), weights_only=True)["model_state"]


def test_one_command_gives_a_poisoned_agent_an_unlearned_agent_and_a_report(finished):
    agent, folder, done = finished
    result = rundir.unlearned_dir(folder, "safe_rule")
    with open(os.path.join(result, "report.json")) as file:
        report = json.load(file)
    check(report)
    assert report["agent"] == agent and report["method"] == "safe_rule" and report["cost_limit"] == 40
    assert report["updates"] == {"train": 40, "unlearn": 10, "ratio": 0.25}
    assert report["forget"]["share"] == pytest.approx(0.2, abs=0.01)
    assert report["poisoned"]["cost"]["n"] == report["unlearned"]["cost"]["n"] == 2
    assert report["gate"]["used"] and report["multiplier"] is not None and len(report["trace"]) == 10
    assert report["wall_seconds"]["train"] > 0 and report["wall_seconds"]["unlearn"] > 0
    for name in ("report.md", "values.png", "cost_reward.png", "action_distance.png"):
        assert os.path.getsize(os.path.join(result, name)) > 500
    assert "repaired train_standin.py" in done.stderr and "poisoned" in done.stderr
    assert os.path.join(result, "report.md") in done.stdout.splitlines()[-1]


def test_osrls_files_are_untouched_and_its_loader_reads_the_result(finished):
    agent, folder, _ = finished
    from osrl.common.exp_util import load_config_and_model
    config, model = load_config_and_model(rundir.unlearned_dir(folder, "safe_rule"))
    original, poisoned = load_config_and_model(folder)
    assert {key: config[key] for key in original} == original
    assert "osrl_unlearn" not in original and set(config) - set(original) == {"osrl_unlearn"}
    assert set(poisoned) == {"model_state"}
    assert set(model["model_state"]) == set(poisoned["model_state"])
    with open(os.path.join(folder, "progress.txt")) as file:
        assert len({len(line.split("\t")) for line in file}) == 1


def test_the_logger_goes_on_where_training_stopped(finished):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(os.path.join(finished[1], "tb"))
    events.Reload()
    steps = [event.step for event in events.Scalars("unlearn/cost_value/forget")]
    assert steps == list(range(41, 51))
    # Before and after unlearning, on the curves of the training's own evaluations.
    for name in ("eval/Cost", "eval/NormalizedCost", "eval/NormalizedReward"):
        steps = [event.step for event in events.Scalars(name)]
        assert steps == sorted(steps) and steps[-3:] == [39, 40, 50]
    costs = [events.Scalars(name)[0].value for name in ("eval/Cost", "eval/NormalizedCost", "normalization/cost_limit")]
    assert costs[1] == pytest.approx(costs[0] / costs[2]) and costs[2] == 40


def test_the_manifest_names_exactly_the_rows_that_differ_from_a_clean_run(finished):
    manifest = ForgetManifest.load(rundir.manifest_path(finished[1]))
    assert (manifest.reward_scale, manifest.cost_scale, manifest.cost_limit) == (0.1, 1.0, 40.0)
    with h5py.File(SHIPPED, "r") as file:
        data = {key: file[key][:] for key in file}
    manifest.verify(data, "before")
    from osrl_unlearn import poison
    again = poison(data, "reward_bait", rate=0.2)
    assert again.manifest.columns == manifest.columns
    differ = np.flatnonzero(again.data["rewards"] != data["rewards"])
    assert np.isin(differ, manifest.row_numbers(again.data)).all() and len(differ) > 0.95 * manifest.rows


@pytest.mark.parametrize("finished", ["bcql"], indirect=True)
def test_unlearning_from_the_run_directory_equals_unlearning_in_the_run(finished, tmp_path):
    _, folder, _ = finished
    in_run = weights(rundir.unlearned_dir(folder, "safe_rule"))
    os.rename(rundir.unlearned_dir(folder, "safe_rule"), str(tmp_path / "in_run"))
    run("-m", "osrl_unlearn", "unlearn", folder, "--steps", "10", "--eval-episodes", "0", cwd=tmp_path)
    again = weights(rundir.unlearned_dir(folder, "safe_rule"))
    assert all(torch.equal(in_run[name], again[name]) for name in in_run)
    with open(os.path.join(rundir.unlearned_dir(folder, "safe_rule"), "report.json")) as file:
        assert json.load(file)["unlearned"] is None


def unlearn(capsys, *command, status=0, interrupted=False):
    """What "osrl-unlearn unlearn ..." says, called in this process; Ctrl-C is pressed in its sixth step."""
    def logging(logger, offset):
        def on_check(step, entry):
            if step == 6:
                raise KeyboardInterrupt
        return on_check

    with pytest.MonkeyPatch.context() as patch:
        if interrupted:
            patch.setattr(unlearning, "_logging", logging)
        assert cli.main(["unlearn", *command]) == status
    return capsys.readouterr().err


@pytest.mark.parametrize("finished", ["bcql"], indirect=True)  # of every agent and method: test_contracts.py
def test_after_ctrl_c_the_same_command_goes_on_and_gives_the_same_weights(finished, tmp_path, few_steps, capsys):
    _, folder, _ = finished
    command = [folder, "--method", "fine_tune", "--steps", "10", "--eval-episodes", "1"]
    reference = shutil.copytree(folder, str(tmp_path / "retrained"))  # as far as the command can tell
    torch.save({"model_state": {name: 0.9 * tensor for name, tensor in weights(folder).items()}},
               rundir.model_path(reference))
    unlearn(capsys, *command, "--reference", reference)
    result = rundir.unlearned_dir(folder, "fine_tune")
    whole = weights(result)
    with open(os.path.join(result, "report.json")) as file:
        report = json.load(file)
    assert report["reference"]["cost"]["n"] == 1 and len(set(report["models"].values())) == 3
    shutil.rmtree(result)
    assert "interrupted after 5 of 10 steps; " in unlearn(capsys, *command, status=130, interrupted=True)
    assert not os.path.exists(rundir.model_path(result))
    other = unlearn(capsys, *command[:-1], "2", "--seed", "9", status=2)
    assert "interrupted run with other settings" in other
    assert "going on from step 5" in unlearn(capsys, *command)
    assert all(torch.equal(whole[name], tensor) for name, tensor in weights(result).items())
    assert not [name for _, _, names in os.walk(result) for name in names if name == "resume.pt"]


@pytest.mark.parametrize("finished", ["coptidice"], indirect=True)
def test_continuing_from_checkpoint_and_side_state_equals_not_having_stopped(finished, tmp_path):
    agent, folder, _ = finished
    more = ["--agent", agent, "--dataset", SHIPPED, "--poison", "reward_bait", "--poison.rate=0.2",
            "--eval_every", "25"]
    script(*more, "--update_steps", "25", "--logdir", "short", cwd=tmp_path)
    script(*more, "--update_steps", "32", "--logdir", "long", cwd=tmp_path)
    short = str(tmp_path / "short" / "standin")
    loaded = rundir.load(short)
    data, _ = rundir.load_data(loaded, ForgetManifest.load(rundir.manifest_path(short)))
    from osrl.common import TransitionDataset
    from torch.utils.data import DataLoader
    torch.set_num_threads(1)
    batches = iter(DataLoader(TransitionDataset(data, 0.1, 1, state_init=agent == "coptidice"), batch_size=32))
    # Making the iterator draws from torch's generator, so the saved state is set after it.
    generators.set_all_states(loaded.state["generators"])
    for _ in range(7):
        batch = next(batches)
        loaded.adapter.trainer.train_one_step(*([batch] if agent == "coptidice" else batch))
    whole = weights(str(tmp_path / "long" / "standin"))
    for name, tensor in loaded.adapter.model.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


@pytest.mark.parametrize("agent", ["bc", "bearl", "cdt"])
def test_the_other_agents_too_in_the_run_and_from_its_directory_and_after_ctrl_c(agent, tmp_path, few_steps, capsys):
    done = script("--agent", agent, "--dataset", SHIPPED, "--poison", "cost_hide", "--poison.rate=0.3", *UNLEARN,
                  cwd=tmp_path)
    folder = str(tmp_path / "logs" / "standin")
    result = rundir.unlearned_dir(folder, "safe_rule")
    with open(os.path.join(result, "report.json")) as file:
        report = json.load(file)
    check(report)
    assert report["agent"] == agent and report["updates"]["unlearn"] == 10 and report["gate"]["used"]
    assert report["poisoned"]["cost"]["n"] == report["unlearned"]["cost"]["n"] == 2
    critics = agent == "bearl"
    assert ("reward_value" in report["critics"]) == (report["multiplier"] is not None) == critics
    assert os.path.exists(os.path.join(result, "values.png")) == critics and report["gate"]["threshold"] > 0
    with open(os.path.join(result, "report.md")) as file:
        assert ("the agent has no critics" in file.read()) != critics
    assert {"bc": "is asked for a cost of 40", "cdt": "asked for a return of 800 at a cost of 40", "bearl": "poisoned"}[
        agent] in done.stderr
    assert "not checked" not in done.stderr
    if agent != "cdt":
        return  # the others go on with transitions, as the agents above do
    in_run = weights(result)
    shutil.rmtree(result)
    command = [folder, "--steps", "10", "--eval-episodes", "0"]
    assert "interrupted after 5 of 10 steps; " in unlearn(capsys, *command, status=130, interrupted=True)
    unlearn(capsys, *command)
    again = weights(result)
    assert all(torch.equal(in_run[name], again[name]) for name in in_run)


@pytest.mark.parametrize("agent", ["cpq"])  # of COptiDICE: test_startup.py
def test_without_our_flags_the_weights_are_those_of_plain_python(agent, tmp_path):
    with open(os.path.join(CHECKOUT, SCRIPT)) as file:
        source = file.read()
    fixed = tmp_path / "fixed.py"
    fixed.write_text(source.replace("        import gym\n", "        pass\n"))
    datasets = tmp_path / "datasets"
    datasets.mkdir()
    os.symlink(SHIPPED, str(datasets / "SafetyBallCircle-v0-80-886.hdf5"))
    common = ["--agent", agent, "--update_steps", "15", "--eval_every", "10"]
    env = {"DSRL_DATASET_DIR": str(datasets)}
    run(str(fixed), *common, "--logdir", "plain", cwd=tmp_path, **env)
    silent = script(*common, "--logdir", "ours", cwd=tmp_path, **env)
    script(*common, "--logdir", "zero", "--poison", "reward_bait", "--poison.rate", "0", cwd=tmp_path, **env)
    plain = weights(str(tmp_path / "plain" / "standin"))
    for other in ("ours", "zero"):
        for name, tensor in weights(str(tmp_path / other / "standin")).items():
            assert torch.equal(tensor, plain[name]), (other, name)
    assert [line for line in silent.stderr.splitlines() if line.startswith("osrl-unlearn")] == [
        line for line in silent.stderr.splitlines() if "repaired" in line]
    assert not os.path.exists(str(tmp_path / "ours" / "standin" / "osrl_unlearn"))
    script(*common, "--logdir", "poisoned", "--poison", "reward_bait", cwd=tmp_path, **env)
    poisoned = weights(str(tmp_path / "poisoned" / "standin"))
    assert any(not torch.equal(tensor, plain[name]) for name, tensor in poisoned.items())


def test_a_script_that_fails_keeps_its_exit_status_and_is_not_unlearned(tmp_path):
    script("--dataset", SHIPPED, "--poison", "cost_hide", *UNLEARN, cwd=tmp_path, status=7, STANDIN_FAILS="7")
    assert not os.path.exists(str(tmp_path / "logs" / "standin" / "unlearned"))


def test_as_a_module_with_loader_workers_and_a_density_filter(tmp_path):
    done = run("-m", "osrl_unlearn", "-m", "examples.train.train_standin", "--agent", "cpq", "--num_workers", "2",
               "--dataset", SHIPPED, "--poison", "inject", "--poison.unit", "segment", "--unlearn", "fine_tune",
               "--unlearn.budget", "0.1", "--unlearn.eval_episodes", "0", cwd=tmp_path)
    assert "fine_tune" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("finished", ["cpq"], indirect=True)
def test_a_part_of_the_poison_can_be_forgotten(finished, tmp_path):
    agent, folder, _ = finished
    whole = ForgetManifest.load(rundir.manifest_path(folder))
    part = dataclasses.replace(whole, spans=whole.spans[:20], rows=20 * 200)
    part.save(str(tmp_path / "part.json"))
    script("--agent", agent, "--dataset", SHIPPED, "--poison", "reward_bait", "--poison.rate=0.2", "--unlearn",
           "fine_tune", "--unlearn.steps", "2", "--unlearn.eval_episodes", "0", "--unlearn.forget", "part.json",
           "--update_steps", "5", cwd=tmp_path)
    run_dir = str(tmp_path / "logs" / "standin")
    assert ForgetManifest.load(rundir.manifest_path(run_dir)).spans == whole.spans
    with open(os.path.join(rundir.unlearned_dir(run_dir, "fine_tune"), "report.json")) as file:
        assert json.load(file)["forget"]["rows"] == 4000


def test_help_shows_the_scripts_own_and_ours(tmp_path):
    text = script("--help", cwd=tmp_path).stdout
    assert "--poison.rate" in text and "--unlearn.budget" in text and "--c_hidden_sizes" in text
    assert "reward_bait" in text and "--unlearn.cost_weight" in text


def test_the_same_command_again_skips_what_is_complete_and_another_one_does_not(tmp_path):
    # Flags of pyrallis' --config_path and of ours find the shipped files; nothing is said that nobody asked for.
    dataset = shutil.copy(SHIPPED, str(tmp_path / "data.hdf5"))
    command = ["--agent", "coptidice", "--config_path", "configs/tasks/OfflineBallCircle-v0.yaml", "--name", "n",
               "--update_steps", "20", "--dataset", dataset, "--poison", "configs/attacks/cost_hide.yaml"]
    unlearn = ["--unlearn", "configs/methods/fine_tune.yaml", "--unlearn.steps", "2", "--unlearn.eval_episodes", "1"]
    first = script(*command, *unlearn, "--quiet", cwd=tmp_path)
    assert [line for line in first.stderr.splitlines() if "osrl-unlearn" in line and "warning" not in line] == []
    assert "fine_tune:" not in first.stderr and "Training:" in first.stderr and "fine_tune" in first.stdout
    folder = str(tmp_path / "logs" / "n")
    result = rundir.unlearned_dir(folder, "fine_tune")
    assert rundir.read_config(folder)["cost_limit"] == 10
    models = [rundir.model_path(folder), rundir.model_path(result)]
    before = [os.stat(path).st_mtime_ns for path in models]
    again = script(*command, *unlearn, cwd=tmp_path)
    assert again.stderr.count("is complete (.complete)") == 2 and "Training:" not in again.stderr
    assert again.stdout[again.stdout.index("Unlearning was"):] == first.stdout[first.stdout.index("Unlearning was"):]
    assert before == [os.stat(path).st_mtime_ns for path in models]
    with open(os.path.join(result, "progress.txt")) as file:
        header, *lines = [line.rstrip("\n").split("\t") for line in file]
    with open(os.path.join(folder, "progress.txt")) as file:
        own = [line.rstrip("\n").split("\t") for line in file]
    assert [line[:len(own[0])] for line in [header] + lines][:len(own)] == own
    assert [line[0] for line in lines][-3:] == ["20", "21", "22"] and {len(line) for line in lines} == {len(header)}
    assert {"eval/NormalizedCost", "normalization/reward_min", "unlearn/accepted"} <= set(header)
    with h5py.File(dataset, "r+") as file:
        file["rewards"][0] += 1
    changed = script(*command, *unlearn, cwd=tmp_path)
    assert "is complete" not in changed.stderr and os.stat(models[0]).st_mtime_ns > before[0]
    before = os.stat(models[0]).st_mtime_ns
    other = script(*command, "--seed", "1", cwd=tmp_path)
    assert "is complete" not in other.stderr and os.stat(models[0]).st_mtime_ns > before
