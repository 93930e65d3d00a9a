"""``osrl-unlearn report``: what the page says, that it is one file, and how it looks."""
import builtins
import copy
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from test_report import example, switched_off

from osrl_unlearn.cli import main
from osrl_unlearn.evaluate import page as page_module
from osrl_unlearn.evaluate import runs
from osrl_unlearn.evaluate.report import write_report
from osrl_unlearn.evaluate.statistics import summary
from osrl_unlearn.evaluate.verdict import TRIGGERED, headline
from osrl_unlearn.files import write_json

CERTIFICATE = {
    "verdict": "not", "reason": "fails: apart", "agent": "bcql", "digest": "f" * 64, "versions": {"numpy": "1.24.4"},
    "models": {"before": "1" * 64, "after": "2" * 64}, "columns": {"costs": "3" * 64},
    "settings": {"reference": ["../retrained"], "episodes": 10, "seed": 0}, "limits": ["that is taken on trust"],
    "claims": [{"claim": "apart", "text": "rows cannot be told apart", "holds": False, "because": "AUC above 0.6"},
               {"claim": "back", "text": "nothing comes back", "holds": None, "because": "not tried"},
               {"claim": "hash", "text": "the hash is recorded", "holds": True, "because": "it is there"}],
    "audit": {"auc": {"value": {"auroc": {"mean": 0.7123, "ci95": [0.65, 0.77]}, "share": 0.25},
                      "tests": {"auroc": "a percentile bootstrap"}},
              "auditor": {"value": {}, "per_trajectory": {"score": {str(n): n / 8 for n in range(12)},
                                                          "member": {str(n): n > 9 for n in range(12)}}},
              "membership": {"value": {"attacks": {}, "strongest": "likelihood"},
                             "per_trajectory": {"likelihood": {"11": 0.375, "10": -0.625}},
                             "details": {"against": "retained", "values": {
                                 agent: {"reward_value": {"forget": [1.0, 2.0, low], "others": [3.0, 4.0]}}
                                 for agent, low in (("original", 3.0), ("audited", 0.5))}}},
              "relearning": {"not_computed": "because there is no retrained agent"}}}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_run(folder, change=None, off=False):
    """A result in ``folder``, as ``run_unlearning`` leaves it, without figures; returns its report."""
    report, trace = switched_off() if off else example()
    report = dict(copy.deepcopy(report), trace=trace)
    if change is not None:
        change(report)
    write_json(os.path.join(str(folder), "report.json"), report)
    return report


def set_costs(report, **costs):
    for name, values in costs.items():
        report[name]["cost"], report[name]["episodes"]["cost"] = summary(values), values


class Page(HTMLParser):
    """Checks that tags nest, and collects text, images and headings."""
    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.words, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """(folder of the page, Page, Markdown, report) of one run with forget manifest and audit."""
    base = tmp_path_factory.mktemp("single")
    run = base / "RUN" / "unlearned" / "safe_rule"
    report = write_run(run, lambda report: report["notes"].append("<script>alert(1)</script> & more"))
    write_json(str(run / "osrl_unlearn" / "forget.json"), {
        "unit": "trajectory", "spans": [[0, 0, 5]], "rows": 5,
        "columns": {"costs": {"before": "c" * 64, "after": "d" * 64}, "rewards": {"before": None, "after": "e" * 64}}})
    write_json(str(run / "osrl_unlearn" / "certificate.json"), {})
    out = base / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "verify", lambda path: (CERTIFICATE, str(run)))  # tested in test_report_audits.py
        assert main(["report", str(run), "--out", str(out)]) == 0
    html = (out / "report.html").read_text(encoding="utf-8")
    return out, Page(html), (out / "report.md").read_text(encoding="utf-8"), report


# Content --------------------------------------------------------------------------------------------------------------

def test_the_verdict_comes_first_and_the_sections_follow(single):
    _, page, text, report = single
    level, sentence = headline(report)
    assert level == "good" and sentence in page.text and sentence in text
    assert re.findall("^## (.*)", text, re.M) == [
        "Agents", "Figures", "Most costly episodes", "Audit", "In detail", "Price", "Method, data and versions",
        "Limits of what was shown", "How these numbers were obtained", "What the audit measured"]
    assert page.tags.index("p") < page.tags.index("table") < page.tags.index("img")


def test_html_and_markdown_say_the_same(single):
    _, page, text, report = single
    costs = report["unlearned"]["episodes"]["cost"]
    over = sum(c > 40 for c in costs)
    worst = int(np.argmax(costs))
    for expected in (
            "of {})".format(len(costs)), "({} of 20)".format(over), "d" * 64, "not recorded", "a" * 64,
            "forget_share = 0.6", "torch 1.13.1", "12,400 rows in 62 trajectories", "cost limit is 40 per episode",
            "Audit: the agent does not count as unlearned. 1 of 3 claims hold. Fails: \u201crows cannot be told "
            "apart\u201d. Not tested: \u201cnothing comes back\u201d.", "AUC above 0.6", "not tested", "f" * 64,
            "2" * 64, "numpy 1.24.4", "retrained agents: 1; episodes per agent: 10; seed: 0", "Of 12 forgotten",
            "a percentile bootstrap", "The audit: that is taken on trust.",
            "0.7123 [0.65, 0.77]", "0.25", "because there is no retrained agent", "the hash is recorded",
            "The environment is a stand-in.", "They say nothing of other training seeds",
            "Not computed: the agent's behaviour under a trigger", "Not computed: the screening"):
        assert expected in page.text and expected in text, expected
    row = "| {} | {:g} | ".format(worst, costs[worst])
    assert row in text
    assert "Not computed: an audit" not in text  # there is one
    assert "| trajectory | auditor, score | auditor, member | membership, likelihood |" in text
    assert "| 11 | 1.38 | yes | 0.375 |\n| 10 | 1.25 | yes | -0.625 |\n| 9 | 1.12 | no | - |" in text
    assert "| 7 | 0.875 | no | - |\n\n" in text  # no more than five
    cost = report["poisoned"]["cost"]
    assert "| poisoned | {:.2f} [{:.2f}, {:.2f}] |".format(cost["mean"], *cost["ci95"]) in text


def test_the_page_is_one_file_and_every_figure_has_a_text(single):
    out, page, text, _ = single
    raw = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", raw) and "url(" not in raw and "@import" not in raw
    assert "default-src 'none'" in raw and "<script" not in page.tags and "script" not in page.tags
    assert "<script>alert(1)</script> & more" in page.text and "<script" not in text
    assert len(page.images) == 7
    assert any("of the reward critic, medians. original, forget: 2.00; " in image["alt"] for image in page.images)
    for image in page.images:
        assert len(image["alt"]) > 40 and image["src"].startswith("data:image/png;base64,")
    shown = re.findall(r"\]\((figures/.*?)\)", text)
    assert sorted(shown) == sorted("figures/" + name for name in os.listdir(str(out / "figures")))
    for name in shown:
        pixels = imread(str(out / name))[..., :3]
        assert 0.005 < (pixels.min(-1) < 0.9).mean() < 0.6
        for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
            assert (edge == 1).all(), name  # nothing is cut off


def test_evaluation_off_and_no_trace(tmp_path):
    run = tmp_path / "off"

    def bare(report):
        del report["trace"]
        report.update(gate={"used": False}, multiplier=None, attack=None, notes=[])

    write_run(run, bare, off=True)
    assert main(["report", str(run), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "not evaluated" in text and "Not computed: cost and return, since evaluation was switched off." in text
    assert "Not computed: a Lagrange multiplier" in text and "Not computed: an audit" in text
    assert "hashes are not known" in text
    # Without a trace the critics' values before and after are what there is to draw.
    assert sorted(os.listdir(str(tmp_path / "out" / "figures"))) == ["cost-critic.png", "reward-critic.png"]


# Verdict --------------------------------------------------------------------------------------------------------------

def changed(**keys):
    costs = {name: keys.pop(name) for name in ("poisoned", "unlearned") if name in keys}
    report = copy.deepcopy(example()[0])
    set_costs(report, **costs)
    report.update(keys)
    return report


HIGH, LOW = [50, 61, 55, 58, 61], [20, 25, 30, 28, 22]


@pytest.mark.parametrize("report, level, words", [
    (changed(poisoned=HIGH, unlearned=LOW), "good", "The agent is safe again: 25.0 ["),
    (changed(poisoned=[30, 31, 32, 33, 34], unlearned=LOW), "good", "within the limit, as it was before: "),
    (changed(poisoned=[20, 21, 90, 93, 24], unlearned=LOW), "good", "The agent is within the limit: "),
    (changed(poisoned=HIGH, unlearned=[20, 30, 40, 50, 45]), "uncertain", "It is not shown that the agent is safe: "),
    (changed(poisoned=HIGH, unlearned=[49, 60, 54, 57, 60]), "bad", "The agent is still above the limit: "),
    (changed(poisoned=LOW, unlearned=HIGH), "bad", "Worse than doing nothing: "),
    (changed(poisoned=HIGH[:3], unlearned=LOW[:3]), "uncertain", "Too few episodes (3) to conclude anything: "),
    (changed(accepted=False), "bad", "Not unlearned: no result passed the checks"),
    (changed(models={"before": "a", "after": "a"}), "bad", "Not unlearned: nothing in the agent has changed"),
    (changed(attack=None), "good", "when poisoned"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_headlines(report, level, words):
    found, sentence = headline(report)
    assert found == level
    assert (words in sentence) != (report["attack"] is None)


def test_headline_figures_and_return():
    report = changed(poisoned=HIGH, unlearned=LOW)
    kept = report["unlearned"]["reward"]["mean"] / report["poisoned"]["reward"]["mean"]
    low, high = report["unlearned"]["cost"]["ci95"]
    assert headline(report)[1] == (
        "The agent is safe again: 25.0 [{:.1f}, {:.1f}] cost per episode, the limit is 40, at {:.0f} % of the return "
        "before; it was 57.0 when poisoned.".format(low, high, 100 * kept))
    # A mean within the limit does not hide the episodes that are not.
    assert headline(changed(poisoned=HIGH, unlearned=[1, 2, 3, 4, 5, 6, 7, 41]))[1].endswith(
        " when poisoned (1 of 8 episodes exceed the limit).")
    report["unlearned"]["reward"] = summary([100.0] * 5)
    assert headline(report) == ("uncertain", headline(report)[1]) and "more than half of its return" in headline(
        report)[1]
    report["unlearned"]["reward"] = summary([-100.0] * 5)
    assert headline(report)[0] == "uncertain" and "with a return of -100.0 after 50" in headline(report)[1]
    for before, after, level in ((-200.0, -100.0, "good"), (-10.0, -1000.0, "uncertain")):
        for name, reward in (("poisoned", before), ("unlearned", after)):
            report[name]["reward"], report[name]["episodes"]["reward"] = summary([reward] * 5), [reward] * 5
        assert headline(report)[0] == level and ("but it earns less: " in headline(report)[1]) == (after == -1000)


def test_an_agent_that_is_safe_only_without_the_trigger_is_not_called_safe():
    report = changed(poisoned=HIGH, unlearned=LOW)
    report["more_agents"][TRIGGERED.format("unlearned")] = copy.deepcopy(report["poisoned"])
    level, sentence = headline(report)
    assert level == "bad" and sentence.startswith("Not safe while the trigger shows: 57.0 [")


# Several runs ---------------------------------------------------------------------------------------------------------

def test_quality_against_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "_figures", lambda *_: [])
    for steps, costs in ((100, HIGH), (1000, LOW)):
        def change(report, steps=steps, costs=costs):
            report["updates"] = dict(report["updates"], unlearn=steps)
            set_costs(report, unlearned=costs)
        write_run(tmp_path / str(steps) / "unlearned" / "safe_rule", change)
    folders = [str(tmp_path / name) for name in ("100", "1000")]
    assert main(["report", *folders, "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "## Quality against budget: BCQL on OfflineBallCircle-v0" in text
    assert "Cost against the updates of unlearning. safe_rule after 100 updates: {:.1f}; safe_rule after 1,000 updates: " \
        "{:.1f}".format(np.mean(HIGH), np.mean(LOW)) in text
    for key in ("cost", "return"):
        assert (tmp_path / "out" / "figures" / "budgets-1-{}.png".format(key)).stat().st_size > 5000
    assert main(["report", folders[0], "--out", str(tmp_path / "one")]) == 0
    assert "Quality against budget" not in (tmp_path / "one" / "report.md").read_text(encoding="utf-8")


def test_several_runs_are_averaged_over_trained_agents(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page_module, "_figures", lambda *_: [])  # they take time and are looked at elsewhere
    means = []
    for seed, shift in enumerate((0, 4, 8)):
        for method in ("safe_rule", "fine_tune"):
            def change(report, seed=seed, shift=shift, method=method):
                report.update(method=method, seed=seed, models={"before": "w{}".format(seed), "after": method})
                set_costs(report, unlearned=[c + shift for c in LOW])
            report = write_run(tmp_path / "seed-{}".format(seed) / "unlearned" / method, change)
        means.append(report["unlearned"]["cost"]["mean"])
    # The same trained agent once more: not a new number.
    again = tmp_path / "again"
    write_run(again, lambda report: (report.update(models={"before": "w0", "after": "x"}), set_costs(report,
                                                                                              unlearned=LOW)))
    out = tmp_path / "out"
    folders = [str(tmp_path / "seed-{}".format(seed)) for seed in range(3)]
    # A method's folder that is named twice is one run.
    assert main(["report", *folders, folders[0] + "/unlearned/safe_rule", str(again), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("The agent is safe again") == 7 and printed.strip().endswith("report.html")
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "# Unlearning report: 7 runs" in text and "Run 7: again" in text and "Run 8" not in text
    assert "safe_rule of BCQL on OfflineBallCircle-v0: 4 of 4 runs are shown to be within the limit of 40" in text
    # Student's interval of 25, 29, 33: 29 -+ 4.303 * 4 / sqrt(3).
    assert means == [25, 29, 33]
    assert "| safe_rule | 3 | 29.0 [19.1, 38.9] |" in text and "| fine_tune | 3 | 29.0 [19.1, 38.9] |" in text
    assert "| poisoned | 3 |" in text and (out / "figures" / "over-runs-1.png").exists()
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("h1") == 1 and "seed-1/fine_tune" in page.text


@pytest.mark.parametrize("known", [True, False])  # reports of before have no hash of the reference
def test_one_retrained_agent_is_one_number_however_many_runs_it_is_compared_with(tmp_path, monkeypatch, known):
    monkeypatch.setattr(page_module, "_figures", lambda *_: [])
    for seed in range(3):
        def change(report, seed=seed):
            models = {"before": "w{}".format(seed), "after": "u"}
            report.update(seed=seed, models=dict(models, reference="r") if known else models)
        assert write_run(tmp_path / "seed-{}".format(seed) / "unlearned" / "safe_rule", change)["reference"]
    out = tmp_path / "out"
    assert main(["report", *[str(tmp_path / "seed-{}".format(seed)) for seed in range(3)], "--out", str(out)]) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "| safe_rule | 3 |" in text and "| retrained | 1 |" in text


def test_methods_may_be_evaluated_in_different_numbers_of_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "_figures", lambda *_: [])
    for method, count in (("safe_rule", 5), ("fine_tune", 3)):
        def change(report, method=method, count=count):
            report.update(method=method)
            set_costs(report, poisoned=HIGH[:count], unlearned=LOW[:count])
        write_run(tmp_path / "run" / "unlearned" / method, change)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert "it was 57.0 when poisoned" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_other_tasks_and_options_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "_figures", lambda *_: [])
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", lambda report: report.update(options={"margin": 2.0}))
    write_run(tmp_path / "c", lambda report: report.update(task="OfflineCarCircle-v0"))
    out = tmp_path / "out"
    assert main(["report", *[str(tmp_path / name) for name in "abc"], "--out", str(out)]) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "safe_rule of BCQL" in text and "safe_rule (2) of BCQL" in text and "on OfflineCarCircle-v0" in text
    assert "of 2 runs" not in text and "Over runs" not in text


# Files and mistakes ---------------------------------------------------------------------------------------------------

def error(capsys, *argv):
    assert main(["report", *map(str, argv)]) == 2
    found = capsys.readouterr().err.strip().splitlines()
    assert len(found) == 1 and found[0].startswith("osrl-unlearn: error: ")
    return found[0]


def test_an_interval_that_leaves_its_mean_out_can_be_drawn(tmp_path):
    def skewed(report):
        set_costs(report, unlearned=[0.0] * 19 + [100.0])
        report["unlearned"]["cost"]["ci95"] = [6.0, 40.0]
        report.update(critics={}, trace=[])

    write_run(tmp_path / "run", skewed)
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert "5.00 [6.00, 40.00]" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert "no report.json in" in error(capsys, tmp_path / "empty", "--out", out)
    write_run(tmp_path / "bad", lambda report: report.update(seed="x"))
    assert "report.seed: expected integer, got str" in error(capsys, tmp_path / "bad", "--out", out)
    write_run(tmp_path / "trace", lambda report: report.update(trace=[{"step": 1, "multiplier": "x"}]))
    assert "report.trace[0].multiplier: expected number" in error(capsys, tmp_path / "trace", "--out", out)
    write_run(tmp_path / "none", lambda report: report["unlearned"]["episodes"].update(cost=[]))
    assert "unlearned.episodes.cost: expected at least 1 items" in error(capsys, tmp_path / "none", "--out", out)
    write_run(tmp_path / "good")
    (tmp_path / "bad" / "report.json").write_text("{", encoding="utf-8")
    assert "cannot be read as JSON" in error(capsys, tmp_path / "good", tmp_path / "bad", "--out", out)
    assert "folder of a run" in error(capsys, tmp_path / "good", "--out", tmp_path / "good")
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "is a file" in error(capsys, tmp_path / "good", "--out", tmp_path / "file")
    write_json(str(tmp_path / "certified" / "osrl_unlearn" / "certificate.json"), {"verdict": "unlearned"})
    assert "is no certificate, or was changed" in error(capsys, tmp_path / "certified", "--out", out)
    (tmp_path / "good" / "checkpoint").mkdir()
    (tmp_path / "good" / "checkpoint" / "model.pt").write_text("x", encoding="utf-8")
    assert "is not a plain tensor checkpoint" in error(capsys, tmp_path / "good", "--out", out)
    assert not out.exists()


def test_jinja_is_asked_for_before_anything_is_written(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "run")
    original = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "jinja2":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert "osrl-unlearn[report]" in error(capsys, tmp_path / "run", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_page_is_replaced(tmp_path):
    write_run(tmp_path / "a", lambda report: report.update(critics={}, trace=[]))
    out = tmp_path / "out"
    assert main(["report", str(tmp_path / "a"), "--out", str(out)]) == 0
    first = (out / "report.html").read_bytes()
    (out / "mine.txt").write_text("stays", encoding="utf-8")
    write_run(tmp_path / "a", off=True)
    assert main(["report", str(tmp_path / "a"), "--out", str(out)]) == 0
    assert (out / "report.html").read_bytes() != first
    assert (out / "mine.txt").exists()
    assert sorted(os.listdir(str(out))) == ["figures", "mine.txt", "report.html", "report.md"]
    assert "cost-return.png" not in os.listdir(str(out / "figures"))


def test_what_write_report_writes_can_be_read(tmp_path):
    report, trace = example()
    write_report(tmp_path / "run", dict(report, trace=trace), trace)
    with open(str(tmp_path / "run" / "report.md"), "rb") as file:
        before = file.read()
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "run" / "report.md").read_bytes() == before
    with open(str(tmp_path / "run" / "report.json"), encoding="utf-8") as file:
        assert json.load(file)["trace"] == trace


# Looks ----------------------------------------------------------------------------------------------------------------

def browse(single, tmp_path, *options):
    subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                    "--user-data-dir={}".format(tmp_path / "profile"), *options, (single[0] / "report.html").as_uri()],
                   check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1200, 500, 390])
def test_a_browser_shows_it(single, tmp_path, width):
    picture = tmp_path / "page.png"
    browse(single, tmp_path, "--window-size={},1600".format(width), "--screenshot={}".format(picture))
    pixels = imread(str(picture))[..., :3]
    assert pixels.shape[1] == width
    assert 0.01 < (pixels.min(-1) < 0.9).mean() < 0.6
    # The verdict's box in the upper part, the blue of figures below it, and white margins: nothing runs over the edge.
    blue = (abs(pixels - np.array([0, 0x72, 0xB2]) / 255) < 0.02).all(-1)
    assert blue[:400].any() and blue[600:].any()
    assert (pixels[:, :8] == 1).all() and (pixels[:, -8:] == 1).all()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_prints_it(single, tmp_path):
    printed = tmp_path / "page.pdf"
    browse(single, tmp_path, "--print-to-pdf={}".format(printed))
    content = printed.read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert content.startswith(b"%PDF") and 4 <= pages <= 9
    images = re.findall(rb"/Subtype\s*/Image\b", content)
    assert len(images) >= 7  # every figure
