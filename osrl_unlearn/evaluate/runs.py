"""Finished unlearning runs, read for the summary of ``osrl-unlearn report``."""
import json
import os
from typing import Any, Dict, List, NamedTuple, Optional

from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.errors import RunError
from osrl_unlearn.evaluate.structure import check, walk
from osrl_unlearn.rundir import manifest_path

AUDITS = ("audit.json", "certificate.json")
AUDIT_SCHEMA = {  # of both
    "type": "object",
    "properties": {
        "verdict": {"type": "string"}, "reason": {"type": "string"},
        "metrics": {"type": "object", "additionalProperties": {"type": "object", "properties": {
            "value": {"type": "object"}, "not_computed": {"type": "string"}}}},
        "claims": {"type": "array", "items": {"type": "object", "required": ["claim", "holds"], "properties": {
            "claim": {"type": "string"}, "text": {"type": "string"}, "because": {"type": "string"},
            "holds": {"type": ["boolean", "null"]}}}}}}


class UnlearnedRun(NamedTuple):
    """What is known about one result."""
    folder: str                          # RUN_DIR/unlearned/METHOD
    label: str                           # short, and different for every run of a report
    report: Dict[str, Any]
    manifest: Optional[ForgetManifest]
    audits: Dict[str, Dict[str, Any]]    # path: content


def find_runs(paths):
    """The runs in ``paths``, each RUN_DIR/unlearned/METHOD, or a RUN_DIR of which all methods are taken.

    Raises RunError when there is none in a path, or what is there cannot be used.
    """
    folders = []
    for path in paths:
        found = [path] if os.path.isfile(os.path.join(path, "report.json")) else []
        inside = os.path.join(path, "unlearned")
        if not found and os.path.isdir(inside):
            found = [os.path.join(inside, name) for name in sorted(os.listdir(inside))
                     if os.path.isfile(os.path.join(inside, name, "report.json"))]
        if not found:
            raise RunError("no report.json in {0}, nor in {0}/unlearned/METHOD: give the folder of a run that was "
                           "unlearned".format(path))
        folders += [os.path.realpath(folder) for folder in found]
    folders = list(dict.fromkeys(folders))
    return [_read(folder, label) for folder, label in zip(folders, _labels(folders))]


def _labels(folders):
    """What tells the folders apart, without the "unlearned" that all have."""
    names = [os.path.normpath(folder).split(os.sep) for folder in folders]
    names = [parts[:-2] + parts[-1:] if parts[-2:-1] == ["unlearned"] else parts for parts in names]
    shared = 0 if len(names) > 1 else len(names[0]) - 2
    while len(names) > 1 and len({tuple(parts[:shared + 1]) for parts in names}) == 1:
        shared += 1
    return ["/".join(parts[max(0, min(shared, len(parts) - 1)):]) for parts in names]


def _read(folder, label):
    report = _json(os.path.join(folder, "report.json"))
    try:
        check(report)
    except ValueError as error:
        raise RunError("{} is not a report of osrl-unlearn ({}): unlearn again to write a new one".format(
            os.path.join(folder, "report.json"), error))
    manifest = manifest_path(folder)
    return UnlearnedRun(folder, label, report, ForgetManifest.load(manifest) if os.path.isfile(manifest) else None,
                        _audits(folder))


def _audits(folder):
    """Audits of the result itself, and of the run directory that it is in."""
    folders: List[str] = [folder]
    if os.path.basename(os.path.dirname(folder)) == "unlearned":
        folders.append(os.path.dirname(os.path.dirname(folder)))
    found = {}
    for place in folders:
        for name in AUDITS:
            path = os.path.join(place, "osrl_unlearn", name)
            if os.path.isfile(path):
                found[path] = _json(path)
                try:
                    walk(found[path], AUDIT_SCHEMA, {}, name)
                except ValueError as error:
                    raise RunError("{} cannot be shown ({}): delete it or write it again".format(path, error))
    return found


def _json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError("{} cannot be read as JSON ({})".format(path, str(error)[:100]))
