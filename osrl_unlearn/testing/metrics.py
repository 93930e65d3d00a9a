"""What every metric of an audit has to keep."""
import copy
import json

import numpy as np

from osrl_unlearn.audit.base import MISSING, Context
from osrl_unlearn.audit.certificate import text_of
from osrl_unlearn.data.poison import poison
from osrl_unlearn.testing.contracts import _WithAgent, assert_same


class MetricContract(_WithAgent):
    """Override :meth:`make` and :meth:`make_trainer`, and ``attack`` if the metric is about one."""

    attack = "cost_hide"

    def make(self):
        """The metric under test."""
        raise NotImplementedError("override make() with the metric")

    def context(self, alone=False):
        """A :class:`~osrl_unlearn.audit.base.Context`, without environment; ``alone``: with the agent and data only."""
        bad = poison(self.data(), self.attack, rate=0.25)
        more = {} if alone else {"original": self.agent(1), "references": [self.agent(2), self.agent(3)], "updates": 20}
        return Context(self.agent(0), bad.data, bad.ids, bad.manifest, 5.0, 0.1, batch_size=32, **more)

    def test_it_says_what_it_is_and_what_it_needs(self):
        metric = self.make()
        assert metric.name and metric.summary
        assert metric.needs <= set(MISSING) | self.agent().capabilities
        assert metric.tests and all(metric.tests.values())

    def test_it_names_the_test_behind_every_figure(self):
        """Or says why there is none: under the figure's own name or that of a group it is in."""
        metric = self.make()
        for path in _figures(metric.run(self.context()).get("value", {})):
            assert any(name.startswith(known) for name in path for known in metric.tests), path

    def test_the_same_audit_gives_the_same_plain_figures(self):
        first, again = (text_of(self.make().run(self.context())) for _ in range(2))
        assert first == again
        found = json.loads(first)
        assert set(found) <= {"value", "per_trajectory", "details", "tests"} or "not_computed" in found

    def test_it_leaves_agents_and_data_as_they_were(self):
        ctx = self.context()
        states = {name: copy.deepcopy(agent.state()) for name, agent in ctx.agents.items()}
        columns = {name: column.copy() for name, column in ctx.data.items()}
        self.make().run(ctx)
        assert_same({name: agent.state() for name, agent in ctx.agents.items()}, states)
        assert all(np.array_equal(ctx.data[name], column) for name, column in columns.items())

    def test_what_is_missing_is_said_and_not_raised(self):
        ctx = self.context(alone=True)
        found = self.make().run(ctx)
        assert ("value" in found) != ("not_computed" in found)
        if self.make().needs - ctx.given:
            assert found["not_computed"].startswith("because ")

    def test_figures_per_trajectory_are_of_trajectories_of_the_data(self):
        ctx = self.context()
        known = set(map(str, ctx.ids.tolist()))
        for figures in (self.make().run(ctx).get("per_trajectory") or {}).values():
            assert figures and set(figures) <= known


def _figures(value, path=()):
    """The names that lead to each number or summary."""
    if isinstance(value, dict) and "mean" not in value:
        for name, found in value.items():
            yield from _figures(found, path + (name,))
    elif isinstance(value, (dict, float)):
        yield path
