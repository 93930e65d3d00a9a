"""A metric of a third party."""
from osrl_unlearn.audit.base import Metric, Result


class ValueChange(Metric):
    """How much less the agent values forgotten trajectories than the agent before unlearning did."""

    name = "thirdparty_value_change"
    summary = "by how much the values of forgotten trajectories have fallen"
    needs = frozenset({"original", "values"})
    tests = {"change": "mean over trajectories, no interval"}

    def compute(self, ctx):
        """{"change": mean over trajectories}, and of each trajectory."""
        forget = ctx.sets["forget"]
        before, after = (forget.per_trajectory(ctx.ask(agent, forget.batch, lambda b: agent.reward_value(b).mean(0)))
                         for agent in (ctx.original, ctx.adapter))
        return Result({"change": float((after - before).mean())},
                      {"change": dict(zip(map(str, forget.ids.tolist()), (after - before).tolist()))})
