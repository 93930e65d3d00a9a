"""Fitted Q evaluation of an agent's cost on the retain set, without the environment."""
import numpy as np
import torch
from scipy import stats

from osrl_unlearn.audit.base import evenly
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.generators import private_torch

STEPS, HEADS, BATCH, HIDDEN = 2000, 5, 256, 64
ROWS, LEARNING_RATE, TAU = 50000, 1e-3, 0.1
LEVEL = 0.95
TEST = "upper: one-sided {:.0%} bound of a normal distribution over {} heads, each fitted to rows drawn anew".format(
    LEVEL, HEADS)


class CostEvaluation:
    """Q-functions of the cost on bootstrap samples of the retained rows (Le, Voloshin and Yue, ICML 2019).

    The rows are drawn anew for every head, and the spread of the heads stands for what the data leave open. What a
    policy does where the data have nothing, no such estimate knows. None of the agents' own critics is used. The
    discounted cost from the first states is given as if every step cost the same: good for comparing agents, and too
    low where episodes start far from what costs.
    """

    def __init__(self, ctx):
        self.ctx = ctx
        self.rows = evenly(ctx.views[1].rows.cpu().numpy(), ROWS)
        index = TrajectoryIndex(ctx.data, ctx.ids)
        self.length = float(np.mean(index.stops - index.starts))
        starts = np.intersect1d(index.starts, ctx.views[1].rows.cpu().numpy())
        device = ctx.store.device
        self.batch, self.first = (ctx.store.gather(torch.as_tensor(rows, device=device))
                                  for rows in (self.rows, starts if len(starts) else self.rows))
        going_on = ~np.asarray(ctx.data["terminals"], bool)[self.rows]
        self.going_on = torch.as_tensor(going_on, dtype=torch.float32, device=device)
        x = torch.cat([self.batch.observations, self.batch.actions], -1)
        self.mean, self.std = x.mean(0), x.std(0).clamp(min=1e-6)

    def __call__(self, adapter):
        """{"mean", "upper": one-sided bound at LEVEL} of the cost per episode of the mean length."""
        ctx, batch, gamma = self.ctx, self.batch, self.ctx.adapter.gamma
        following = self._inputs(batch.next_observations, self._acts(adapter, batch._replace(
            observations=batch.next_observations)))
        inputs = self._inputs(batch.observations, batch.actions)
        generator = torch.Generator().manual_seed(int(ctx.seed))
        n, most = len(self.rows), batch.costs.max().clamp(min=1e-6)  # no policy costs more in a step, wherever it goes
        samples = torch.randint(n, (HEADS, n), generator=generator)
        with private_torch(int(ctx.seed), inputs.device):
            online, target = _Heads(inputs.shape[1]).to(inputs.device), _Heads(inputs.shape[1]).to(inputs.device)
        online.biases[-1].data.fill_(float(torch.logit(batch.costs.mean() / most, 0.01)))
        target.load_state_dict(online.state_dict())
        optimizer = torch.optim.Adam(online.parameters(), lr=LEARNING_RATE)
        heads = torch.arange(HEADS)[:, None]
        for _ in range(STEPS):
            drawn = samples[heads, torch.randint(n, (HEADS, BATCH), generator=generator)].to(inputs.device)
            with torch.no_grad():  # in units of the cost per step, so that gamma does not matter to the scale
                later = self.going_on[drawn] * target(following[drawn])
                wanted = (1 - gamma) * batch.costs[drawn] / most + gamma * later
            loss = (online(inputs[drawn]) - wanted).pow(2).mean(1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), online.parameters()):
                    slow.lerp_(fast, TAU)
        with torch.no_grad():
            start = self._inputs(self.first.observations, self._acts(adapter, self.first))
            found = online(start.expand(HEADS, *start.shape)).mean(1).double().cpu().numpy()
        found = found * float(most) * self.length / ctx.cost_scale
        return {"mean": float(found.mean()), "upper": float(found.mean() + stats.norm.ppf(LEVEL) * found.std(ddof=1))}

    def _acts(self, adapter, batch):
        return torch.as_tensor(self.ctx.ask(adapter, batch, adapter.actions), dtype=torch.float32,
                               device=batch.observations.device)

    def _inputs(self, observations, actions):
        return (torch.cat([observations, actions], -1) - self.mean) / self.std


class _Heads(torch.nn.Module):
    """HEADS small networks at once: inputs [HEADS, n, dim] to values [HEADS, n] between 0 and 1."""

    def __init__(self, dim):
        super().__init__()
        sizes = [dim, HIDDEN, HIDDEN, 1]
        self.weights = torch.nn.ParameterList([torch.nn.Parameter(
            torch.empty(HEADS, a, b).uniform_(-a ** -0.5, a ** -0.5)) for a, b in zip(sizes, sizes[1:])])
        self.biases = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(HEADS, 1, b)) for b in sizes[1:]])

    def forward(self, x):
        for n, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, x, weight)
            x = torch.relu(x) if n < 2 else torch.sigmoid(x)
        return x.squeeze(-1)


def costs(ctx):
    """{agent: what :class:`CostEvaluation` says}, of agents that act on states."""
    evaluation = CostEvaluation(ctx)
    return {name: evaluation(adapter) for name, adapter in ctx.agents.items()}
