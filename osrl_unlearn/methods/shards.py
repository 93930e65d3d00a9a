"""Sharded training (SISA: Bourtoule et al., IEEE S&P 2021, arXiv 1912.03817): deletion that is exact, and its price.

Each of k agents is trained on one of k disjoint shards of the trajectories, with a k-th of the updates; a deletion
trains those anew whose shards hold forgotten rows, from scratch and without these rows. So nothing of them is left, and
a deletion that touches one shard costs a k-th of the training. Slices within a shard, the second half of the paper, are
left out: they need the batches in the order of the slices, which OSRL's sampling does not have.

The paper lets its models vote. OSRL has room for one agent, and means of actions would leave what any agent has
learned, so here the result is the medoid: the shard agent whose actions in retained states are nearest to the mean
action of all. Its quality is that of an agent that has seen a k-th of the data for a k-th of the time.
"""
import bisect
import dataclasses
import os

import numpy as np
import torch

from osrl_unlearn.errors import ConfigError
from osrl_unlearn.files import load_tensors, save_tensors
from osrl_unlearn.methods.base import PROBE_ROWS, Method
from osrl_unlearn.options import option


@dataclasses.dataclass
class ShardsOptions:
    """How many shards, and where those of an earlier deletion are."""
    shards: int = option(5, "number of agents, each with a shard of the trajectories; with previous: as many as there")
    previous: str = option("", "folder of an earlier result of this method on the same data: only shards that hold "
                               "forgotten rows are trained anew")

    def __post_init__(self):
        if self.shards < 1:
            raise ValueError("shards must be at least 1, got {}".format(self.shards))
        if self.previous and not os.path.isfile(_path(self.previous)):
            raise ValueError("previous: no shards at {}; expected the folder of a result of this method".format(
                _path(self.previous)))


class Shards(Method):
    """Train all shards if the agent was not trained in shards, otherwise the touched ones; every update is one.

    The agent that is handed in is replaced; only its architecture and settings matter.

    Args:
        agents: :attr:`agents` of an earlier run on the same data, in place of the option ``previous``.

    Attributes:
        agents: [{"rows": rows of the shard that are retained, "state": of the agent trained on them}]. Rows that were
            forgotten once never come back, whatever is forgotten next. None if the run diverged.
    """

    name = "shards"
    summary = "train agents on shards of the trajectories, again where something is forgotten (SISA, exact)"
    Options = ShardsOptions
    default_budget = 1.0

    def __init__(self, options=None, agents=None):
        super().__init__(options)
        self.agents = agents

    def prepare(self, ctx):
        """Find the shards that have to be trained, and lower the budget to what they take."""
        store, retained = ctx.retain.store, torch.zeros(len(ctx.retain.store), dtype=torch.bool)
        retained[ctx.retain.rows.cpu()] = True
        before = self._before(ctx)
        self.first = before is None
        if self.first:
            before = [{"rows": rows, "state": None} for rows in _split(store, self.options.shards, ctx.seed)]
        self.agents = [{"rows": old["rows"][retained[old["rows"]]], "state": old["state"]} for old in before]
        for agent, old in zip(self.agents, before):
            if not len(agent["rows"]):
                raise ConfigError("a shard would be empty without the forget set: give fewer shards")
            if len(agent["rows"]) < len(old["rows"]):
                agent["state"] = None
        count = len(self.agents)
        self.todo = [number for number, agent in enumerate(self.agents) if agent["state"] is None]
        if not self.todo:
            raise ConfigError("no shard holds a row of the forget set: it has been forgotten already")
        if ctx.steps < count:
            raise ConfigError("the budget of {} updates is less than one for each of {} shards".format(
                ctx.steps, count))
        self.ends = np.cumsum([ctx.steps // count + (n < ctx.steps % count) for n in self.todo]).tolist()
        ctx.steps = self.ends[-1]
        self._open(ctx, self.todo[0])

    def _before(self, ctx):
        agents = self.agents
        if agents is None and self.options.previous:
            agents = load_tensors(_path(self.options.previous))["agents"]
        if agents is None:
            return None
        if 1 + max(int(agent["rows"].max()) for agent in agents) > len(ctx.retain.store):
            raise ConfigError("the shards of the earlier deletion are of other data: they name rows that are not there")
        ctx.adapter.restore(agents[0]["state"])  # raises RunError for one of another kind
        return [{"rows": agent["rows"].cpu(), "state": agent["state"]} for agent in agents]

    def step(self, ctx, i):
        """An update of the shard agent whose turn it is; the last one ends with the choice of the medoid."""
        turn = bisect.bisect(self.ends, i)
        number = self.todo[turn]
        if i == ([0] + self.ends)[turn]:
            torch.manual_seed(self._seed(ctx, number))
            ctx.adapter.reset()
            self._open(ctx, number)
            ctx.adapter.set_data_constants(self._view)
        losses = ctx.adapter.update(self._view.batch(ctx.batch_size))
        if i + 1 == self.ends[turn]:
            self.agents[number]["state"] = ctx.adapter.state()
        if i + 1 == ctx.steps:
            number = self._medoid(ctx)
            ctx.adapter.restore(self.agents[number]["state"])
        return dict(losses, shard=float(number))

    def _seed(self, ctx, number):
        return ctx.seed * len(self.agents) + number

    def _open(self, ctx, number):
        self.number = number
        self._view = ctx.retain.store.view(self.agents[number]["rows"].numpy(), self._seed(ctx, number), True)

    @torch.no_grad()
    def _medoid(self, ctx):
        probe, actions = ctx.retain.everything(PROBE_ROWS), []
        for agent in self.agents:
            ctx.adapter.restore(agent["state"])
            torch.manual_seed(ctx.seed)  # stochastic policies are compared with the same draws
            actions.append(ctx.adapter.actions(probe))
        actions = torch.stack(actions)
        return (actions - actions.mean(0)).norm(dim=-1).mean(-1).argmin().item()

    def finished(self, ctx, i):
        """What was trained; in the reason of the outcome."""
        if i < ctx.steps:
            return None
        return "trained {} of {} shards{}".format(len(self.todo), len(self.agents), (
            ": all of them, since the agent was not trained in shards before" if self.first else ""))

    def rejected(self):
        """After divergence there is nothing to keep."""
        self.agents = None

    def state(self):
        """The agents, the plan and the generator of the current shard."""
        return {"agents": [dict(agent) for agent in self.agents], "todo": self.todo, "ends": self.ends,
                "first": self.first, "number": self.number, "view": self._view.state()}

    def set_state(self, ctx, state):
        """Go on in the middle of a shard."""
        self.agents = [dict(agent, rows=agent["rows"].cpu()) for agent in state["agents"]]
        self.todo, self.ends, self.first = state["todo"], state["ends"], state["first"]
        ctx.steps = self.ends[-1]
        self._open(ctx, state["number"])
        self._view.set_state(state["view"])

    def save(self, folder):
        """Keep the shard agents beside the result, for the option ``previous`` of the next deletion."""
        if self.agents is not None:
            save_tensors(_path(folder), {"agents": self.agents})


def _split(store, shards, seed):
    """Row numbers (int64, on the CPU) of each shard: whole trajectories, their numbers equal up to one."""
    rows = torch.as_tensor(np.sort(store.rows))
    trajectories, own = torch.cumsum(store.columns.is_init.cpu(), 0)[rows].unique(return_inverse=True)
    if len(trajectories) < shards:
        raise ConfigError("{} shards need as many trajectories, the agent was trained on {}".format(
            shards, len(trajectories)))
    shard = torch.randperm(len(trajectories), generator=torch.Generator().manual_seed(seed))[own] % shards
    return [rows[shard == number] for number in range(shards)]


def _path(folder):
    return os.path.join(folder, "osrl_unlearn", "shards.pt")
