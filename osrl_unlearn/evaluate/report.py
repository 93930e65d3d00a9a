"""The report of an unlearning run: report.json for programs, report.md and figures for people."""
import os

from osrl_unlearn.evaluate.figures import CAPTIONS, GREY, VERMILLION, draw_all, panels
from osrl_unlearn.evaluate.markdown import CELL, agent_rows, markdown
from osrl_unlearn.evaluate.structure import SCHEMA_FILE, check
from osrl_unlearn.evaluate.tables import format_table, markdown_table, normalization_text, setting
from osrl_unlearn.evaluate.verdict import TRIGGERED, evaluated, sentences_of, verdict
from osrl_unlearn.files import atomic_path, write_json, write_text

__all__ = ["CAPTIONS", "GREY", "SCHEMA_FILE", "TRIGGERED", "VERMILLION", "check", "format_table", "markdown_table",
           "normalization_text", "panels", "terminal_summary", "verdict", "write_report"]


def write_report(folder, report, trace):
    """Write report.json, report.md and the figures into ``folder``, which is created if need be.

    Args:
        folder: directory.
        report: dictionary as described in report.schema.json.
        trace: list of dictionaries with "step" (updates of unlearning) and, where known, "reward_value/forget",
            "reward_value/retain", "cost_value/forget", "cost_value/retain" (units of the critics),
            "action_distance/forget" (Euclidean, units of the actions), "multiplier", "gate_cost" (discounted cost),
            "stage" (0 forgetting, 1 repairing) and "accepted" (0 or 1).

    Figures that the numbers do not allow are left out; one of an earlier report in the same folder is removed.

    Raises:
        ValueError: ``report`` has another structure; nothing is written then.
    """
    check(report)
    folder = os.fspath(folder)
    write_json(os.path.join(folder, "report.json"), report)
    figures = draw_all(report, trace)
    for name, figure in figures.items():
        path = os.path.join(folder, name)
        if figure is not None:
            with atomic_path(path) as temporary:
                figure.savefig(temporary, dpi=150, format="png")
        elif os.path.exists(path):
            os.unlink(path)
    write_text(os.path.join(folder, "report.md"), markdown(report, [n for n, f in figures.items() if f is not None]))


def terminal_summary(report, folder):
    """The result in a few lines of plain text: the verdict, one row per agent, and where the report is."""
    rows, headers = agent_rows(report)
    note = "Rewards and costs per episode: {}. Limit: {}.\n{}".format(
        CELL, setting(report["cost_limit"]), normalization_text(report["normalization"]))
    if not evaluated(report):
        note = "Evaluation was switched off."
    return "\n\n".join(["\n".join(sentences_of(report)), format_table(rows, headers) + "\n" + note,
                        "Report: {}".format(os.path.join(os.fspath(folder), "report.md"))])
