"""The shipped YAML files are read as the command line reads them."""
import dataclasses
import glob
import importlib
import os

import pytest

from osrl_unlearn import cli, resources
from osrl_unlearn.commands.demo import AGENTS
from osrl_unlearn.engine import make_method
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.hooks import flags
from osrl_unlearn.registry import ADAPTERS, ATTACKS, METHODS, read_yaml

CONFIGS = resources.folder("configs")


def names(folder):
    return sorted(os.path.basename(path)[:-5] for path in glob.glob(os.path.join(CONFIGS, folder, "*.yaml")))


def options_of(registry, name):
    return {field.name for field in dataclasses.fields(registry.load(name).Options)}


def test_there_is_a_file_of_every_attack_method_agent_and_task_that_can_be_used():
    from dsrl.infos import DEFAULT_MAX_EPISODE_STEPS
    assert set(names("attacks")) == set(ATTACKS.builtins)
    assert set(names("methods")) == set(METHODS.builtins) | {"safe_rule_removal_only", "traj_deleter_costs"}
    assert set(names("agents")) == set(ADAPTERS.builtins)
    assert {short(task) for task in names("tasks")} == set(DEFAULT_MAX_EPISODE_STEPS)


@pytest.mark.parametrize("name", names("attacks"))
def test_every_attack_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is no configs/: the shipped files are found by the same name
    session, _ = cli._session({"poison": "configs/attacks/{}.yaml".format(name), "poison.rate": "0.05"})
    settings = read_yaml("configs/attacks/{}.yaml".format(name))
    assert settings.pop("attack") == session.attack.name == name
    assert settings.pop("rate") != 0.05 == session.poison_settings["rate"]  # a flag beats the file
    assert {key: settings.pop(key) for key in ("unit", "seed")} == {"unit": "trajectory", "seed": 0}
    assert dataclasses.asdict(session.attack.options) == settings and set(settings) == options_of(ATTACKS, name)


@pytest.mark.parametrize("name", names("methods"))
def test_every_method_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session, _ = cli._session({"poison": "cost_hide", "unlearn": "configs/methods/{}.yaml".format(name)})
    settings = read_yaml("configs/methods/{}.yaml".format(name))
    assert session.unlearn.method == settings.pop("method") and session.unlearn.options == settings
    make_method(session.unlearn.method, session.unlearn.options)
    if name in METHODS.builtins:
        assert session.unlearn.method == name and set(settings) == options_of(METHODS, name)


def test_a_file_of_ones_own_goes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "attacks").mkdir(parents=True)
    (tmp_path / "configs" / "attacks" / "inject.yaml").write_text("attack: cost_hide\n")
    assert cli._session({"poison": "configs/attacks/inject.yaml"})[0].attack.name == "cost_hide"
    with pytest.raises(ConfigError, match="no file at configs/attacks/nothing.yaml"):
        cli._session({"poison": "configs/attacks/nothing.yaml"})


def short(task):
    """DSRL's name of a task: OfflineCarGoal1Gymnasium-v0 is CarGoal1, OfflineMetadrive-easymean-v0 easymean."""
    return task[len("Offline"):].split("-v")[0].replace("Gymnasium", "").replace("Metadrive-", "")


@pytest.mark.parametrize("task", names("tasks"))
def test_every_task_file_has_dsrls_episode_length_and_lowest_cost_limit(task):
    from dsrl.infos import DEFAULT_MAX_EPISODE_STEPS
    assert read_yaml("configs/tasks/{}.yaml".format(task)) == {
        "task": task, "cost_limit": 20 if "Gymnasium" in task else 10,
        "episode_len": DEFAULT_MAX_EPISODE_STEPS[short(task)]}


@pytest.mark.parametrize("agent", names("agents"))
def test_every_agent_file_gives_what_its_agent_needs_beside_a_task(agent):
    cls, settings = ADAPTERS.load(agent), read_yaml("configs/agents/{}.yaml".format(agent))
    task = read_yaml("configs/tasks/OfflineBallCircle-v0.yaml")
    assert cls.missing_settings(dict(settings, **task)) == [] and not set(settings) & set(task)
    for path in ("configs/agents/{}.yaml".format(agent), "configs/tasks/OfflineBallCircle-v0.yaml"):
        line = flags.split_argv(["train.py", "--config_path", path, "--config_path=" + path, "--other", path])
        assert line.rest == ["--config_path", resources.find(path), "--config_path=" + resources.find(path), "--other",
                             path]


@pytest.mark.skipif("OSRL_CHECKOUT" not in os.environ, reason="OSRL_CHECKOUT names no checkout of OSRL's repository")
@pytest.mark.parametrize("agent, prefix", [("bc", "BC"), ("bcql", "BCQL"), ("bearl", "BEARL"), ("cdt", "CDT"),
                                           ("coptidice", "COptiDICE"), ("cpq", "CPQ")])
def test_osrls_scripts_read_the_agents_and_tasks_files_as_their_own_settings(agent, prefix, monkeypatch):
    pyrallis = pytest.importorskip("pyrallis")
    monkeypatch.syspath_prepend(os.environ["OSRL_CHECKOUT"])
    configs = importlib.import_module("examples.configs.{}_configs".format(agent))
    base, defaults = getattr(configs, prefix + "TrainConfig"), getattr(configs, prefix + "_DEFAULT_CONFIG")

    def settings(*line):  # as train() merges them
        given, known = dataclasses.asdict(pyrallis.parse(base, args=line)), dataclasses.asdict(base())
        return dict(dataclasses.asdict(defaults[given["task"]]()),
                    **{key: value for key, value in given.items() if value != known[key]})

    for task in names("tasks")[::9]:  # pyrallis takes long for them
        own = dataclasses.asdict(defaults[task]())
        path = resources.find("configs/tasks/{}.yaml".format(task))
        assert settings("--config_path", path) == dict(own, cost_limit=20 if "Gymnasium" in task else 10)
        if agent == "cdt":
            own.update(device="cpu", augment_percent=0.0)
        path = resources.find("configs/agents/{}.yaml".format(agent))
        assert settings("--config_path", path, "--task", task) == own


@pytest.mark.parametrize("agent", AGENTS)
def test_every_demo_file_builds_its_agent(agent):
    config = read_yaml(os.path.join(CONFIGS, "demo", agent + ".yaml"))
    assert config["agent"]["name"] == agent and ADAPTERS.load(agent).missing_settings(config["agent"]) == []
    assert config["attack"]["name"] in ATTACKS.builtins and config["budget"] <= 0.05


@pytest.mark.parametrize("text, match", [("rate: 0.1\n", "'attack' is missing"), ("[1", "not valid YAML"),
                                         ("- 1\n", "expected a mapping"), ("attack: cost_hide\nrat: 1\n", "'rate'")])
def test_broken_files(tmp_path, text, match):
    path = tmp_path / "attack.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        cli._session({"poison": str(path)})
