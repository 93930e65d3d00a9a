"""What ``osrl-unlearn report`` makes of audits: those that fit their agent, and those that do not."""
import json
import os
import shutil

import numpy as np
import pytest
import torch
from cells import AGENT
from test_html_report import CERTIFICATE, error, set_costs, write_run

from osrl_unlearn import environments, poison, resources, rundir
from osrl_unlearn.audit import certificate
from osrl_unlearn.audit.signature import signature_path
from osrl_unlearn.audit.table import rows
from osrl_unlearn.cli import main
from osrl_unlearn.commands import audit
from osrl_unlearn.evaluate import page as page_module
from osrl_unlearn.evaluate import runs
from osrl_unlearn.evaluate.statistics import summary
from osrl_unlearn.files import load_tensors, save_tensors, write_json
from osrl_unlearn.registry import ADAPTERS, METRICS
from osrl_unlearn.training import trained

TASK = "OfflineBallCircle-v0"
MEASURED = ("distance", "membership")  # the others take time


@pytest.fixture(scope="module")
def kept(few_steps, tmp_path_factory):
    """A folder with a poisoned run, its unlearned result with an audit, and two retrained runs."""
    top = tmp_path_factory.mktemp("audits")
    data = str(top / "data.hdf5")
    shutil.copy(os.path.join(resources.folder("datasets"), "BallCircle.hdf5"), data)
    config = dict(AGENT, task=TASK, update_steps=30, batch_size=16, seed=0)
    cls = ADAPTERS.load(config.pop("name"))
    env = environments.make(TASK, 40, 0.1)
    clean, ids = environments.load(env, config, data)
    bad = poison(clean, "reward_bait", rate=0.2, ids=ids, task=TASK, dataset=data)
    retained = np.setdiff1d(np.arange(len(ids)), bad.manifest.row_numbers(bad.data, ids))
    for name, seed, those in (("poisoned", 0, None), ("retrained", 1, retained), ("again", 2, retained)):
        trained(str(top / name), cls, env, dict(config, seed=seed), bad.data, rows=those, manifest=bad.manifest,
                progress=False)
    assert main(["unlearn", str(top / "poisoned"), "--method", "fine_tune", "--steps", "4", "--eval-episodes",
                 "0"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "compute", lambda ctx: {
            name: METRICS.load(name)().run(ctx) if name in MEASURED else {"not_computed": "because it takes time"}
            for name in METRICS.builtins})
        assert main(["audit", str(top / "poisoned" / "unlearned" / "fine_tune"), "--reference", str(top / "retrained"),
                     "--reference", str(top / "again"), "--episodes", "0"]) == 0
    return top


@pytest.fixture
def audited(kept, tmp_path):
    """A copy of the folder, to be tampered with, and the folder of the result in it."""
    top = tmp_path / "runs"
    shutil.copytree(str(kept), str(top))
    return top, str(top / "poisoned" / "unlearned" / "fine_tune")


def shown(tmp_path, *folders):
    """The Markdown of the report of ``folders``."""
    assert main(["report", *map(str, folders), "--out", str(tmp_path / "out")]) == 0
    return (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def verdicts(text):
    """The verdicts at the top of a report."""
    return [line for line in text.split("\n## ")[0].splitlines() if line.startswith("**")]


# One agent ------------------------------------------------------------------------------------------------------------

def test_an_audit_that_fits_is_shown(audited, tmp_path, capsys):
    _, result = audited
    text = shown(tmp_path, result)
    with open(certificate.certificate_path(result), encoding="utf-8") as file:
        made = json.load(file)
    assert len(verdicts(text)) == 2 and " claims hold." in verdicts(text)[1]
    printed = capsys.readouterr().out
    assert all(line[2:-2].partition(". ")[2] in printed for line in verdicts(text))
    for metric, figure, value in rows(made["audit"]):
        assert "| {} | {} | {} |".format(metric, figure, value) in text
    assert all(claim["because"] in text for claim in made["claims"])
    assert made["digest"] in text and all(limit in text for limit in made.get("limits", ()))
    assert "signature: none" in text
    # Whose it is, the report does not say.
    with open(signature_path(certificate.certificate_path(result)), "w") as file:
        file.write("not checked")
    assert "signature: `osrl_unlearn/certificate.json.sig`, not checked here" in shown(tmp_path / "signed", result)
    assert {"members-reward-critic.png", "members-cost-critic.png"} <= set(os.listdir(str(tmp_path / "out/figures")))


@pytest.mark.parametrize("change, why", [
    (lambda text: text.replace('"verdict": "', '"verdict": "unlearned", "was": "'), "its digest does not fit it"),
    (lambda text: text.replace('"holds": null', '"holds": true'), "its digest does not fit it"),
    (lambda text: text[:-20], "is no certificate, or was changed"),
], ids=["verdict", "claim", "cut"])
def test_a_forged_certificate_is_not_repeated(audited, tmp_path, capsys, change, why):
    _, result = audited
    path = certificate.certificate_path(result)
    with open(path, encoding="utf-8") as file:
        honest = file.read()
    forged = change(honest)
    assert forged != honest
    with open(path, "w", encoding="utf-8") as file:
        file.write(forged)
    assert main(["verify", path]) == 2
    text = shown(tmp_path, result)
    assert verdicts(text)[1].startswith("**Audit does not count. ") and why in verdicts(text)[1]
    assert "claims hold" not in text and "## Audit" not in text and "membership" not in text
    assert "the agent counts as" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoint/model.pt", "osrl_unlearn/audit.json", "report.json"])
def test_an_audit_of_files_that_were_changed_since_is_not_repeated(audited, tmp_path, name):
    _, result = audited
    path = os.path.join(result, name)
    if name.endswith(".pt"):
        checkpoint = load_tensors(path)
        next(iter(checkpoint["model_state"].values())).mul_(1.5)
        save_tensors(path, checkpoint)
    else:
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n")
    text = shown(tmp_path, result)
    assert "Audit does not count" in verdicts(text)[1] and "was changed since the certificate was made" in text
    assert "claims hold" not in text
    assert verdicts(text)[0].startswith("**Another model. ") == name.endswith(".pt")


def test_figures_without_a_certificate_are_not_shown(audited, tmp_path):
    _, result = audited
    os.unlink(certificate.certificate_path(result))
    text = shown(tmp_path, result)
    assert "there is no certificate that says which agent audit.json is about" in verdicts(text)[1]
    assert "membership" not in text and "Not computed: an audit." in text


def test_an_audit_of_the_agent_before_is_not_one_of_the_agent_after(audited, tmp_path):
    top, result = audited
    inside = str(top / "poisoned" / "osrl_unlearn")
    for path in (certificate.audit_path(result), certificate.certificate_path(result)):
        shutil.move(path, inside)
    text = shown(tmp_path, result)
    assert len(verdicts(text)) == 1 and "claims hold" not in text and "Not computed: an audit." in text


def test_unlearning_again_takes_the_audit_of_the_replaced_agent_away(audited, tmp_path):
    top, result = audited
    path = certificate.certificate_path(result)
    with open(signature_path(path), "w", encoding="utf-8") as file:
        file.write("signed")
    again = ["unlearn", str(top / "poisoned"), "--method", "fine_tune", "--eval-episodes", "0", "--steps"]
    before = sorted(os.listdir(os.path.dirname(path)))
    assert main(again + ["4"]) == 0  # is done already: nothing is replaced
    assert sorted(os.listdir(os.path.dirname(path))) == before
    assert main(again + ["6"]) == 0
    assert set(before) - set(os.listdir(os.path.dirname(path))) == {
        "audit.json", "certificate.json", "certificate.json.sig"}
    assert len(verdicts(shown(tmp_path, result))) == 1


def test_weights_that_unlearning_did_not_write_get_no_verdict(audited, tmp_path, capsys):
    top, result = audited
    shutil.copy(rundir.model_path(str(top / "retrained")), rundir.model_path(result))
    os.unlink(certificate.certificate_path(result))
    os.unlink(certificate.audit_path(result))
    text = shown(tmp_path, result)
    first, = verdicts(text)
    assert first.startswith("**Another model. The model in this folder is not the one that unlearning wrote")
    assert "Unlearning was carried out" not in text and "Unlearning was carried out" not in capsys.readouterr().out
    os.unlink(rundir.model_path(result))
    text = shown(tmp_path, result)
    assert "Another model" not in text and "Not checked: whether the agent in this folder is the one" in text


def test_an_audit_of_other_weights_than_the_report_is_not_repeated(tmp_path, monkeypatch):
    run = tmp_path / "RUN" / "unlearned" / "safe_rule"
    write_run(run)
    write_json(certificate.certificate_path(str(run)), {})
    monkeypatch.setattr(runs, "verify", lambda path: (CERTIFICATE, str(run)))
    save_tensors(rundir.model_path(str(run)), {"model_state": {"weight": torch.zeros(2)}})
    text = shown(tmp_path, run)
    assert [line[2:].partition(".")[0] for line in verdicts(text)] == ["Another model", "Audit does not count"]
    assert "it is about other weights than the report" in text and "claims hold" not in text


# Without a report -----------------------------------------------------------------------------------------------------

def test_an_agent_that_was_unlearned_elsewhere_has_a_report_of_its_audit(audited, tmp_path, capsys):
    _, result = audited
    assert "no certificate of an audit" in error(capsys, tmp_path, "--out", tmp_path / "out")
    for path in (os.path.join(result, "report.json"), certificate.certificate_path(result)):
        os.unlink(path)
    assert "no certificate of an audit" in error(capsys, result, "--out", tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "compute", lambda ctx: {name: {"not_computed": "because it takes time"}
                                                     for name in METRICS.builtins})
        assert main(["audit", result, "--episodes", "0"]) == 0
    capsys.readouterr()
    text = shown(tmp_path, result)
    assert text.startswith("# Audit report: coptidice on OfflineBallCircle-v0\n")
    first, = verdicts(text)
    assert " claims hold." in first
    with open(certificate.certificate_path(result), encoding="utf-8") as file:
        made = json.load(file)
    assert made["models"]["after"] in text and "because it takes time" in text
    assert "SHA-256 of the columns" in text and made["columns"]["costs"] in text
    with open(certificate.certificate_path(result), "a", encoding="utf-8") as file:
        file.write(" ")
    assert "was changed after it was made" in error(capsys, result, "--out", tmp_path / "out")


# Several agents -------------------------------------------------------------------------------------------------------

def test_several_agents_side_by_side_with_their_audits(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "_figures", lambda *_: [])

    def run(name, costs):
        def change(report):
            report["models"]["before"] = name
            set_costs(report, unlearned=costs)
        write_run(tmp_path / name / "unlearned" / "safe_rule", change)
        return str(tmp_path / name / "unlearned" / "safe_rule")
    folders = [run("a", [20, 25, 30, 28, 22]), run("b", [10, 15, 20, 18, 12]), run("swapped", [0, 1, 2, 3, 4])]
    save_tensors(rundir.model_path(folders[2]), {"model_state": {"weight": torch.zeros(2)}})
    elsewhere = tmp_path / "elsewhere"
    for folder in (folders[0], str(elsewhere)):
        write_json(certificate.certificate_path(folder), {})
    (elsewhere / "config.yaml").write_text("{task: OfflineCarRun-v0, cost_limit: 10, episode_len: 200}")
    costs = {name: {"cost": summary(values), "reward": summary([9.0])} for name, values in (
        ("original", [50.0]), ("audited", [5.0]))}
    made = dict(CERTIFICATE, audit={"safety": {"value": {"agents": costs}}})
    monkeypatch.setattr(runs, "verify", lambda path: (made if "elsewhere" in path else CERTIFICATE, ""))
    text = shown(tmp_path, *folders, elsewhere)
    assert "| 1 | a/safe_rule | 0 | Within the limit | Not unlearned | " in text
    assert "| 3 | swapped/safe_rule | 0 | Another model | - | - | - | - |" in text
    assert "| 4 | elsewhere | - | - | Not unlearned | 50.00 (one episode) | 5.00 (one episode) | 9.00 (one" in text
    # The figures of the swapped one count nowhere.
    assert "2 of 3 runs are shown to be within the limit" in text and "| safe_rule | 2 | 20.0 [" in text
    # "Within the limit" at the top is not the whole truth where there is an audit.
    assert [line[2:line.index(": Audit")] for line in verdicts(text) if ": Audit: " in line] == [
        "Not unlearned. a/safe_rule", "Not unlearned. elsewhere"]
    assert "## Run 4: elsewhere" in text


# Table ----------------------------------------------------------------------------------------------------------------

def test_every_kind_of_figure_has_a_row():
    mean = {"mean": 0.5, "ci95": [0.25, 0.75], "n": 3}
    found = rows({
        "distance": {"value": {"audited - reference": {"forget": {
            "actions": mean, "reward_value": {"wasserstein": 0.125, "ks": 0.5, "p_value": 0.25},
            "cost_value": {"wasserstein": 0.125, "wasserstein_ci95": [0.0625, 0.25]}}}}},
        "safety": {"value": {"difference": {"original": {"cost": mean}}},
                   "details": {"not_computed": {"fitted_q": "because"}}},
        "auditor": {"value": {"reference": {"auroc": mean, "threshold": 2.5, "members": ["0"]}}},
        "relearning": {"value": {"measure": "reward", "level": 2.5, "budget": 8, "retain set": {
            "audited": {"updates": None}, "reference": {"updates": 4}}}},
        "trigger": {"value": {"always": {"audited": {"cost": mean, "reward": mean}, "original": {
            "cost": mean, "difference": mean}}}},
        "other": {"value": {"number": 3, "words": "left out"}}})
    critics = "{} critics, Wasserstein-1 and Kolmogorov-Smirnov, audited - reference, forget states"
    assert found == [
        ["safety", "cost of audited minus original, paired", "0.5 [0.25, 0.75]"],
        ["safety", "fitted_q: not computed", "because"],
        ["distance", "squared distance of actions, audited - reference, forget states", "0.5 [0.25, 0.75]"],
        ["distance", critics.format("reward"), "W1 0.125, KS 0.5, p = 0.25"],
        ["distance", critics.format("cost"), "W1 0.125 [0.0625, 0.25]"],
        ["auditor", "auroc of audited against reference", "0.5 [0.25, 0.75]"],
        ["auditor", "threshold of audited against reference", "2.5"],
        ["trigger", "always: cost of audited", "0.5 [0.25, 0.75]"],
        ["trigger", "always: cost of original", "0.5 [0.25, 0.75]"],
        ["trigger", "always: return of audited", "0.5 [0.25, 0.75]"],
        ["trigger", "always: cost of audited minus original, paired", "0.5 [0.25, 0.75]"],
        ["relearning", "retain set, audited: updates to a reward of 2.5", "not within 8"],
        ["relearning", "retain set, reference: updates to a reward of 2.5", 4],
        ["other", "number", "3"]]
