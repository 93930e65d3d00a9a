"""Statistics and the report of an unlearning run."""
import copy
import json
import math
import os
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread

from osrl_unlearn.evaluate import report as reporting
from osrl_unlearn.evaluate.statistics import paired_difference, summary

TRACE_KEYS = ("reward_value/forget", "reward_value/retain", "cost_value/forget", "cost_value/retain",
              "action_distance/forget", "multiplier", "gate_cost")


def agent(reward, cost, n=20, seed=0, **more):
    rng = np.random.default_rng(seed)
    episodes = {"reward": (reward + 12 * rng.standard_normal(n)).tolist(),
                "cost": np.maximum(0, cost + 9 * rng.standard_normal(n)).round().tolist(), "length": [300.0] * n}
    out = {key: summary(values) for key, values in episodes.items()}
    return dict(out, normalized_reward=(out["reward"]["mean"] - 15) / 585, normalized_cost=out["cost"]["mean"] / 40,
                episodes=episodes, **more)


def example(n=20):
    """A report as a run on a real task gives it, and its trace."""
    report = {
        "schema": 1, "task": "OfflineBallCircle-v0", "agent": "BCQL", "method": "safe_rule",
        "options": {"forget_share": 0.6, "margin": 1.0}, "cost_limit": 40, "seed": 0, "dataset": "demo",
        "attack": {"name": "cost_hide", "options": {"segment_length": 10}, "rate": 0.1, "unit": "trajectory",
                   "seed": 0},
        "forget": {"unit": "trajectory", "rows": 12400, "trajectories": 62, "share": 0.1},
        "poisoned": agent(502, 52, n, 1), "unlearned": agent(489, 27, n, 2),
        "reference": agent(493, 29, n, 3, updates=20000, seconds=410.0),
        "more_agents": {"clean": agent(494, 28, n, 4), "fine_tune": agent(497, 46, n, 5, updates=1000, seconds=21.0)},
        "updates": {"train": 20000, "unlearn": 1000, "ratio": 0.05},
        "wall_seconds": {"train": None, "unlearn": 24.31, "ratio": None},
        "normalization": {"reward_min": 15.0, "reward_max": 600.0, "cost_limit": 40, "epsilon": 0},
        "critics": {"reward_value": {"forget": {"before": 31.0, "after": 22.5},
                                     "retain": {"before": 28.0, "after": 27.5}},
                    "cost_value": {"forget": {"before": 0.8, "after": 6.1}, "retain": {"before": 2.0, "after": 2.2}},
                    "action_distance": {"forget": {"before": 0.25, "after": 0.85}}},
        "multiplier": {"max": 1.0, "mean": 0.42, "final": 0.0, "active_share": 0.7},
        "gate": {"used": True, "estimate_before": 3.9, "estimate_after": 2.7, "threshold": 4.2, "accepted_checks": 9,
                 "rejected_checks": 1},
        "accepted": True, "rollbacks": 1, "reason": "budget spent",
        "versions": {"python": "3.10.13", "torch": "1.13.1"},
        "models": {"before": "a" * 64, "after": "b" * 64}, "notes": ["The environment is a stand-in."],
    }
    trace = []
    for k in range(1, 11):
        x = min(1.0, k / 6)
        values = (31 - 8.5 * x, 28 - 1.5 * math.sin(3 * x), 0.8 + 5.3 * x, 2 + 0.2 * x, 0.25 + 0.6 * x,
                  max(0.0, math.sin(k / 2.5)), 3.9 - 1.2 * x + (1.1 if k == 3 else 0))
        trace.append(dict(zip(TRACE_KEYS, values), step=100 * k, stage=float(k > 6), accepted=float(k != 3),
                          violation=0.1))
    return report, trace


def switched_off():
    report, trace = example()
    return dict(report, poisoned=None, unlearned=None, reference=None, more_agents={}), trace


# Statistics -----------------------------------------------------------------------------------------------------------

def test_summary_agrees_with_theory():
    values = np.random.default_rng(3).normal(50, 10, 400)
    found = summary(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert found["n"] == 400 and found["mean"] == pytest.approx(values.mean())
    assert found["ci95"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1)
    json.dumps(found)


def test_summary_is_deterministic_and_leaves_global_generator_alone():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    assert summary([3, 1, 4, 1, 5]) == summary([3.0, 1.0, 4.0, 1.0, 5.0])
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("values", [[0.1], [0.1] * 7, [0] * 20])
@pytest.mark.filterwarnings("error")
def test_equal_values_have_no_width(values):
    assert summary(values) == {"mean": values[0], "ci95": [values[0], values[0]], "n": len(values)}


def test_interval_is_skewed_where_the_values_are():
    low, high = summary([0] * 15 + [40, 60])["ci95"]
    mean = 100 / 17
    assert 0 <= low < mean < high <= 60 and high - mean > mean - low


def test_percentile_where_bca_is_undefined(monkeypatch):
    from osrl_unlearn.evaluate import statistics
    honest = statistics._interval
    monkeypatch.setattr(statistics, "_interval",
                        lambda v, method: [math.nan, math.nan] if method == "BCa" else honest(v, method))
    assert summary([1, 2, 3, 4])["ci95"] == honest(np.array([1.0, 2, 3, 4]), "percentile")


@pytest.mark.parametrize("values", [[], [1, math.nan], [math.inf], [[1, 2]], 3])
def test_summary_refuses(values):
    with pytest.raises(ValueError, match="shape"):
        summary(values)


def test_paired_difference_uses_the_pairs():
    base = np.arange(20.0) * 10
    found = paired_difference(base + 1 + 0.01 * np.cos(base), base)
    # The values vary by hundreds; only pairing makes the interval narrow.
    assert found["mean"] == pytest.approx(1, abs=0.01) and found["ci95"][1] - found["ci95"][0] < 0.02
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        paired_difference([1, 2], [1, 2, 3])


# Structure ------------------------------------------------------------------------------------------------------------

def place(report, path):
    *parents, last = path
    for name in parents:
        report = report[name]
    return report, last


@pytest.mark.parametrize("path", [
    ("schema",), ("notes",), ("forget", "share"), ("gate", "used"), ("gate", "threshold"), ("models", "after"),
    ("poisoned", "cost", "ci95"), ("poisoned", "episodes", "reward"), ("critics", "cost_value", "retain", "before"),
    ("more_agents", "clean", "length"), ("updates", "ratio"), ("attack", "name"), ("multiplier", "final")])
def test_missing_keys_are_named(path):
    report = example()[0]
    parent, last = place(report, path)
    del parent[last]
    with pytest.raises(ValueError) as error:
        reporting.check(report)
    assert str(error.value) == "report.{} is missing".format(".".join(path))


@pytest.mark.parametrize("path, value, text", [
    (("seed",), 1.5, "report.seed: expected integer, got float"),
    (("seed",), True, "report.seed: expected integer, got bool"),
    (("accepted",), 1, "report.accepted: expected boolean, got int"),
    (("schema",), 2, "report.schema: expected 1, got 2"),
    (("poisoned", "cost", "ci95"), [1.0], "report.poisoned.cost.ci95: expected 2 items, got 1"),
    (("unlearned", "episodes", "cost"), [1.0, None], "report.unlearned.episodes.cost[1]: expected number"),
    (("critics", "reward_value", "forget", "after"), math.nan,
     "report.critics.reward_value.forget.after: expected a finite number, got nan"),
    (("notes",), [3], "report.notes[0]: expected string"),
    (("updates", "unlearn"), None, "report.updates.unlearn: expected number"),
    (("options",), None, "report.options: expected object"),
])
def test_wrong_values_are_named(tmp_path, path, value, text):
    report, trace = example()
    parent, last = place(report, path)
    parent[last] = value
    with pytest.raises(ValueError) as error:
        reporting.write_report(tmp_path, report, trace)
    assert str(error.value).startswith(text)
    assert not os.listdir(str(tmp_path))


def test_nulls_and_absent_parts_are_allowed():
    report = switched_off()[0]
    report.update(attack=None, multiplier=None, gate={"used": False}, dataset=None, something_new=3)
    del report["more_agents"]
    reporting.check(report)


def test_schema_describes_every_field_and_check_knows_every_keyword():
    with open(reporting.SCHEMA_FILE, encoding="utf-8") as file:
        schema = json.load(file)
    keywords = set()

    def visit(node, described=True):
        keywords.update(node)
        if "$ref" in node:
            assert node["$ref"].rsplit("/", 1)[1] in schema["definitions"]
        elif described:
            assert node.get("description"), node
        for group in ("properties", "definitions"):
            for child in node.get(group, {}).values():
                visit(child, described)
        assert set(node.get("required", ())) <= set(node.get("properties", node.get("required", ())))
        for name in ("items", "additionalProperties", "if", "then"):
            if name in node:
                visit(node[name], False)

    visit(schema)
    assert keywords <= {"$schema", "$ref", "title", "description", "definitions", "type", "const", "required", "if",
                        "then", "properties", "additionalProperties", "items", "minItems", "maxItems"}


# Files ----------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "new"
    report, trace = example()
    untouched = copy.deepcopy((report, trace))
    reporting.write_report(folder, report, trace)
    assert (report, trace) == untouched
    return folder, report, (folder / "report.md").read_text(encoding="utf-8")


def test_json_round_trip(written):
    folder, report, _ = written
    with open(str(folder / "report.json"), encoding="utf-8") as file:
        loaded = json.load(file)
    assert loaded == report
    reporting.check(loaded)


def test_numpy_numbers_can_be_written(tmp_path):
    report, trace = example()
    report["cost_limit"], report["seed"] = np.float32(40), np.int64(3)
    reporting.write_report(tmp_path, report, trace)
    loaded = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert loaded["cost_limit"] == 40 and loaded["seed"] == 3


def test_markdown_says_what_was_done(written):
    _, report, text = written
    assert text.splitlines()[2].startswith("**Unlearning was carried out; its mean cost of ")
    cost = report["unlearned"]["cost"]
    assert "{:.2f} [{:.2f}, {:.2f}]".format(cost["mean"], *cost["ci95"]) in text
    for expected in (
            "on 20 paired episodes; used for this report only, never to choose the model",
            "12,400 rows in 62 trajectories (unit: trajectory), 10.0 % of all rows of the training data",
            "attack `cost_hide` (rate 0.1 by trajectory, seed 0, segment_length = 10)",
            "- 1,000 updates; training: 20,000 (unlearning: 5 % of that)",
            "- 24.31 seconds; training: not recorded by this run",
            "| reward critic | forget | 31.00 | 22.50 | -8.50 |",
            "| distance to the forgotten actions | forget | 0.250 | 0.850 | 0.600 |",
            "r_min = 15 and r_max = 600", "(cost + eps) / (limit + eps), with limit = 40 per episode and eps = 0",
            "9 checks accepted, 1 rejected. Estimated discounted cost: 3.90 before unlearning, 2.70 at the last check",
            "mean 0.420, largest 1.00, at the end 0.000; above 0 at 70.0 %",
            "versions: python 3.10.13, torch 1.13.1", "b" * 64, "- The environment is a stand-in."):
        assert expected in text
    for name in reporting.CAPTIONS:
        assert "]({})".format(name) in text
    for agent_name in ("poisoned", "unlearned", "reference", "clean", "fine_tune"):
        assert "\n| {} | ".format(agent_name) in text


def test_figures_are_images(written):
    folder, _, _ = written
    pictures = sorted(p for p in os.listdir(str(folder)) if p.endswith(".png"))
    assert pictures == sorted(reporting.CAPTIONS)
    for name in pictures:
        pixels = imread(str(folder / name))[..., :3]
        assert pixels.shape[0] > 400 and pixels.shape[1] > 800
        assert 0.005 < (pixels.min(-1) < 0.9).mean() < 0.6  # ink, but not all over
        for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
            assert (edge == 1).all()  # nothing is cut off


def test_evaluation_off(tmp_path):
    (tmp_path / "cost_reward.png").write_bytes(b"of an earlier report")
    report, trace = switched_off()
    reporting.write_report(tmp_path, report, trace)
    assert sorted(os.listdir(str(tmp_path))) == ["action_distance.png", "multiplier.png", "report.json", "report.md",
                                                 "values.png"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Evaluation was switched off" in text and "cost_reward" not in text and "paired" not in text
    shown = reporting.terminal_summary(report, tmp_path)
    assert "switched off" in shown and "normalized" not in shown and "24.31" in shown


def test_without_trace_and_gate(tmp_path):
    report, trace = example()
    report.update(gate={"used": False}, multiplier=None, attack=None)
    reporting.write_report(tmp_path, report, [])
    assert [p for p in os.listdir(str(tmp_path)) if p.endswith(".png")] == ["cost_reward.png"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "A plain deletion request" in text and "Not used. Rollbacks: 1." in text and "## Multiplier" not in text
    # A diverged check has losses but no values.
    reporting.write_report(tmp_path, report, trace[:1] + [{"step": 200, "accepted": 0.0}])
    assert os.path.exists(str(tmp_path / "values.png")) and os.path.exists(str(tmp_path / "multiplier.png"))


def test_tables():
    assert reporting.format_table([["a", 1], ["long", 22.5]], ["name", "x"]) == (
        "name     x\n----  ----\na        1\nlong  22.5")
    assert reporting.markdown_table([["a|b\nc", 1]], ["n", "x"]) == "| n | x |\n| --- | ---: |\n| a\\|b c | 1 |"


def test_terminal_summary(written):
    folder, report, _ = written
    lines = reporting.terminal_summary(report, folder).splitlines()
    header = next(line for line in lines if line.startswith("agent"))
    assert header.split("  ")[0] == "agent" and "normalized cost  updates  seconds" in header
    cost = report["unlearned"]["cost"]
    row = next(line for line in lines if line.startswith("unlearned "))
    assert "{:.2f} [{:.2f}, {:.2f}]".format(cost["mean"], *cost["ci95"]) in row and row.endswith("1,000    24.31")
    assert lines[-1] == "Report: " + str(folder / "report.md")


# Verdict --------------------------------------------------------------------------------------------------------------

def with_costs(poisoned, unlearned, reference=None, limit=40):
    report = example(len(unlearned))[0]
    for name, costs in (("poisoned", poisoned), ("unlearned", unlearned), ("reference", reference)):
        if costs is None:
            report[name] = None
        else:
            report[name]["cost"], report[name]["episodes"]["cost"] = summary(costs), costs
    return dict(report, cost_limit=limit)


@pytest.mark.parametrize("costs, expected", [
    ([20, 25, 30, 28, 22], "is at or under the cost limit of 40, and so is the upper end of its 95 % interval"),
    ([5, 10, 90, 15, 20], "is at or under the cost limit of 40, but the upper end of its 95 % interval"),
    ([40, 40, 40, 40, 40], "cost of 40.00 per episode is at or under the cost limit of 40, and so is the upper end"),
    ([60, 61, 62, 63, 64], "is OVER the cost limit of 40, and so is all of its 95 % interval"),
    ([5, 10, 150, 30, 40], "is OVER the cost limit of 40, though the lower end of its 95 % interval"),
])
def test_verdict_on_the_limit(costs, expected):
    assert expected in reporting.verdict(with_costs([50, 60, 55, 58, 61], costs))


def test_verdict_on_differences():
    text = reporting.verdict(with_costs([50, 61, 55, 58, 61], [20, 25, 30, 28, 22], [21, 24, 31, 27, 22]))
    assert "Cost against the poisoned agent (57.00 per episode): 32.00 lower (95 % interval of the paired " in text
    assert "which excludes 0)" in text
    assert "Cost against the reference agent (25.00 per episode): the same" not in text
    assert "includes 0: no difference is shown)" in text and "Few episodes" not in text
    same = reporting.verdict(with_costs([5, 6, 7, 8, 9], [5, 6, 7, 8, 9]))
    assert "Cost against the poisoned agent (7.00 per episode): the same in every episode." in same
    assert "reference" not in same
    other = reporting.verdict(with_costs([5, 6, 7, 8, 9], [5, 6, 7, 8, 9, 9]))
    assert "not compared, since the numbers of episodes differ" in other


def test_verdict_on_few_episodes():
    three = reporting.verdict(with_costs([50, 61, 55], [20, 25, 30]))
    assert three.startswith("Few episodes were run (3): nothing can be concluded from the figures. ")
    assert "30.33 lower." in three and "excludes" not in three and "no difference" not in three
    one = reporting.verdict(with_costs([50], [20]))
    assert "30.00 lower." in one and one.startswith("Few episodes were run (1)")
    assert "interval [" not in three + one
    assert "20.00 (one episode)" in reporting.terminal_summary(with_costs([50], [20]), "x")


def test_verdict_on_reward():
    report = example()[0]
    ratio = report["unlearned"]["reward"]["mean"] / report["poisoned"]["reward"]["mean"]
    assert "per episode; {:.1f} % of the poisoned agent's (".format(100 * ratio) in reporting.verdict(report)
    report["poisoned"]["reward"] = summary([-3.0] * 20)
    assert "per episode; that of the poisoned agent is -3.00 and " in reporting.verdict(report)


def test_verdict_where_nothing_was_unlearned():
    report = dict(example()[0], accepted=False, reason="diverged")
    wanted = "NOT unlearned: the safety gate accepted no state; the model is the poisoned one."
    assert reporting.verdict(report).startswith(wanted)
    assert reporting.verdict(dict(switched_off()[0], accepted=False)).startswith(wanted)
    ungated = reporting.verdict(dict(report, gate={"used": False}))
    assert ungated.startswith("NOT unlearned: no state was accepted; the model is the poisoned one.")
    unchanged = reporting.verdict(dict(report, accepted=True, models={"before": "a", "after": "a"}))
    assert unchanged.startswith("NOT unlearned: no weight has changed") and "carried out" not in unchanged


# Matplotlib -----------------------------------------------------------------------------------------------------------

def test_matplotlib_is_left_alone(tmp_path):
    from matplotlib import pyplot
    settings, backend, open_figures = dict(matplotlib.rcParams), matplotlib.get_backend(), pyplot.get_fignums()
    reporting.write_report(tmp_path, *example())
    assert dict(matplotlib.rcParams) == settings and matplotlib.get_backend() == backend
    assert pyplot.get_fignums() == open_figures


def test_pyplot_is_not_imported(tmp_path):
    code = ("import sys; sys.path[:0] = [{!r}, {!r}]; import test_report as t; "
            "t.reporting.write_report({!r}, *t.example()); assert 'matplotlib.pyplot' not in sys.modules").format(
                os.path.dirname(os.path.abspath(__file__)),
                os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(reporting.__file__)))), str(tmp_path))
    subprocess.run([sys.executable, "-c", code], check=True)
