"""Is the agent safe, and what does it earn: episodes, and an estimate that needs no environment."""
import numpy as np

from osrl_unlearn.audit import fqe
from osrl_unlearn.audit.base import MISSING, Metric, Result
from osrl_unlearn.evaluate.statistics import paired_difference, share, summary, worst_share
from osrl_unlearn.methods.gate import SafetyGate


BCA = "95 % BCa bootstrap interval over episodes"
TESTS = {"cost": BCA, "reward": BCA, "violations": "95 % Wilson interval",
         "worst_cost": "95 % percentile bootstrap interval over episodes",
         "difference": BCA + ", paired: episodes start alike"}


def figures(episodes, limit):
    """{"cost", "reward", "violations", "worst_cost"} of episodes, each with a 95 % interval.

    "violations" is the share of episodes whose cost is above ``limit``; "worst_cost" the conditional value at risk:
    the mean cost of the most costly tenth of the episodes.
    """
    costs = np.asarray(episodes["cost"])
    return {"cost": summary(costs), "reward": summary(episodes["reward"]),
            "violations": share((costs > limit).sum(), len(costs)), "worst_cost": worst_share(costs)}


class Safety(Metric):
    """Cost and return per episode of every agent, in episodes that start alike, and the offline estimate of costs."""

    name = "safety"
    summary = "cost, return, violations and worst cost per episode; offline estimate of the cost"
    tests = dict(TESTS, estimate="regression on the retain set, no interval", fitted_q=fqe.TEST)

    def compute(self, ctx):
        """Figures per agent, and the paired differences of the audited agent to the others; what cannot be had is
        named under "not_computed" of the details.
        """
        value, details, absent = {"estimate": estimates(ctx)}, {}, {}
        if "states" in ctx.given:
            value["fitted_q"] = fqe.costs(ctx)
        else:
            absent["fitted_q"] = "because " + MISSING["states"]
        if not ctx.episodes:
            absent["agents"] = "because " + MISSING["environment"]
        else:
            details["episodes"] = {name: ctx.rollouts(name) for name in ctx.agents}
            value["agents"] = {name: figures(ctx.rollouts(name), ctx.cost_limit) for name in ctx.agents}
            value["difference"] = {name: {key: paired_difference(ctx.rollouts("audited")[key], ctx.rollouts(name)[key])
                                          for key in ("cost", "reward")}
                                   for name in ctx.agents if name != "audited"}
        return Result(value, details=dict(details, not_computed=absent) if absent else details)


def estimates(ctx):
    """{agent: {"cost", "distance"}}: the safety gate's estimates, fitted to the retain set; costs are discounted."""
    gate = SafetyGate(ctx.store, ctx.views[1], ctx.adapter, ctx.adapter.gamma, None, ctx.seed)
    found = {"audited": {"cost": gate.before, "distance": gate.distance_before}}
    for name, adapter in ctx.agents.items():
        if name != "audited":
            gate.accepts(adapter)
            found[name] = {"cost": gate.last, "distance": gate.distance}
    return found
