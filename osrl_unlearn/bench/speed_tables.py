"""Tables and figure of ``bench speed``."""
import os

from osrl_unlearn.bench import output
from osrl_unlearn.bench.partial import STYLES
from osrl_unlearn.bench.processes import OPERATIONS, SCRIPT_UPDATES
from osrl_unlearn.evaluate.report import markdown_table, panels


def text(report):
    """The tables as Markdown."""
    parts = ["# Speed", "Medians [lowest, highest] over {} repetitions, on files as many as the table says. What is "
             "compared took turns in one run; ratios are taken within each repetition.".format(
                 report["suite"]["repetitions"]), _about(report)]
    if report["goals"]:
        parts += ["## Goals", markdown_table([
            [row["goal"], times(row["found"]), "{} {:.2f}".format("<=" if row["most"] else ">=", row["bound"]),
             row["verdict"]] for row in report["goals"]], ["goal", "found", "bound", "verdict"])]
    if report["loops"]:
        parts += ["## Updates and batches", "OSRL's own networks and batches, with its DataLoader and with ours. "
                  "Batches are also measured with OSRL's dataset in one process, without workers.", markdown_table([
                      [row["agent"], row["device"], row["threads"], row["batch_size"], row["workers"],
                       per_second(row["loop"]["osrl"]), per_second(row["loop"]["ours"]), times(row["loop"]["ratio"]),
                       milliseconds(row["batch"]["osrl"]), milliseconds(row["batch_alone"]["osrl"]),
                       milliseconds(row["batch"]["ours"]), times(row["batch"]["ratio"]),
                       times(row["batch_alone"]["ratio"])] for row in report["loops"]],
                      ["agent", "device", "threads", "batch", "workers", "OSRL updates/s", "ours", "ratio",
                       "OSRL ms per batch", "without workers", "ours", "ratio", "to one process"])]
    if report["unlearning"]:
        parts += ["## Unlearning against retraining", "`safe_rule` with all its preparations, random trajectories of a "
                  "clean agent. Growth: against the smallest share.", markdown_table([
                      [row["agent"], "{:g}".format(row["share"]), "{:,}".format(row["rows"]),
                       "{:,} of {:,}".format(row["updates"]["safe_rule"], row["updates"]["retrain"]),
                       number(row["seconds"]), number(row["retrain"]), "{:.1%} [{:.1%}, {:.1%}]".format(
                           *(row["ratio"][key] for key in ("median", "low", "high"))), times(row["growth"])]
                      for row in report["unlearning"]],
                      ["agent", "forgotten share", "rows", "updates", "seconds", "retraining", "of retraining",
                       "growth"])]
    if report["script"]:
        parts += ["## A script with and without the plugin", "A script that loads {:,} rows and trains for {} updates; "
                  "ratios to plain python.".format(report["suite"]["script"], SCRIPT_UPDATES), markdown_table([
                      [row["way"]] + [cell for what, scale in (("seconds", 1), ("load", 1), ("peak_bytes", 1e6))
                                      for cell in (number(row[what], scale), times(row[what]["ratio"], 3))]
                      for row in report["script"]],
                      ["started with", "seconds", "ratio", "loading, seconds", "ratio", "peak memory, MB", "ratio"])]
    if report["sizes"]:
        parts += ["## Large files", "Poisoning (`cost_hide`, a tenth of the trajectories): one file into another. "
                  "Splitting: into forget set and retain set. Detection: with the ensemble. Memory: the peak of the "
                  "process, with Python, its libraries and what is mapped of the file. Time per row: against the next "
                  "smaller size, 1 is linear.", markdown_table([
                      [row["operation"], "{:,}".format(row["rows"]), number(row["seconds"]), number(row["per_million"]),
                       "" if row["per_row"] is None else "{:.2f}x".format(row["per_row"]),
                       number(row["peak_bytes"], 1e6), "{:,.0f}".format(row["file_bytes"] / 1e6), row["seconds"]["n"]]
                      for row in report["sizes"]],
                      ["operation", "rows", "seconds", "seconds per million rows", "time per row", "peak memory, MB",
                       "file, MB", "repetitions"])]
    return "\n\n".join(parts)


def _about(report):
    lines = ["{cpu}, {usable} of {cores} cores usable, {memory:.0f} GiB memory, {gpu}, {system}.".format(
        usable=machine["usable_cores"] or machine["cores"], memory=machine["memory_bytes"] / 2 ** 30,
        **dict(machine, gpu=machine["gpu"] or "no GPU used")) for machine in report["machines"]]
    lines.append("One thread of torch where the tables name no other number. {}.".format(", ".join(
        "{} {}".format(*item) for item in report["versions"].items())))
    lines.append("Other processes kept {} cores busy on average during the most disturbed measurement.".format(
        "an unknown number of" if report["others"] is None else "{:.2f}".format(report["others"])))
    # Where somebody keeps their files is nobody's business.
    command = [os.path.basename(word.rstrip(os.sep)) if os.path.isabs(word) else word for word in report["command"]]
    return " ".join(lines) + "\n\n`{}`".format(" ".join(command))


def number(found, scale=1.0):
    """A :func:`spread` as "median [low, high]", divided by ``scale``."""
    median, low, high = (found[key] / scale for key in ("median", "low", "high"))
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return "{:,.{d}f} [{:,.{d}f}, {:,.{d}f}]".format(median, low, high, d=digits)


def times(found, digits=2):
    """A ratio as "median x [low, high]"."""
    return "{median:.{d}f}x [{low:.{d}f}, {high:.{d}f}]".format(d=digits, **{
        key: found[key] for key in ("median", "low", "high")})


def per_second(seconds):
    """Seconds per update as updates per second."""
    return "{:,.1f}".format(1 / seconds["median"])


def milliseconds(seconds):
    """Seconds as milliseconds."""
    return "{:,.2f}".format(1e3 * seconds["median"])


def draw(report):
    """Time and memory against the size of the file, and time against the share that is forgotten."""
    groups = [report["sizes"], report["sizes"], report["unlearning"]]
    if not any(groups):
        return None
    figure, axes = panels(12, 3.8, 1, 3)
    for ax, what, scale, label in ((axes[0], "seconds", 1, "seconds"), (axes[1], "peak_bytes", 1e9, "peak memory, GB")):
        for n, operation in enumerate(OPERATIONS):
            rows = [row for row in report["sizes"] if row["operation"] == operation]
            _line(ax, [row["rows"] for row in rows], [row[what] for row in rows], operation, n, scale)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("rows")
        ax.set_ylabel(label)
    for n, name in enumerate(dict.fromkeys(row["agent"] for row in report["unlearning"])):
        rows = [row for row in report["unlearning"] if row["agent"] == name]
        _line(axes[2], [row["share"] for row in rows], [row["ratio"] for row in rows], name, n)
    axes[2].set_xlabel("forgotten share of the trajectories")
    axes[2].set_ylabel("time of safe_rule / of retraining")
    axes[2].set_ylim(bottom=0)
    for ax, rows in zip(axes, groups):
        if rows:
            ax.legend(frameon=False, fontsize=output.SMALL)
        else:
            ax.set_visible(False)
    figure.tight_layout()
    return figure


def _line(ax, x, found, label, n, scale=1.0):
    color, marker, dashes = STYLES[n % len(STYLES)]
    middle = [value["median"] / scale for value in found]
    bars = [[(value["median"] - value["low"]) / scale for value in found],
            [(value["high"] - value["median"]) / scale for value in found]]
    ax.errorbar(x, middle, bars, label=label, color=color, marker=marker, linestyle=dashes, capsize=3)
