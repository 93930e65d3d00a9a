"""The results that are shipped: the raw numbers of every bench cover its suite, and give the table that is shown."""
import json
import os
from types import SimpleNamespace

import pytest

from osrl_unlearn.bench import output, runner
from osrl_unlearn.commands import bench

# Of the checkout: raw results are not installed.
RESULTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "osrl_unlearn", "bench", "results")


def shipped(name, suffix):
    with open(os.path.join(RESULTS, name + suffix), encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("name, suite", [(name, "small") for name in bench.BENCHES] + [
    ("unlearning", "long"), ("unlearning", "holdout"), ("unlearning", "bc"), ("unlearning", "cdt"),
    ("unlearning", "bearl")])
def test_the_raw_results_give_the_table(name, suite, monkeypatch):
    files = name if suite == "small" else "{}_{}".format(name, suite)
    suite = suite if suite == "small" else "configs/bench/{}.yaml".format(files)
    report = json.loads(shipped(files, ".json"))
    raw = {line["key"]: line["result"] for line in map(json.loads, shipped(files, ".jsonl").splitlines())}
    table = []

    def again(name, suite, args, *, plan, aggregate, text, **_):
        cells = plan(suite, {task: about["file"] for task, about in report["data"].items()},
                     {task: about["sha256"] for task, about in report["data"].items()})
        assert [cell["label"] for cell in cells.values() if runner.key(cell) not in raw] == []
        results = {where: raw[runner.key(cell)] for where, cell in cells.items()}
        if files == "unlearning":
            return 0  # the bootstrap of its table takes minutes
        table.append(text(dict(report, **aggregate(suite, results))))
        return 0

    monkeypatch.setattr(output, "run", again)
    assert bench.run(name, suite, SimpleNamespace(jobs=None, cluster=None, set=[], only=None, seeds=None)) == 0
    shown = shipped(files, ".md").rstrip("\n").split("\n\nComputed with")[0]
    assert table == ([] if files == "unlearning" else [shown])
