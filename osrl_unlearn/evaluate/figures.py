"""The figures of a report: Figure and its canvas, never pyplot.

The user's backend, settings and open figures stay as they are.
"""
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from osrl_unlearn.evaluate.tables import setting
from osrl_unlearn.evaluate.verdict import agents_of, evaluated

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILLION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
COLORS = {"poisoned": VERMILLION, "unlearned": BLUE, "reference": GREEN, "retrained": GREEN}
SMALL = (4.4, 3.6)  # inches: one panel, whose labels can still be read on a phone
CAPTIONS = {
    "cost_reward.png": "Cost and reward of every agent: mean over the episodes, with the 95 % interval of the mean. "
                       "The dashed line is the cost limit.",
    "values.png": "Means of the agent's own critics on the forget set and on the retain set during unlearning.",
    "action_distance.png": "Mean distance between the policy's actions and the forgotten actions, in the states in "
                           "which they were taken. Larger: the policy acts less like the forgotten data.",
    "multiplier.png": "The method's Lagrange multiplier, where it has one, and the safety gate's estimate during "
                      "unlearning.",
}


def panels(width, height, rows=1, columns=1, **options):
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for ax in axes:
        ax.grid(True, color="#dddddd", linewidth=0.7)
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return figure, axes


def draw_all(report, trace):
    """{file name: figure, or None where the numbers do not allow it}; arguments as for write_report."""
    return {
        "cost_reward.png": _draw_cost_reward(report),
        "values.png": _draw_values(report, trace),
        "action_distance.png": _draw_distance(report, trace),
        "multiplier.png": _draw_multiplier(report, trace),
    }


def _draw_cost_reward(report):
    if not evaluated(report):
        return None
    agents = [(name, result) for name, result, _, _ in agents_of(report)]
    figure, axes = panels(8, 1.7 + 0.42 * len(agents), 1, 2, sharey=True)
    for ax, key in zip(axes, ("cost", "reward")):
        for y, (name, result) in enumerate(agents):
            color, (low, high) = COLORS.get(name, GREY), result[key]["ci95"]
            if low < high:
                ax.plot([low, high], [y, y], color=color, linewidth=1.8, marker="|", markersize=9, markeredgewidth=1.8)
            ax.plot([result[key]["mean"]], [y], color=color, marker="o", markersize=7)
        ax.set_xlabel("{} per episode".format(key))
        ax.grid(False, axis="y")
    limit = report["cost_limit"]
    axes[0].axvline(limit, color="black", linestyle="--", linewidth=1.2)
    axes[0].annotate("cost limit {}".format(setting(limit)), (limit, 1), xycoords=("data", "axes fraction"),
                     xytext=(0, 3), textcoords="offset points", ha="center", va="bottom", fontsize=9)
    axes[0].set_yticks(range(len(agents)))
    axes[0].set_yticklabels([name for name, _ in agents])
    axes[0].set_ylim(len(agents) - 0.5, -0.5)
    for ax in axes:
        ax.margins(x=0.12)
    n = sorted({result["cost"]["n"] for _, result in agents})
    figure.suptitle("One episode: no intervals" if n == [1] else "Mean and 95 % interval over {} episodes".format(
        " or ".join(map(str, n))), fontsize=11)
    figure.tight_layout()
    return figure


def line(ax, trace, key, before=None, **style):
    """Draw ``key`` over the steps; crosses where the gate sent the agent back. Whether there was anything to draw."""
    points = [(e["step"], e[key], e.get("accepted", 1)) for e in trace if key in e]
    if before is not None and points and points[0][0] > 0:
        points.insert(0, (0, before, 1))
    if not points:
        return False
    ax.plot([p[0] for p in points], [p[1] for p in points], markersize=5, linewidth=1.8, **style)
    refused = [p for p in points if not p[2]]
    if refused:
        ax.plot([p[0] for p in refused], [p[1] for p in refused], color="black", marker="x", markersize=9,
                markeredgewidth=1.8, linestyle="none", zorder=4)
    return True


def finish(figure, axes, trace):
    """Axes, the repair stage, and one legend for everything, beside the data and not on it."""
    repair = [e["step"] for e in trace if e.get("stage") == 1]
    forgetting = [e["step"] for e in trace if e.get("stage") == 0]
    steps = [e["step"] for e in trace]
    start = max(forgetting) if forgetting else 0
    for ax in axes:
        ax.set_xlabel("unlearning step (updates)")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.margins(y=0.1)
        if repair:
            ax.axvspan(start, max(steps), color="#f0e442", alpha=0.18, linewidth=0)
    handles, columns = {}, 4 if figure.get_figwidth() >= 6 else 2
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if repair:
        handles["repairing"] = Line2D([], [], color="#f0e442", alpha=0.4, linewidth=8)
    if any(not e.get("accepted", 1) for e in trace):
        handles["rejected, rolled back"] = Line2D([], [], color="black", marker="x", markersize=8, linestyle="none")
    bottom = 0
    if len(handles) > 1:
        figure.legend(list(handles.values()), list(handles), loc="lower center", ncol=min(columns, len(handles)),
                      frameon=False, fontsize=9)
        bottom = 0.3 * -(-len(handles) // columns) / figure.get_figheight()
    figure.tight_layout(rect=(0, bottom, 1, 1))
    return figure


def draw_critic(ax, report, trace, key):
    """One critic ("reward_value", "cost_value") on forget and retain set; whether there was anything to draw."""
    drawn = False
    for subset, color, marker, dashes in (("forget", VERMILLION, "o", "-"), ("retain", BLUE, "s", "--")):
        drawn |= line(ax, trace, key + "/" + subset, report["critics"][key][subset]["before"], color=color,
                      marker=marker, linestyle=dashes, label=subset + " set")
    ax.set_title({"reward_value": "Reward critic", "cost_value": "Cost critic"}[key], fontsize=11)
    ax.set_ylabel("mean value (discounted {})".format(key[:-6]))
    return drawn


def _draw_values(report, trace):
    if "reward_value" not in report["critics"]:
        return None
    figure, axes = panels(9, 4, 1, 2)
    drawn = [draw_critic(ax, report, trace, key) for ax, key in zip(axes, ("reward_value", "cost_value"))]
    return finish(figure, axes, trace) if any(drawn) else None


def _draw_distance(report, trace):
    figure, axes = panels(6, 4)
    before = report["critics"].get("action_distance", {}).get("forget", {}).get("before")
    if not line(axes[0], trace, "action_distance/forget", before, color=BLUE, marker="o", label="policy's actions"):
        return None
    axes[0].set_ylabel("distance to the forgotten actions\n(Euclidean, units of the actions)")
    axes[0].set_title("Policy against the forgotten actions", fontsize=11)
    # From 0, so that a small change does not look like a large one.
    axes[0].set_ylim(0, 1.1 * axes[0].dataLim.ymax)
    return finish(figure, axes, trace)


def draw_plane(agents, limit):
    """Cost against return, with intervals; safe is to the left of the limit.

    Args:
        agents: {name: (cost, return)}, each {"mean", "ci95": [low, high] or None}.
        limit: cost per episode.
    """
    figure, (ax,) = panels(SMALL[0], 3 + 0.25 * -(-(len(agents) + 1) // 2))
    for n, (name, (cost, reward)) in enumerate(agents.items()):
        color = COLORS.get(name) or (PURPLE, GREY, "#E69F00", "#56B4E9", "black")[n % 5]
        # Not errorbar(), which refuses intervals that the mean is outside of: BCa can give them.
        for summary, x, y, cap in ((cost, cost["ci95"], [reward["mean"]] * 2, "|"),
                                   (reward, [cost["mean"]] * 2, reward["ci95"], "_")):
            if summary["ci95"] is not None:
                ax.plot(x, y, color=color, linewidth=1.6, marker=cap, markersize=8)
        ax.plot([cost["mean"]], [reward["mean"]], color=color, marker="osD^vP*X"[n % 8], markersize=7, linestyle="none",
                label=name)
    ax.axvline(limit, color="black", linestyle="--", linewidth=1.2, label="cost limit {}".format(setting(limit)))
    ax.set_xlabel("cost per episode")
    ax.set_ylabel("return per episode")
    ax.margins(0.12)
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.25 * -(-len(labels) // 2) / figure.get_figheight(), 1, 1))
    return figure


def draw_members(values, critic, against):
    """Box plots of a critic's values of forgotten and of other trajectories, before, after and retrained.

    ``values`` is {agent: {critic: {"forget", "others": one number per trajectory}}} of the membership metric.
    """
    agents = [(name, label) for name, label in (("original", "before"), ("audited", "after"),
                                                ("reference", "retrained")) if name in values]
    figure, (ax,) = panels(*SMALL)
    for shift, which, color in ((-0.18, "forget", VERMILLION), (0.18, "others", GREY)):
        boxes = ax.boxplot([values[name][critic][which] for name, _ in agents], widths=0.3, showfliers=False,
                           positions=[n + shift for n in range(len(agents))], patch_artist=True)
        for box in boxes["boxes"]:
            box.set(facecolor="white", edgecolor=color, hatch="//" if which == "forget" else "")
        for line_ in boxes["medians"]:
            line_.set(color=color, linewidth=2)
    ax.set_xticks(range(len(agents)))
    ax.set_xticklabels([label for _, label in agents])
    # What the critic's values were mapped onto: sums of rewards or costs, discounted and in the scale of training.
    ax.set_ylabel("{} still to come\n(discounted, scaled as in training)".format(critic[:-6]))
    ax.set_title("{} critic".format(critic[:-6].capitalize()), fontsize=11)
    ax.grid(False, axis="x")
    handles = [Patch(facecolor="white", edgecolor=color, hatch=hatch, label=label) for color, hatch, label in (
        (VERMILLION, "//", "forgotten trajectories"), (GREY, "", against + " trajectories like them"))]
    figure.legend(handles=handles, loc="lower center", frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    return figure


def draw_budgets(curves, key, limit=None):
    """The "cost" or "return" ``key`` against updates: {name: {updates: {key: {"mean", "ci95" or None}}}}."""
    figure, (ax,) = panels(*SMALL)
    for n, (name, curve) in enumerate(curves.items()):
        updates, color = sorted(curve), (BLUE, VERMILLION, GREEN, PURPLE, GREY)[n % 5]
        ax.plot(updates, [curve[x][key]["mean"] for x in updates], color=color, marker="osD^v"[n % 5],
                markersize=6, linewidth=1.4, label=name)
        for x in updates:
            if curve[x][key]["ci95"] is not None:
                ax.plot([x, x], curve[x][key]["ci95"], color=color, linewidth=1.4)
    ax.set_xscale("log")
    ax.set_xlabel("updates of unlearning")
    ax.set_ylabel(key + " per episode")
    if limit is not None:
        ax.axhline(limit, color="black", linestyle="--", linewidth=1.2, label="cost limit {}".format(setting(limit)))
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.25 * -(-len(labels) // 2) / figure.get_figheight(), 1, 1))
    return figure


def draw_episodes(report):
    """The cost of every episode, the most costly of the unlearned agent first, with the poisoned agent's."""
    poisoned, unlearned = (report[name]["episodes"]["cost"] for name in ("poisoned", "unlearned"))
    order = sorted(range(len(unlearned)), key=lambda n: -unlearned[n])
    figure, (ax,) = panels(*SMALL)
    if len(poisoned) == len(unlearned):
        ax.plot(range(1, len(order) + 1), [poisoned[n] for n in order], color=VERMILLION, marker="s", markersize=4,
                linestyle="none", label="poisoned, same episode")
    ax.plot(range(1, len(order) + 1), [unlearned[n] for n in order], color=BLUE, marker="o", markersize=5,
            linewidth=1.2, label="unlearned")
    ax.axhline(report["cost_limit"], color="black", linestyle="--", linewidth=1.2,
               label="cost limit {}".format(setting(report["cost_limit"])))
    ax.set_xlabel("episode, most costly first (rank)")
    ax.set_ylabel("cost per episode")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_ylim(bottom=0)
    figure.legend(loc="lower center", ncol=2, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    return figure


def _draw_multiplier(report, trace):
    keys = [key for key in ("multiplier", "gate_cost") if any(key in e for e in trace)]
    if not keys:
        return None
    figure, axes = panels(9 if len(keys) == 2 else 6, 4, 1, len(keys))
    for ax, key in zip(axes, keys):
        {"multiplier": draw_lagrange, "gate_cost": draw_gate}[key](ax, report, trace, key)
    return finish(figure, axes, trace)


def draw_lagrange(ax, report, trace, key):
    """The method's Lagrange multiplier; whether there was anything to draw."""
    ax.set_ylabel("multiplier (no unit)")
    ax.set_title("Lagrange multiplier", fontsize=11)
    return line(ax, trace, key, color=PURPLE, marker="D", label="multiplier")


def draw_gate(ax, report, trace, key):
    """The safety gate's estimates against the limit; whether there was anything to draw."""
    gate = report["gate"]
    drawn = line(ax, trace, key, gate.get("estimate_before"), color=BLUE, marker="o", label="gate's estimate")
    if gate["used"]:
        if gate["threshold"] is not None:
            ax.axhline(gate["threshold"], color="black", linestyle="--", linewidth=1.2, label="cost limit (discounted)")
        ax.axhline(gate["estimate_before"], color=VERMILLION, linestyle=":", linewidth=1.6, label="before unlearning")
    ax.set_ylabel("estimated cost (discounted)")
    ax.set_title("Safety gate", fontsize=11)
    return drawn
