"""Finished unlearning runs and audited agents, read for the summary of ``osrl-unlearn report``."""
import json
import os
from typing import Any, Dict, NamedTuple, Optional

from osrl_unlearn import rundir
from osrl_unlearn.audit.certificate import audit_path, certificate_path, verify
from osrl_unlearn.audit.signature import signature_path
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.errors import OsrlUnlearnError, RunError
from osrl_unlearn.evaluate.structure import check, walk
from osrl_unlearn.files import sha256_state

METRICS_SCHEMA = {  # of what a certificate says of its audit
    "type": "object", "additionalProperties": {"type": "object", "properties": {
        "value": {"type": "object"}, "not_computed": {"type": "string"}, "per_trajectory": {"type": "object"},
        "details": {"type": "object"}, "tests": {"type": "object"}}}}


class UnlearnedRun(NamedTuple):
    """What is known about one agent; there is a report, a certificate, or both."""
    folder: str                            # RUN_DIR/unlearned/METHOD, or an audited RUN_DIR
    label: str                             # short, and different for every run of a report
    task: str
    report: Optional[Dict[str, Any]]
    manifest: Optional[ForgetManifest]
    weights: Optional[str]                 # SHA-256 of those in the folder; None: there are none
    certificate: Optional[Dict[str, Any]]  # of an audit of this very agent
    doubt: Optional[str]                   # why an audit that lies there is not shown

    @property
    def signed(self):
        """Whether a signature lies beside the certificate; whose it is, is not known here."""
        return os.path.isfile(signature_path(certificate_path(self.folder)))

    @property
    def swapped(self):
        """Whether the weights in the folder are not those that the report is about."""
        return self.report is not None and self.weights not in (None, self.report["models"]["after"])


def find_runs(paths):
    """The runs in ``paths``: each RUN_DIR/unlearned/METHOD, a RUN_DIR with its methods, or an audited RUN_DIR.

    Raises RunError when there is none in a path, or what is there cannot be used.
    """
    folders = []
    for path in paths:
        found = [path] if os.path.isfile(_report_path(path)) else []
        inside = os.path.join(path, "unlearned")
        if not found and os.path.isdir(inside):
            found = [folder for folder in (os.path.join(inside, name) for name in sorted(os.listdir(inside)))
                     if os.path.isfile(_report_path(folder)) or os.path.isfile(certificate_path(folder))]
        if not found and os.path.isfile(certificate_path(path)):
            found = [path]
        if not found:
            raise RunError("no report.json in {0}, nor in {0}/unlearned/METHOD, and no certificate of an audit: give "
                           "the folder of a run that was unlearned or audited".format(path))
        folders += [os.path.realpath(folder) for folder in found]
    folders = list(dict.fromkeys(folders))
    return [_read(folder, label) for folder, label in zip(folders, _labels(folders))]


def _report_path(folder):
    return os.path.join(folder, "report.json")


def _labels(folders):
    """What tells the folders apart, without the "unlearned" that all have."""
    names = [os.path.normpath(folder).split(os.sep) for folder in folders]
    names = [parts[:-2] + parts[-1:] if parts[-2:-1] == ["unlearned"] else parts for parts in names]
    shared = 0 if len(names) > 1 else len(names[0]) - 2
    while len(names) > 1 and len({tuple(parts[:shared + 1]) for parts in names}) == 1:
        shared += 1
    return ["/".join(parts[max(0, min(shared, len(parts) - 1)):]) for parts in names]


def _read(folder, label):
    report = _report(_report_path(folder)) if os.path.isfile(_report_path(folder)) else None
    certificate, doubt = _certified(folder)
    if report is None and certificate is None:
        raise RunError("{} cannot be shown ({}): audit the agent again".format(certificate_path(folder), doubt))
    manifest = rundir.manifest_path(folder)
    run = UnlearnedRun(
        folder, label, report["task"] if report is not None else rundir.read_config(folder)["task"], report,
        ForgetManifest.load(manifest) if os.path.isfile(manifest) else None,
        sha256_state(rundir.read_weights(folder)) if os.path.isfile(rundir.model_path(folder)) else None,
        certificate, doubt)
    if run.swapped and certificate is not None:
        return run._replace(certificate=None, doubt="it is about other weights than the report")
    return run


def _report(path):
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError("{} cannot be read as JSON ({})".format(path, str(error)[:100]))
    try:
        check(report)
    except ValueError as error:
        raise RunError("{} is not a report of osrl-unlearn ({}): unlearn again to write a new one".format(path, error))
    return report


def _certified(folder):
    """(certificate, None) if there is one and it fits its files; (None, why it is not shown); (None, None)."""
    path = certificate_path(folder)
    if not os.path.isfile(path):
        return None, "there is no certificate that says which agent audit.json is about" if os.path.isfile(
            audit_path(folder)) else None
    try:
        certificate = verify(path)[0]
        walk(certificate["audit"], METRICS_SCHEMA, {}, "audit")
    except (OsrlUnlearnError, ValueError) as error:
        return None, str(error).replace(folder + os.sep, "")
    return certificate, None
