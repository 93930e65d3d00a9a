"""What every bench does around its cells: read the suite, compute, write NAME.json, .jsonl, .md and .png."""
import contextlib
import dataclasses
import functools
import json
import os
import sys

from osrl_unlearn.bench import cluster, runner
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.data.manifest import versions
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.files import atomic_path, check_writable, sha256_file, write_json, write_text

SMALL = 9  # size of small print in figures, points


def run(name, suite, args, *, plan, function, aggregate, text, draw=lambda report: None):
    """Compute what ``suite`` asks for and make the tables; 1 if cells failed, else 0.

    Args:
        name: of the bench and of its files.
        plan: (suite, {task: file}, {task: sha256 of the file}) -> {key: cell}.
        function: "module:function" that computes a cell, see :func:`~osrl_unlearn.bench.runner.run_cells`.
        aggregate: (suite, {key: result or None}) -> what is the bench's own in its report.
        text, draw: report -> Markdown, and a figure, or None if there is nothing to draw.
    """
    files = {setting.task: suites.dataset_file(setting.task, args.data) for setting in suite.everything().values()}
    hashes = {task: sha256_file(file) for task, file in files.items()}
    cells = plan(suite, files, hashes)
    path = os.path.join(os.path.abspath(args.out), name)
    runner.restore(path + ".jsonl", args.out)
    if args.table:
        results = [runner.finished(cell, args.out) for cell in cells.values()]
    else:
        suites.check_agents(suite)
        check_writable(args.out)
        compute = args.cluster and functools.partial(
            cluster.compute, executor=cluster.executor(args.cluster, args.parameters, args.out))
        results = runner.run_cells(list(cells.values()), function, args.out, args.jobs, compute)
    results = dict(zip(cells, results))
    versions_of = {where: runner.stored(cell, args.out).get("versions") for where, cell in cells.items()
                   if results[where] is not None}
    done = sum(result is not None for result in results.values())
    if not done:
        raise ConfigError("nothing in {} is finished for this suite, so there is no table".format(args.out))
    report = {"schema": 1, "bench": name, "command": ["osrl-unlearn"] + sys.argv[1:], "versions": versions(),
              "data": {task: {"file": os.path.basename(files[task]), "sha256": hashes[task]} for task in files},
              "suite": dataclasses.asdict(suite), "cells": {"finished": done, "all": len(cells)},
              "computed_with": computed_with(versions_of.values()), **aggregate(suite, results)}
    written = text(report)
    if any(group["versions"] for group in report["computed_with"]):
        written += "\n\nComputed with: {}.".format("; ".join("{} ({} of {} cells)".format(
            ", ".join("{} {}".format(*item) for item in (group["versions"] or {"versions": "unknown"}).items()),
            group["cells"], len(cells)) for group in report["computed_with"]))
    written += "".join("\n\n" + sentence for sentence in suites.left_out(suite))
    if done < len(cells):
        written += "\n\n{} of {} cells are finished.".format(done, len(cells))
    write_json(path + ".json", report)
    write_text(path + ".jsonl", "".join(
        json.dumps({"label": cells[where]["label"], "key": runner.key(cells[where]),
                    "cell": runner.identity(cells[where]), "result": result,
                    **({"versions": versions_of[where]} if versions_of[where] else {})}) + "\n"
        for where, result in results.items() if result is not None))
    write_text(path + ".md", written + "\n")
    figure = draw(report)
    if figure is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ".png")  # of an earlier table
    else:
        with atomic_path(path + ".png") as temporary:
            figure.savefig(temporary, dpi=130)
    print(written)
    print("\nTables and raw numbers: {}.*".format(path))
    return 0 if args.table or done == len(cells) else 1


def computed_with(found):
    """[{"versions", "cells"}] of what computed the results: ``found`` holds each one's versions, None if unknown."""
    groups = []
    for one in found:
        group = next((group for group in groups if group["versions"] == one), None)
        if group is None:
            groups.append({"versions": one, "cells": 1})
        else:
            group["cells"] += 1
    return groups


def number(summary, sign="", digits=1):
    """A summary of :mod:`~osrl_unlearn.evaluate.intervals` as "mean [low, high]"; ``sign`` "+" for differences."""
    if summary is None:
        return "-"
    values = [summary["mean"]] + (summary["ci95"] or [])
    mean, *interval = ["{:{}.{}f}".format(value, sign, digits) for value in values]
    return "{} [{}]".format(mean, ", ".join(interval)) if interval else mean


def training(setting):
    """How the agents of a setting (a mapping, as in the report) are trained, and what counts as a valid one."""
    return "{}, {:,} updates. Cost limit {:g}; a valid clean agent returns {:g} or more.".format(
        setting["task"], setting["updates"], setting["agent"]["cost_limit"], setting["min_return"])


def errorbar(ax, x, summary, **style):
    """A summary of :mod:`~osrl_unlearn.evaluate.intervals` as a marker with its interval at ``x``."""
    low, high = summary["ci95"] or [summary["mean"]] * 2
    ax.errorbar(x, summary["mean"], [[summary["mean"] - low], [high - summary["mean"]]], capsize=3, **style)


def legend_below(figure, handles, columns):
    """Place ``handles`` in rows of ``columns`` below the axes of ``figure``, and the axes above them."""
    figure.legend(handles=handles, loc="lower center", ncol=min(columns, len(handles)), frameon=False, fontsize=SMALL)
    figure.tight_layout(rect=(0, 0.25 * -(-len(handles) // columns) / figure.get_figheight(), 1, 1))
