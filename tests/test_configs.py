"""The shipped YAML files are read as the command line reads them."""
import glob
import os

import pytest

from osrl_unlearn import cli, resources
from osrl_unlearn.commands.demo import AGENTS
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.registry import ADAPTERS, ATTACKS, read_yaml

CONFIGS = resources.folder("configs")


@pytest.mark.parametrize("path", sorted(glob.glob(os.path.join(CONFIGS, "attacks", "*.yaml"))))
def test_every_attack_file(path):
    session, _ = cli._session({"poison": path, "poison.rate": "0.05"})
    settings = read_yaml(path)
    assert session.attack.name == settings["attack"]
    assert session.poison_settings == {"rate": 0.05, "unit": settings["unit"], "seed": 0}  # a flag beats the file
    assert session.attack.options.reward_scale == settings["reward_scale"]


@pytest.mark.parametrize("path", sorted(glob.glob(os.path.join(CONFIGS, "methods", "*.yaml"))))
def test_every_method_file(path):
    session, _ = cli._session({"poison": "cost_hide", "unlearn": path})
    settings = read_yaml(path)
    assert session.unlearn.method == settings.pop("method") and session.unlearn.options == settings


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
