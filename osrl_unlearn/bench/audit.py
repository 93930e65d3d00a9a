"""``osrl-unlearn bench audit``: what an audit says of agents of which the truth is known.

    OUT/audit.json                   a row per setting, attack and truth: how often each verdict was given, which claims
                                     failed, and which were not tested
    OUT/audit.jsonl                  a line per audit, with its figures
    OUT/audit.md, audit.png          the rows, to be read
"""
import collections
import dataclasses
import json

import numpy as np
import torch
from matplotlib.ticker import PercentFormatter

from osrl_unlearn.audit import certificate
from osrl_unlearn.bench import agents, output, unlearning
from osrl_unlearn.bench import suite as suites
from osrl_unlearn.evaluate.report import markdown_table, panels

VERDICTS = ("unlearned", "partly", "not")
TRUTHS = {  # truth: whether it is that the agent was never trained on the forget set
    "retrained": True,
    "trained on it": False,
    "trained on it, then trained on": False,
    "values lowered": False,
}
RETRAINED = (None, 1000, 2000)  # added to the seed of the retrained agents; two are those of `bench unlearning`
MORE = 0.05  # share of the training's updates for which "trained on it, then trained on" goes on with all data
LOWERED = 3.0  # by how much the fake lowers the values on the forget set, in units of their spread
STEPS = 500
OTHER_BATCHES = 1000  # added to the seed of the batches of training on


@dataclasses.dataclass
class AuditSuite(suites.Suite):
    """A suite whose audits run ``episodes`` episodes of each agent."""
    episodes: int = 10


def run(path, args):
    """Compute what the suite at ``path`` asks for and make the tables; 1 if cells failed, else 0."""
    return output.run("audit", suites.read(path, args.only, args.seeds, AuditSuite), args, plan=plan,
                      function="osrl_unlearn.bench.audit:audit", aggregate=aggregate, text=text, draw=draw)


def plan(suite, files, hashes):
    """{(setting, attack, rate, truth, seed): cell}; attack is a label."""
    cells = {}
    for seed in suite.seeds:
        for name, setting in suite.settings.items():
            for label, attack, rate in suite.attacked(name):
                base = agents.description(setting, files[setting.task], hashes[setting.task], attack, rate, seed)
                for truth in TRUTHS:
                    cells[name, label, rate, truth, seed] = dict(
                        base, kind="audit", truth=truth, episodes=suite.episodes,
                        label="{}, {} {:g}, {}, seed {}".format(name, label, rate, truth, seed))
    return cells


def audit(cell, out):
    """Audit an agent against two that were retrained, with the poisoned agent as the one before unlearning.

    Returns:
        {"figures": {metric: {"value"} or {"not_computed"}}, "models", "triggered"}: what claims are made of, see
        :func:`osrl_unlearn.audit.certificate.claims`
    """
    from osrl_unlearn.audit.base import Context, compute
    adapter, _, poisoned, trigger = unlearning.load(cell, out)
    original, agent = adapter.state(), cell["agent"]
    retrained = []
    for more in RETRAINED:
        adapter.restore(original)
        unlearning.forget(adapter, poisoned, dict(cell, method=unlearning.RETRAIN, forget=None,
                                                  unlearning_seed=more and cell["seed"] + more), out)
        retrained.append(adapter.state())
    adapter.restore(retrained[2] if TRUTHS[cell["truth"]] else original)
    others = [_twin(adapter, cell, state) for state in [original] + retrained[:2]]
    ctx = Context(adapter, poisoned.data, poisoned.ids, poisoned.manifest, float(agent["cost_limit"]),
                  agent["reward_scale"], agent["cost_scale"], agent["batch_size"], agent["update_steps"], others[0],
                  others[1:], trigger=trigger, episodes=cell["episodes"], seed=cell["seed"])
    if cell["truth"] == "trained on it, then trained on":
        _train_on(ctx, max(1, int(MORE * agent["update_steps"])))
    elif cell["truth"] == "values lowered":
        lower_values(ctx)
    figures = json.loads(certificate.text_of(compute(ctx)))
    return {"models": certificate.model_hashes(ctx), "triggered": trigger is not None, "figures": {
        name: {key: value for key, value in found.items() if key in ("value", "not_computed")}
        for name, found in figures.items()}}


def _twin(adapter, cell, state):
    from osrl_unlearn import environments
    agent = cell["agent"]
    env = environments.make(agent["task"], agent["cost_limit"], agent["reward_scale"])
    twin = type(adapter).build({name: value for name, value in agent.items() if name != "name"}, env, adapter.device)
    twin.restore(state)
    return twin


def _train_on(ctx, steps):
    view = ctx.adapter.store(ctx.data, ctx.reward_scale, ctx.cost_scale)
    view = view.view(view.rows, ctx.seed + OTHER_BATCHES, True)
    torch.manual_seed(ctx.seed + OTHER_BATCHES)
    ctx.adapter.model.train()
    for _ in range(steps):
        ctx.adapter.update(view.batch(ctx.batch_size))
    ctx.adapter.model.eval()


def lower_values(ctx):
    """The fake: critics that value the forget set less, as a naive check would like them to, and the very same policy.

    Only the reward critic moves, until its values on forgotten rows have fallen by LOWERED of their spread.
    """
    adapter, forget = ctx.adapter, ctx.views[0]
    network = getattr(adapter.model, adapter.parts["reward_critic"].module)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    probe = forget.everything(ctx.batch_size)
    with torch.no_grad():
        values = adapter.reward_value(probe).mean(0)
    goal = values.mean() - LOWERED * values.std()
    for _ in range(STEPS):
        if adapter.reward_value(probe).mean() <= goal:
            break
        optimizer.zero_grad()
        adapter.reward_value(forget.batch(ctx.batch_size)).mean().backward()
        optimizer.step()


# Numbers --------------------------------------------------------------------------------------------------------------

def aggregate(suite, results):
    """The report's "rows" from {key of plan(): result}."""
    rows = []
    for name in suite.settings:
        for label, _, rate in suite.attacked(name):
            for truth, clean in TRUTHS.items():
                found = [results[name, label, rate, truth, seed] for seed in suite.seeds]
                found = [result for result in found if result is not None]
                if found:
                    claimed = [certificate.claims(result["figures"], result["models"],
                                                  suite.settings[name].agent["cost_limit"], result["triggered"])
                               for result in found]
                    given = collections.Counter(certificate.verdict(claims)[0] for claims in claimed)
                    failed, untested = (collections.Counter(
                        claim["claim"] for claims in claimed for claim in claims if claim["holds"] is holds)
                        for holds in (False, None))
                    rows.append({"setting": name, "attack": label, "rate": rate, "truth": truth, "never": clean,
                                 "verdicts": {verdict: given[verdict] for verdict in VERDICTS}, "audits": len(found),
                                 "failed": dict(sorted(failed.items())), "untested": dict(sorted(untested.items()))})
    return {"rows": rows}


# Output ---------------------------------------------------------------------------------------------------------------

def text(report):
    """The tables as Markdown."""
    seeds = ", ".join(map(str, report["suite"]["seeds"]))
    parts = ["# Does the audit say what is true?",
             "Verdicts on agents of which the truth is known, with two retrained agents as references; seeds {}. "
             "\"Not\" is the right verdict on all that were trained on the forget set, and a false alarm on "
             "retrained ones.".format(seeds)]
    total = [[truth] + [str(sum(row["verdicts"][verdict] for row in report["rows"] if row["truth"] == truth))
                        for verdict in VERDICTS] for truth in TRUTHS]
    parts.append(markdown_table(total, ["truth"] + ["\"{}\"".format(verdict) for verdict in VERDICTS]))
    parts.append(markdown_table([
        ["{}, {} {:g}".format(row["setting"], row["attack"], row["rate"]), row["truth"]]
        + [str(row["verdicts"][verdict]) for verdict in VERDICTS]
        + [", ".join("{} {}".format(claim, count) for claim, count in row[key].items()) or "none"
           for key in ("failed", "untested")]
        for row in report["rows"]],
        ["agents", "truth"] + ["\"{}\"".format(verdict) for verdict in VERDICTS] + ["claims that failed, how often",
                                                                             "not tested"]))
    return "\n\n".join(parts)


def draw(report):
    """The share of each verdict for each truth, all agents together."""
    counts = np.array([[sum(row["verdicts"][verdict] for row in report["rows"] if row["truth"] == truth)
                        for verdict in VERDICTS] for truth in TRUTHS], float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, (ax,) = panels(7.5, 3.2)
    left = np.zeros(len(TRUTHS))
    for verdict, share, colour in zip(VERDICTS, shares.T, ("#0072B2", "#BBBBBB", "#D55E00")):
        ax.barh(range(len(TRUTHS)), share, left=left, color=colour, label="\"{}\"".format(verdict))
        left += share
    ax.set_yticks(range(len(TRUTHS)))
    ax.set_yticklabels(["{} ({:.0f} audits)".format(truth, n) for truth, n in zip(TRUTHS, counts.sum(1))])
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.set_xlabel("share of audits with this verdict")
    output.legend_below(figure, ax.get_legend_handles_labels()[0], len(VERDICTS))
    return figure
