"""Is the agent safe, and what does it earn: episodes, and an estimate that needs no environment."""
import numpy as np

from osrl_unlearn.audit import fqe
from osrl_unlearn.audit.base import Metric, Result
from osrl_unlearn.evaluate.statistics import paired_difference, share, summary, worst_share
from osrl_unlearn.methods.gate import SafetyGate


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

    def compute(self, ctx):
        """Figures per agent, and the paired differences of the audited agent to the others."""
        value = {"estimate": estimates(ctx), "fitted_q": fqe.costs(ctx)}
        if ctx.episodes:
            value["agents"] = {name: figures(ctx.rollouts(name), ctx.cost_limit) for name in ctx.agents}
            value["difference"] = {name: {key: paired_difference(ctx.rollouts("audited")[key], ctx.rollouts(name)[key])
                                          for key in ("cost", "reward")}
                                   for name in ctx.agents if name != "audited"}
        return Result(value, details={"episodes": {name: ctx.rollouts(name) for name in ctx.agents}}
                      if ctx.episodes else {"environment": "not used: no episodes were asked for"})


def estimates(ctx):
    """{agent: {"cost", "distance"}}: the safety gate's estimates, fitted to the retain set; costs are discounted."""
    gate = SafetyGate(ctx.store, ctx.views[1], ctx.adapter, ctx.adapter.gamma, None, ctx.seed)
    found = {"audited": {"cost": gate.before, "distance": gate.distance_before}}
    for name, adapter in ctx.agents.items():
        if name != "audited":
            gate.accepts(adapter)
            found[name] = {"cost": gate.last, "distance": gate.distance}
    return found
