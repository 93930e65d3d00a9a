"""Plugins of third parties: a real package, and broken ones beside it."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from agents import QUICK, make_trainer, subprocess_environment
from test_shapes import POISON, SKETCH, UNLEARN

from osrl_unlearn.adapters import adapt
from osrl_unlearn.audit.base import Context
from osrl_unlearn.cli import main
from osrl_unlearn.commands.audit import compute
from osrl_unlearn.data.poison import poison
from osrl_unlearn.errors import ConfigError, EnvironmentProblem, IncompatibleAgent
from osrl_unlearn.registry import ADAPTERS, ATTACKS, METRICS, REGISTRIES
from osrl_unlearn.testing import toy_data

HERE = os.path.dirname(os.path.abspath(__file__))


def call(*command, folder, cwd, status=0):
    done = subprocess.run([sys.executable, *command], cwd=str(cwd), env=subprocess_environment(str(folder)), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thirdparty")
    # A copy, because setuptools builds in the source folder.
    shutil.copytree(os.path.join(HERE, "thirdparty"), str(folder / "source"))
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
                    "--target", str(folder / "site"), str(folder / "source")], check=True)
    return folder


def test_a_third_party_package_passes_the_shipped_contracts(installed):
    out = call("-m", "pytest", "-q", "-p", "no:cacheprovider", "check_contracts.py", folder=installed / "site",
               cwd=installed / "source")
    assert int(re.search(r"(\d+) passed", out).group(1)) > 30 and "skipped" not in out


def test_the_plugins_command_names_origin_version_and_state(installed):
    found = json.loads(call("-m", "osrl_unlearn", "plugins", "--json", folder=installed / "site", cwd=installed))
    theirs = [plugin for plugin in found if plugin["origin"] == "osrl-unlearn-thirdparty"]
    assert [(plugin["kind"], plugin["name"]) for plugin in theirs] == [
        ("attack", "thirdparty_zero_rewards"), ("detector", "thirdparty_reward_outlier"),
        ("method", "thirdparty_descent"), ("adapter", "thirdparty_gentle"), ("metric", "thirdparty_value_change")]
    assert {(plugin["version"], plugin["state"]) for plugin in theirs} == {("1.2.3", "ok")}
    assert theirs[0]["attack_kind"] == "label" and theirs[0]["columns"] == ["rewards"]
    assert theirs[0]["threat"] == "sees nothing; may change the rewards of the chosen rows"
    assert all(("threat" in plugin) == (plugin["kind"] == "attack") for plugin in found)
    builtin = {(plugin["kind"], plugin["name"]) for plugin in found if plugin["origin"] == "built-in"}
    assert builtin == {(registry.kind, name) for registry in REGISTRIES for name in registry.builtins}


def test_the_help_explains_a_third_partys_attack(installed):
    out = call("-m", "osrl_unlearn", "--help", "--poison", "thirdparty_zero_rewards", folder=installed / "site",
               cwd=installed)
    assert "Options of --poison thirdparty_zero_rewards:\n  --poison.segment_length" in out


def test_a_third_partys_agent_is_poisoned_and_unlearned_by_third_parties_plugins(installed, tmp_path):
    (tmp_path / "script.py").write_text(SKETCH + """
from osrl_unlearn_thirdparty.agent import Gentle, GentleTrainer
env, data = load()
train(make_trainer(env, make_logger(), GentleTrainer, Gentle), batches(TransitionDataset(data, 0.1)))
""")
    call("-m", "osrl_unlearn", "script.py", *POISON[:2], "--poison", "thirdparty_zero_rewards", "--unlearn",
         "thirdparty_descent", *UNLEARN[2:], folder=os.pathsep.join([str(installed / "site"), QUICK]),
         cwd=tmp_path)
    with open(str(tmp_path / "logs" / "run" / "unlearned" / "thirdparty_descent" / "report.json")) as file:
        report = json.load(file)
    assert (report["agent"], report["method"]) == ("thirdparty_gentle", "thirdparty_descent")


BROKEN = {"leaves": "raise SystemExit('bye')\n", "fails": "1 / 0\n", "wrong": "class Wrong:\n    name = 'wrong'\n",
          "cheat": "class Cheat:\n    name = 'cost_hide'\n",
          "raises": "from osrl_unlearn.audit.base import Metric\nclass Raises(Metric):\n    name = summary = 'raises'\n"
                    "    def compute(self, ctx):\n        1 / 0\n"}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Distributions with entry points that cannot be used, on the path of this process."""
    for module, source in BROKEN.items():
        (tmp_path / "theirs_{}.py".format(module)).write_text(source + "open('imported', 'a').close()\n")
    publish(tmp_path, "first", "osrl_unlearn.attacks", {
        "leaves": "theirs_leaves:X", "fails": "theirs_fails:X", "wrong": "theirs_wrong:Wrong",
        "gone": "no_such_module:X", "cost_hide": "theirs_cheat:Cheat", "twice": "theirs_wrong:Wrong"})
    publish(tmp_path, "second", "osrl_unlearn.attacks", {"twice": "theirs_wrong:Wrong"})
    publish(tmp_path, "third", "osrl_unlearn.adapters", {"fails": "theirs_fails:X"})
    publish(tmp_path, "fourth", "osrl_unlearn.metrics", {"fails": "theirs_fails:X", "raises": "theirs_raises:Raises"})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(folder, distribution, group, entries):
    info = folder / "{}-0.5.dist-info".format(distribution)
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: {}\nVersion: 0.5\n".format(distribution))
    (info / "entry_points.txt").write_text("[{}]\n{}\n".format(group, "\n".join(
        "{} = {}".format(*entry) for entry in entries.items())))


def test_nothing_is_imported_before_it_is_named(broken):
    assert {"leaves", "fails", "wrong", "gone", "twice"} <= set(ATTACKS.names())
    assert ATTACKS.load("reward_bait").name == "reward_bait"
    assert adapt(make_trainer("cpq")).name == "cpq"
    assert not os.path.exists("imported")
    assert not [name for name in sys.modules if name.startswith("theirs_")]


def test_a_built_in_cannot_be_shadowed(broken):
    assert ATTACKS.load("cost_hide").__module__ == "osrl_unlearn.attacks.cost_hide"


def test_an_audit_goes_on_without_a_broken_metric(broken, monkeypatch):
    monkeypatch.setattr(METRICS, "builtins", {"distance": METRICS.builtins["distance"]})
    adapter, bad = adapt(make_trainer("cpq")), poison(toy_data(), "cost_hide", rate=0.3)
    found = compute(Context(adapter, bad.data, bad.ids, bad.manifest, 5.0))
    assert set(found) == {"distance", "fails", "raises"}
    assert re.search("could not be loaded: ZeroDivisionError", found["fails"]["not_computed"])
    assert re.search("the plugin failed: ZeroDivisionError", found["raises"]["not_computed"])


@pytest.mark.parametrize("name, expected", [
    ("leaves", r"theirs_leaves:X of first 0.5\) could not be loaded: SystemExit"), ("fails", "ZeroDivisionError"),
    ("gone", "no_such_module"), ("wrong", "must be a subclass of osrl_unlearn.attacks.base:Attack"),
    ("twice", "offered by first and second: uninstall all but one")])
def test_naming_a_broken_one_fails_with_the_reason(broken, name, expected):
    with pytest.raises(EnvironmentProblem, match=expected):
        ATTACKS.load(name)


def test_the_list_says_what_is_wrong_and_its_status_is_1(broken, capfd):
    assert main(["plugins"]) == 1
    out = capfd.readouterr().out
    state = {tuple(line.split()[1:3]): " ".join(line.split()[4:]) for line in out.splitlines()[1:]}
    assert "SystemExit" in state["leaves", "first"] and "ZeroDivisionError" in state["fails", "third"]
    assert state["cost_hide", "first"].startswith("shadowed") and state["cost_hide", "built-in"] == "ok"
    assert state["twice", "first"] == "broken: also offered by second; uninstall all but one"
    assert state["twice", "second"] == "broken: also offered by first; uninstall all but one"


def test_help_survives_broken_plugins(broken, capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out and "Options of --unlearn safe_rule:" in out


def test_a_broken_adapter_is_mentioned_only_where_none_fits(broken):
    with pytest.raises(IncompatibleAgent, match="ZeroDivisionError"):
        adapt(object())


def test_an_unknown_name_suggests_a_plugin(broken):
    with pytest.raises(ConfigError, match="did you mean 'leaves'"):
        ATTACKS.load("leave")
    assert "fails" in ADAPTERS.names()
