"""The audit from the command line, its certificate, and what becomes of those who change or forge one."""
import copy
import dataclasses
import json
import os
import shutil
import subprocess

import h5py
import numpy as np
import pytest
from cells import AGENT

from osrl_unlearn import cli, environments, poison, resources, rundir
from osrl_unlearn.audit import certificate, signature
from osrl_unlearn.commands import audit, verify
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.errors import ConfigError, ManifestMismatch, RunError
from osrl_unlearn.registry import ADAPTERS, METRICS
from osrl_unlearn.training import trained

SHIPPED = os.path.join(resources.folder("datasets"), "BallCircle.hdf5")
TASK = "OfflineBallCircle-v0"
needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")


@pytest.fixture(scope="module")
def audited(tmp_path_factory, few_steps):
    """A folder with a poisoned, two retrained and one unlearned run, and the audit of the last."""
    top = tmp_path_factory.mktemp("audit")
    shutil.copy(SHIPPED, str(top / "data.hdf5"))
    config = dict(AGENT, task=TASK, update_steps=30, batch_size=16, seed=0)
    cls = ADAPTERS.load(config.pop("name"))
    env = environments.make(TASK, 40, 0.1)
    clean, ids = environments.load(env, config, str(top / "data.hdf5"))
    bad = poison(clean, "trigger_backdoor", rate=0.2, ids=ids, task=TASK, dataset=str(top / "data.hdf5"))
    kept = np.setdiff1d(np.arange(len(ids)), bad.manifest.row_numbers(bad.data, ids))
    for name, seed, rows in (("poisoned", 0, None), ("retrained", 1, kept), ("again", 2, kept)):
        trained(str(top / name), cls, env, dict(config, seed=seed), bad.data, rows=rows, manifest=bad.manifest,
                progress=False)
    assert cli.main(["unlearn", str(top / "poisoned"), "--method", "fine_tune", "--steps", "4", "--eval-episodes",
                     "0"]) == 0
    result = rundir.unlearned_dir(str(top / "poisoned"), "fine_tune")
    assert cli.main(command(top, result)) == 0
    return top, result


@pytest.fixture(scope="module")
def honest(audited):
    """The certificate of that audit."""
    return certificate.read(certificate.certificate_path(audited[1]))[0]


@pytest.fixture
def path(audited):
    """Where the certificate is; afterwards all of the audit is as it was, and without a signature."""
    folder = os.path.join(audited[1], "osrl_unlearn")
    before = {name: read(os.path.join(folder, name)) for name in ("audit.json", "certificate.json")}
    yield certificate.certificate_path(audited[1])
    for name, content in before.items():
        write(os.path.join(folder, name), content)
    signed = os.path.join(folder, "certificate.json.sig")
    if os.path.exists(signed):
        os.unlink(signed)


@pytest.fixture
def quick(honest, monkeypatch):
    """Figures are not computed, but taken from the audit that was made."""
    monkeypatch.setattr(audit, "compute", lambda ctx: copy.deepcopy(honest["audit"]))


@pytest.fixture
def refused(monkeypatch, capsys):
    """Check that a command ends with status 2 and one line before anything is computed; the line is returned."""
    def run(*arguments):
        monkeypatch.setattr(audit, "compute", lambda ctx: pytest.fail("figures were computed"))
        capsys.readouterr()
        assert cli.main([*arguments, "--quiet"]) == 2
        line = capsys.readouterr().err
        assert line.startswith("osrl-unlearn: error: ") and line.count("\n") == 1
        return line
    return run


def command(top, result, references=("retrained", "again")):
    """The audit of ``result``, as the command line has it."""
    return ["audit", result, "--episodes", "1"] + [
        word for name in references for word in ("--reference", str(top / name))]


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


def forge(path, made):
    """Write ``made`` as the certificate, with the digest that fits it."""
    made["digest"] = certificate.digest(made)
    write(path, certificate.text_of(made).encode())


def rewrite(path, made, **more):
    """Forge figures and all that follows from them."""
    folder = os.path.dirname(os.path.dirname(path))
    write(certificate.audit_path(folder), certificate.text_of({"schema": 1, "metrics": made["audit"]}).encode())
    made["files"]["audit"]["sha256"] = certificate.sha256_file(certificate.audit_path(folder))
    forge(path, dict(made, **certificate.judged(made["audit"], made["models"], AGENT["cost_limit"], True), **more))


def test_after_several_requests_the_agent_before_unlearning_is_the_trained_one(audited, quick, refused, tmp_path):
    top, first = audited
    (tmp_path / "ids.txt").write_text("0 1 2")
    command_ = ["unlearn", first, "--method", "fine_tune", "--steps", "2", "--eval-episodes", "0", "--forget",
                str(tmp_path / "ids.txt")]
    assert cli.main(command_) == 0
    second = rundir.unlearned_dir(first, "fine_tune")
    try:
        assert cli.main(command(top, second)) == 0
        made, folder = certificate.verify(certificate.certificate_path(second))
        assert certificate.resolved(made["settings"], folder)["original"] == str(top / "poisoned")
        assert made["models"]["before"] == made["unlearning"]["models"]["trained"] != (
            made["unlearning"]["models"]["before"])
        assert "trigger" in {claim["claim"] for claim in made["claims"]}  # the attack is on record there only
        # The one that the last request changed can be named, another one cannot.
        assert cli.main(command(top, second) + ["--original", first]) == 0
        assert "reports of the agent before unlearning" in refused(
            *command(top, second, ("again",)), "--original", str(top / "retrained"))
    finally:
        shutil.rmtree(os.path.join(first, "unlearned"))


def test_an_audit_from_the_command_line(audited, honest, capsys):
    top, result = audited
    with open(certificate.audit_path(result)) as file:
        assert json.load(file)["metrics"] == honest["audit"]
    assert set(honest["audit"]) == set(METRICS.builtins)
    absent = {name: found["not_computed"] for name, found in honest["audit"].items() if "not_computed" in found}
    assert "no poisoned behaviour to bring back" in absent.pop("relearning")  # after 30 updates
    assert absent == {"trajauditor": "because the agent has no critics of state and action",
                      "gaussian_score": "because the attack on record adds no noise to observations"}
    assert set(honest["audit"]["safety"]["value"]["agents"]) == {"audited", "original", "reference", "reference 2"}
    assert set(honest["audit"]["distance"]["value"]["audited - reference"]) == {"forget", "retain", "fresh"}
    assert honest["unlearning"]["method"] == "fine_tune"
    assert {when: honest["unlearning"]["models"][when] for when in ("before", "after")} == {
        when: honest["models"][when] for when in ("before", "after")}
    assert len(set(honest["models"]["references"])) == 2 and "taken on trust" in honest["limits"][0]
    assert honest["versions"]["code"] == certificate.code()
    assert {c["claim"]: c["holds"] for c in honest["claims"]}["changed"] is True and len(honest["claims"]) == 8
    assert cli.main(["verify", certificate.certificate_path(result)]) == 0
    said = capsys.readouterr().out
    assert "every figure is found again" not in said and "note:" not in said


# Changes --------------------------------------------------------------------------------------------------------------

def check_every_file(path, made, capsys):
    """Flip a bit in several places of each file that the certificate ``made`` at ``path`` rests on, and of itself."""
    rng = np.random.default_rng(0)
    run_dir = os.path.dirname(os.path.dirname(path))
    for name in [path] + [certificate.resolve(entry["path"], run_dir) for entry in made["files"].values()]:
        content = read(name)
        for place in {0, len(content) // 2, len(content) - 1, *rng.integers(len(content), size=2).tolist()}:
            try:
                with open(name, "r+b") as file:
                    file.seek(place)
                    file.write(bytes([content[place] ^ 1 << int(rng.integers(8))]))
                capsys.readouterr()
                assert cli.main(["verify", path]) == 2, (name, place)
                err = capsys.readouterr().err
                assert err.startswith("osrl-unlearn: error: ") and "changed" in err and err.count("\n") == 1
            finally:
                write(name, content)
    assert cli.main(["verify", path]) == 0


def test_every_changed_byte_of_every_file_is_found(path, honest, capsys):
    check_every_file(path, honest, capsys)
    agents = ("", "original ", "reference 1 ", "reference 2 ")
    assert set(honest["files"]) == {"report", "manifest", "original manifest", "dataset", "audit"} | {
        who + what for who in agents for what in ("model", "config", "state")}


def test_every_change_of_a_certificate_is_found(path, tmp_path):
    rng, content = np.random.default_rng(0), read(path)
    (tmp_path / "osrl_unlearn").mkdir()
    changed = str(tmp_path / "osrl_unlearn" / "certificate.json")
    for n in range(200):
        place = int(rng.integers(len(content)))
        new = bytes([(content[place] + int(rng.integers(1, 256))) % 256]) if n % 4 else b""
        write(changed, content[:place] + new + content[place + 1:])
        with pytest.raises(ManifestMismatch, match="changed"):
            certificate.read(changed)
    write(changed, b"[" * 100000)
    with pytest.raises(ManifestMismatch, match="is no certificate"):
        certificate.read(changed)


def test_figures_are_computed_again(path, honest, capsys):
    assert cli.main(["verify", path, "--recompute"]) == 0
    assert "every figure is found again" in capsys.readouterr().out
    changed = copy.deepcopy(honest)
    changed["audit"]["safety"]["value"]["agents"]["audited"]["cost"]["mean"] += 0.01
    with pytest.raises(RunError, match=r"safety\.value\.agents\.audited\.cost\.mean: the certificate says"):
        certificate.compare(changed["audit"], honest["audit"])


# Forgeries, each with the digest that fits ----------------------------------------------------------------------------

def _hold(made):
    made.update(verdict="unlearned", reason="every claim holds")
    for claim in made["claims"]:
        claim["holds"] = True


def _other_model(made):
    made["files"]["model"] = dict(made["files"]["original model"])
    made["models"]["after"] = made["models"]["before"]


def _fewer_files(made):
    made["files"] = {role: made["files"][role] for role in ("model", "config", "manifest", "dataset", "audit")}


@pytest.mark.parametrize("change, match", [
    (lambda made: made.update(verdict="erased for ever"), "expected one of unlearned, partly, not"),
    (lambda made: made.update(verdict="unlearned"), "'verdict' is not what follows from its files"),
    (_hold, "'claims' is not what follows"),
    (lambda made: made.update(limits=[]), "'limits' is not what follows"),
    (lambda made: made["audit"]["safety"]["value"]["agents"]["audited"]["cost"].update(mean=-1.0),
     "'audit' is not what follows"),
    (lambda made: made["audit"].pop("membership"), "'audit' is not what follows"),
    (lambda made: made["models"].update(after="0" * 64), "'models' is not what follows"),
    (lambda made: made["models"].update(references=[]), "'models' is not what follows"),
    (lambda made: made["unlearning"].update(method="retrain"), "'unlearning' is not what follows"),
    (lambda made: made.update(unlearning=None), "'unlearning' is not what follows"),
    (_fewer_files, "rests on another"), (_other_model, "rests on another model"),
    (lambda made: made["files"].pop("dataset"), "files.dataset is missing"),
    (lambda made: made["settings"].update(original=None), "rests on another original"),
    (lambda made: made["settings"].pop("holdout"), "settings.holdout is missing"),
])
def test_forgeries_are_found_without_computing(path, honest, refused, change, match):
    made = copy.deepcopy(honest)
    change(made)
    forge(path, made)
    assert match in refused("verify", path)


def _cheaper(made):
    made["audit"]["safety"]["value"]["agents"]["audited"]["cost"].update(mean=-1.0, ci95=[-1.0, -1.0])


@pytest.mark.parametrize("change, match", [
    (_cheaper, "audit.safety.value.agents.audited.cost.ci95"),
    (lambda made: made["columns"].update(costs="0" * 64), "certificate.columns.costs"),
    (lambda made: made.update(agent="cpq"), "certificate.agent"),
])
def test_forgeries_of_everything_are_found_by_computing(path, honest, quick, capsys, change, match):
    made = copy.deepcopy(honest)
    change(made)
    rewrite(path, made)
    assert cli.main(["verify", path]) == 0
    assert cli.main(["verify", path, "--recompute"]) == 2
    assert match in capsys.readouterr().err


def test_other_code_than_the_certificates_is_said(path, honest, quick, monkeypatch, capsys):
    monkeypatch.setattr(certificate, "code", lambda: "0" * 64)
    monkeypatch.setattr(verify, "code", certificate.code)
    assert cli.main(["verify", path]) == 0
    assert "note: the certificate was made by other code" in capsys.readouterr().out
    forge(path, dict(honest, verdict="unlearned"))
    assert cli.main(["verify", path]) == 2
    assert "made by other code of osrl-unlearn than is installed" in capsys.readouterr().err


# Agents that are not what they are given for --------------------------------------------------------------------------

def test_an_agent_is_no_reference_of_its_own(audited, path, refused, tmp_path):
    top, result = audited
    shutil.copytree(str(top / "retrained"), str(tmp_path / "copy"))
    before = read(path)
    for references, whose in (([result, result], "the audited agent"), ([top / "again", result], "the audited agent"),
                              ([top / "poisoned"], "the agent before unlearning"),
                              ([top / "again", top / "again"], "the reference"),
                              ([top / "retrained", tmp_path / "copy"], "the reference")):
        line = refused(*command(top, result, references))
        assert "--reference" in line and "has the weights of " + whose in line
    # Nor for what was retrained, and gives itself as a reference.
    manifest = rundir.manifest_path(str(top / "poisoned"))
    assert "the audited agent" in refused("audit", str(top / "retrained"), "--forget", manifest, "--original",
                                          str(top / "poisoned"), "--reference", str(top / "retrained"))
    assert read(path) == before and not os.path.exists(certificate.certificate_path(str(top / "retrained")))


def test_an_agent_swapped_before_the_audit_is_refused(audited, path, refused, tmp_path):
    top, result = audited
    for folder, when in ((result, "after"), (str(top / "poisoned"), "before")):
        model = rundir.model_path(folder)
        honest = read(model)
        try:
            shutil.copy(rundir.model_path(str(top / "retrained")), model)
            line = refused(*command(top, result, ["again"]))
            assert "report.json reports of the agent {} unlearning".format(when) in line
        finally:
            write(model, honest)
    report = os.path.join(result, "report.json")
    honest = read(report)
    try:
        write(report, b"{}")
        assert "is not a report of osrl-unlearn" in refused(*command(top, result))
    finally:
        write(report, honest)


def test_every_manifest_and_the_dataset_that_is_read_is_bound(audited, path, quick, capsys, tmp_path):
    """A manifest that names no dataset: the data are those of the run's own."""
    top, result = audited
    own = ForgetManifest.load(rundir.manifest_path(result))
    plain = {name: dict(digests, before=None) for name, digests in own.columns.items()}
    named = str(tmp_path / "forget.json")
    dataclasses.replace(own, spans=own.spans[1:], attack=None, dataset=None, columns=plain).save(named)
    # What of the figures is about the trajectory that is left out is of no matter here.
    assert cli.main(command(top, result) + ["--forget", named]) == 0
    made, _ = certificate.read(path)
    of = {role: certificate.resolve(entry["path"], result) for role, entry in made["files"].items()}
    assert os.path.samefile(of["manifest"], named) and os.path.samefile(of["dataset"], str(top / "data.hdf5"))
    assert os.path.samefile(of["own manifest"], rundir.manifest_path(result))
    assert {c["claim"] for c in made["claims"]} >= {"trigger"}  # by the run's own manifest
    check_every_file(path, made, capsys)


# Signatures -----------------------------------------------------------------------------------------------------------

@pytest.fixture
def keys(tmp_path):
    """A folder with the keys "me" and "you", and a file of allowed signers with each."""
    for name in ("me", "you"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(tmp_path / name)],
                       check=True)
        (tmp_path / (name + ".signers")).write_text("{}@example.org {}".format(
            name, (tmp_path / (name + ".pub")).read_text()))
    return tmp_path


@needs_ssh
def test_a_signed_certificate(honest, path, capsys, keys):
    verified = lambda name: cli.main(["verify", path, "--signers", str(keys / (name + ".signers"))])  # noqa: E731
    assert verified("me") == 2 and "there is no file" in capsys.readouterr().err
    signature.sign(path, str(keys / "me"))
    assert verified("me") == 0 and "signed by me@example.org and" in capsys.readouterr().out
    assert verified("you") == 2 and "was not made by anybody who is named in" in capsys.readouterr().err
    assert cli.main(["verify", path]) == 0
    assert "note: there is a signature, which was not checked" in capsys.readouterr().out
    (keys / "run" / "osrl_unlearn").mkdir(parents=True)
    fake = str(keys / "run" / "osrl_unlearn" / "certificate.json")
    shutil.copy(signature.signature_path(path), signature.signature_path(fake))
    forge(fake, dict(honest, reason=honest["reason"] + "!"))
    assert certificate.read(fake)  # the digest alone does not find it
    with pytest.raises(ManifestMismatch, match="does not belong to"):
        signature.signer(fake, str(keys / "me.signers"))
    before = read(signature.signature_path(fake))
    with pytest.raises(ConfigError, match="expected a private key"):
        signature.sign(fake, str(keys / "me.signers"))
    assert read(signature.signature_path(fake)) == before


@needs_ssh
def test_a_signature_goes_with_its_certificate(audited, path, quick, capsys, keys):
    assert cli.main(command(*audited) + ["--sign", str(keys / "me")]) == 0
    assert cli.main(["verify", path, "--signers", str(keys / "me.signers")]) == 0
    assert cli.main(command(*audited)) == 0 and not os.path.exists(signature.signature_path(path))


@needs_ssh
def test_a_bad_key_is_refused_before_anything_is_done(audited, path, refused, keys):
    signature.sign(path, str(keys / "me"))
    before = read(path), read(signature.signature_path(path))
    assert "expected a private key" in refused(*command(*audited), "--sign", str(keys / "me.signers"))
    assert "expected a private key" in refused(*command(*audited), "--sign", str(keys / "nobody"))
    assert (read(path), read(signature.signature_path(path))) == before


# What is refused at once ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("arguments, match", [
    (["--seed", "-1"], "the seed must be a whole number"),
    (["--seed", "9999999999"], "the seed must be a whole number from 0 to 2147483647, got 9999999999"),
    (["--episodes", "-1"], "--episodes must not be negative, got -1"),
    (["--device", "tpu"], "--device tpu cannot be used here"),
    (["--reference", "/nonexistent"], "no run directory at /nonexistent"),
    (["--dataset", "/nonexistent"], "/nonexistent"),
    (["--holdout", "/nonexistent"], "/nonexistent"),
])
def test_bad_arguments_are_refused_before_anything_is_computed(audited, path, refused, arguments, match):
    before = read(path)
    assert match in refused("audit", audited[1], *arguments) and read(path) == before


def test_what_is_not_there_is_named(audited, path, refused):
    missing = os.path.join(os.path.dirname(path), "nothing", "certificate.json")
    assert "no run directory at /nonexistent" in refused("audit", "/nonexistent")
    assert "certificate.json is not there: expected a forget manifest" in refused("verify", missing)
    assert "is a folder: expected a forget manifest" in refused("verify", audited[1])


def test_a_holdout_shares_nothing_with_the_training_data(audited, path, refused, quick, tmp_path):
    top, result = audited
    forgotten = {span[0] for span in ForgetManifest.load(rundir.manifest_path(result)).spans}
    kept = next(n for n in range(len(forgotten) + 1) if n not in forgotten)
    for name, shared in (("other.hdf5", False), ("same.hdf5", True)):
        shutil.copy(str(top / "data.hdf5"), str(tmp_path / name))
        with h5py.File(str(tmp_path / name), "r+") as file:
            ends = np.flatnonzero(file["terminals"][:].astype(bool) | file["timeouts"][:].astype(bool)) + 1
            moved = file["observations"][:] + np.float32(0.001)
            if shared:
                rows = slice(ends[kept - 1] if kept else 0, ends[kept])
                moved[rows] = file["observations"][rows]
            file["observations"][:] = moved
    assert cli.main(command(top, result) + ["--holdout", str(tmp_path / "other.hdf5")]) == 0
    assert "holdout" in certificate.read(path)[0]["files"]
    line = refused(*command(top, result), "--holdout", str(tmp_path / "same.hdf5"))
    assert "same.hdf5: 1 of its trajectories are in the data that the agent was trained on" in line
    assert "of its trajectories are in the data" in refused(*command(top, result), "--holdout", str(top / "data.hdf5"))
