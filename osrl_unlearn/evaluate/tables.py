"""Text tables, and how numbers are written in a report."""
import numbers


def format_table(rows, headers):
    """Aligned monospaced text: the first column to the left, the others to the right.

    Args:
        rows: sequence of rows, each a sequence of as many cells as ``headers``; cells are turned into text.
        headers: column titles.
    """
    cells = [[str(cell) for cell in row] for row in [headers] + list(rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]).rstrip()
                     for row in cells)


def markdown_table(rows, headers):
    """A Markdown table; arguments as for :func:`format_table`. Pipes and line breaks in cells are made harmless."""
    rows = [headers, ["---"] + ["---:"] * (len(headers) - 1)] + list(rows)
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in row) + " |"
                     for row in rows)


def number(value):
    """A measured number with about four digits, a count in full; "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, numbers.Integral):
        return "{:,}".format(value)
    size = abs(value)
    if 0 < size < 0.01:
        return "{:.2g}".format(value)
    return "{:,.{}f}".format(value, 0 if size >= 1e4 else 1 if size >= 100 else 2 if size >= 1 else 3)


def setting(value):
    """A number that somebody chose: 40.0 is 40."""
    if value is None or isinstance(value, numbers.Integral):
        return number(value)
    return "{:g}".format(value)


def normalization_text(constants):
    """How DSRL normalises, with its ``constants`` for the task; units: per episode."""
    low, high, limit, epsilon = (constants[key] for key in ("reward_min", "reward_max", "cost_limit", "epsilon"))
    reward = "no constants are known for the reward" if low is None or high is None else (
        "(reward - {0}) / ({1} - {0})".format(setting(low), setting(high)))
    cost = "(cost + {0}) / ({1} + {0})" if epsilon else "cost / {1}"
    return "Normalized as in DSRL: {}; {}.".format(reward, cost.format(setting(epsilon), setting(limit)))


def percent(share):
    return ("{:,.1f} %" if abs(share) >= 0.1 else "{:.2g} %").format(100 * share)


def interval(summary):
    if summary["n"] == 1:
        return "{} (one episode)".format(number(summary["mean"]))
    # One number of decimals for all three, so that they can be compared at a glance.
    low, high = summary["ci95"]
    digits = 1 if max(abs(v) for v in (low, high, summary["mean"])) >= 100 else 2
    return "{:,.{d}f} [{:,.{d}f}, {:,.{d}f}]".format(summary["mean"], low, high, d=digits)
