"""A small constrained MDP in which every quantity that unlearning should change can be computed exactly.

A ring road of six places. Going fast earns more than going slowly and much more than waiting, and is dangerous (cost 1)
in two of the places, so the best policy under a cost limit goes fast where that is free and seldom elsewhere. The
optimal safe policy is a linear programme over discounted occupancy measures (Altman, Constrained Markov Decision
Processes, 1999, ch. 3), values are the solution of Bellman's linear equations, and both can be had for the true model
and for the empirical model of any set of logged transitions: of the poisoned data (what a perfect learner would believe
after training on them) and of the retain set (what it would believe had it never seen the poison).
"""
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog

from osrl_unlearn.adapters.action_values import ActionValueAdapter
from osrl_unlearn.adapters.base import Part
from osrl_unlearn.data.poison import poison
from osrl_unlearn.data.views import TransitionStore, forget_and_retain

PLACES, DANGEROUS = 6, (2, 3)
SLOW, FAST, WAIT = range(3)
LIMIT = 0.6   # of the discounted cost from the start
FLOOR = 0.03  # least probability of any action: log-probabilities stay finite
# Observations: a unit vector per place, or features that overlap, so that learning about a place moves its neighbours.
FEATURES = {
    "tabular": np.eye(PLACES, dtype=np.float32),
    "linear": (np.eye(PLACES) + 0.3 * np.roll(np.eye(PLACES), 1, 1)
               + 0.3 * np.roll(np.eye(PLACES), -1, 1)).astype(np.float32)}
# Our own attacks. As a share of single transitions: about three quarters of the fast rows of some places.
RATES = {"cost_hide": 0.1, "cost_inflate": 0.2, "reward_bait": 0.1}


class CMDP(NamedTuple):
    """P(s'|s, a) [states, actions, states]; what is missing to 1 ends the episode. Tables [states, actions]."""
    transitions: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    start: np.ndarray  # [states]
    gamma: float = 0.95


class Solution(NamedTuple):
    """Optimal policy [states, actions] and its exact values; ``multiplier`` is the dual of the cost limit."""
    policy: np.ndarray
    multiplier: float
    reward_q: np.ndarray
    cost_q: np.ndarray


def ring_road():
    """The true model: from each place on to the next or not; each step ends the episode with probability 0.05."""
    transitions = np.zeros((PLACES, 3, PLACES))
    for action, moves in ((SLOW, 0.7), (FAST, 0.9), (WAIT, 0.1)):
        for place in range(PLACES):
            transitions[place, action, place] = 0.95 * (1 - moves)
            transitions[place, action, (place + 1) % PLACES] = 0.95 * moves
    rewards = np.tile([0.4, 1.0, 0.1], (PLACES, 1))
    costs = np.zeros((PLACES, 3))
    costs[list(DANGEROUS), FAST] = 1.0
    return CMDP(transitions, rewards, costs, np.eye(PLACES)[0])


def action_values(mdp, policy, signal):
    """Q of ``policy`` for the table ``signal``: solves Q = signal + gamma P (pi Q). Shape [states, actions]."""
    n = policy.size
    successors = np.einsum("sat,tb->satb", mdp.transitions, policy).reshape(n, n)
    return np.linalg.solve(np.eye(n) - mdp.gamma * successors, signal.reshape(n)).reshape(policy.shape)


def discounted(mdp, policy, signal):
    """Expected discounted sum of ``signal`` from the start: J = E_start E_pi Q."""
    return float(mdp.start @ (policy * action_values(mdp, policy, signal)).sum(1))


def solve(mdp, limit):
    """max sum rho r  s.t.  sum rho c <= limit, and rho a discounted occupancy measure; pi = rho / sum_a rho.

    Every action keeps at least the probability FLOOR, which is linear in rho too.
    """
    states, actions = mdp.rewards.shape
    owner = np.repeat(np.eye(states), actions, axis=1)  # [states, pairs]
    flow = owner - mdp.gamma * mdp.transitions.reshape(-1, states).T
    floors = FLOOR * owner.T @ owner - np.eye(states * actions)
    found = linprog(-mdp.rewards.ravel(), A_ub=np.vstack([mdp.costs.ravel(), floors]),
                    b_ub=np.append(limit, np.zeros(states * actions)), A_eq=flow, b_eq=mdp.start, method="highs")
    assert found.success, found.message
    occupancy = found.x.reshape(states, actions)
    policy = occupancy / occupancy.sum(1, keepdims=True)
    return Solution(policy, -found.ineqlin.marginals[0], action_values(mdp, policy, mdp.rewards),
                    action_values(mdp, policy, mdp.costs))


def log_data(mdp, features, behaviour, episodes, seed=0):
    """Episodes of ``behaviour`` as DSRL's columns: observations are rows of ``features``, actions one-hot."""
    rng, rows = np.random.default_rng(seed), []
    start, choices, onward = mdp.start.cumsum(), behaviour.cumsum(1), mdp.transitions.cumsum(2)
    for _ in range(episodes):
        place, over = start.searchsorted(rng.random()), False
        while not over:
            action = choices[place].searchsorted(rng.random() * choices[place, -1])
            following = onward[place, action].searchsorted(rng.random())
            over = following == len(start)
            rows.append((place, action, 0 if over else following, over))
            place = following
    place, action, following, over = np.array(rows).T
    return {"observations": features[place], "next_observations": features[following],
            "actions": np.eye(behaviour.shape[1], dtype=np.float32)[action],
            "rewards": mdp.rewards[place, action].astype(np.float32),
            "costs": mdp.costs[place, action].astype(np.float32),
            "terminals": over.astype(bool), "timeouts": np.zeros(len(over), bool)}


def places(observations, features):
    """Which row of ``features`` each observation is."""
    return np.argmin(((np.asarray(observations)[:, None] - features[None]) ** 2).sum(-1), 1)


def pair_counts(data, features, rows=slice(None)):
    """How often each (state, action) occurs. Shape [states, actions]."""
    counts = np.zeros((len(features), data["actions"].shape[1]))
    np.add.at(counts, (places(data["observations"][rows], features), data["actions"][rows].argmax(1)), 1)
    return counts


def empirical(data, features, start, gamma, rows=slice(None)):
    """The maximum-likelihood model of logged rows: mean labels and transition frequencies of every pair."""
    place, action = places(data["observations"][rows], features), data["actions"][rows].argmax(1)
    following, on = places(data["next_observations"][rows], features), ~data["terminals"][rows]
    counts = pair_counts(data, features, rows)
    assert counts.min() > 0, "the LP needs every pair in the data"
    sums = np.zeros(counts.shape + (len(features),)), np.zeros_like(counts), np.zeros_like(counts)
    np.add.at(sums[0], (place[on], action[on], following[on]), 1)
    for table, column in zip(sums[1:], ("rewards", "costs")):
        np.add.at(table, (place, action), data[column][rows])
    return CMDP(sums[0] / counts[..., None], sums[1] / counts, sums[2] / counts, start, gamma)


class Critic(torch.nn.Linear):
    """Q(s, a) = x(s)' W a, as a layer of one output on the products of all features and actions."""

    def __init__(self, features, actions):
        super().__init__(features * actions, 1, bias=False)

    def of(self, observations, actions):
        """Q(s, a). Shape [n]."""
        return self((actions[:, :, None] * observations[:, None, :]).flatten(1)).squeeze(-1)


class TableModel(torch.nn.Module):
    """Critics x(s)' W a, policy and behaviour model softmax(x(s)' W): tabular if the x(s) are unit vectors.

    An action is a vector of probabilities, a logged one is one-hot; so Q(s, pi(s)) is exactly E_pi Q(s, a).
    """

    def __init__(self, features, actions, rate):
        super().__init__()
        for name in ("actor", "critic", "cost_critic", "behaviour"):
            size = features.shape[1], actions
            layer = Critic(*size) if "critic" in name else torch.nn.Linear(*size, bias=False)
            setattr(self, name, layer)
            setattr(self, name + "_optim", torch.optim.SGD(layer.parameters(), rate))


class TableTrainer:
    """The agent's own update: expected TD(0) of both critics under the policy; the behaviour model fits frequencies.

    The policy has no update of its own, so that whatever it does is the doing of the unlearning method.
    """

    logger = None

    def __init__(self, model, gamma, learns=True):
        self.model, self.gamma, self.learns = model, gamma, learns

    def train_one_step(self, observations, next_observations, actions, rewards, costs, done):
        """One step of gradient descent of every part; only the added losses act where ``learns`` is False."""
        model, losses = self.model, {}
        with torch.no_grad():
            following = torch.softmax(model.actor(next_observations), -1)
        for name, labels in (("critic", rewards), ("cost_critic", costs)):
            critic = getattr(model, name)
            with torch.no_grad():
                target = labels + self.gamma * (1 - done) * critic.of(next_observations, following)
            losses[name] = (critic.of(observations, actions) - target).pow(2).mean() / 2
        losses["behaviour"] = (torch.softmax(model.behaviour(observations), -1) - actions).pow(2).mean()
        losses["actor"] = 0 * model.actor(observations).sum()
        for name, loss in losses.items():
            optimizer = getattr(model, name + "_optim")
            optimizer.zero_grad()
            (self.learns * loss).backward()
            optimizer.step()
        self.logger.store(**{name: loss.item() for name, loss in losses.items()})

    def rollout(self):
        """Never called: everything is known exactly."""
        raise NotImplementedError("solve the CMDP instead")


class TableAdapter(ActionValueAdapter):
    """The agent behind the interface that Safe-RULE sees. ``learns`` switches the agent's own updates off."""

    name = "table"
    trainer_class = "cmdp:TableTrainer"
    capabilities = frozenset({"values", "action_values", "log_prob", "generator"})
    attributes = ()
    parts = {"actor": Part("actor", "actor_optim"), "reward_critic": Part("critic", "critic_optim"),
             "cost_critic": Part("cost_critic", "cost_critic_optim"), "generator": Part("behaviour", "behaviour_optim")}

    def __init__(self, trainer, features, threshold):
        super().__init__(trainer)
        self.features, self._threshold = features, threshold

    @classmethod
    def at(cls, features, solution, behaviour, threshold, gamma, rate=0.5, learns=True):
        """An agent whose every table is that of an exact ``solution`` (policy, Q_r, Q_c) and of ``behaviour``."""
        model = TableModel(features, solution.policy.shape[1], rate)
        agent = cls(TableTrainer(model, gamma, learns), features, threshold)
        for name, table in (("actor", np.log(solution.policy)), ("critic", solution.reward_q),
                            ("cost_critic", solution.cost_q), ("behaviour", np.log(behaviour))):
            agent.set_table(name, table)
        return agent

    def set_table(self, name, table):
        """Let the network ``name`` say ``table`` [states, actions] exactly."""
        weights = np.linalg.solve(self.features.astype(np.float64), table)
        with torch.no_grad():
            weight = getattr(self.model, name).weight
            weight.copy_(torch.as_tensor(weights.T, dtype=torch.float32).reshape(weight.shape))

    def table(self, name):
        """What the network ``name`` says; probabilities for policy and behaviour model. Shape [states, actions]."""
        with torch.no_grad():
            features = torch.as_tensor(self.features)
            out = (features @ getattr(self.model, name).weight.view(-1, features.shape[1]).T).double()
        return (torch.softmax(out, -1) if name in ("actor", "behaviour") else out).numpy()

    def reset_hidden(self):
        """Nothing hidden."""

    @property
    def cost_threshold(self):
        """The limit of the discounted cost."""
        return self._threshold

    @property
    def cost_limit(self):
        """The same: episodes end with probability 1 - gamma, so their costs need no discount."""
        return self._threshold

    def policy(self, observations):
        """The probabilities of the actions."""
        return torch.softmax(self.model.actor(observations), -1)

    def log_prob(self, batch):
        """log pi(a|s) of logged actions. Shape [n]."""
        return (torch.log_softmax(self.model.actor(batch.observations), -1) * batch.actions).sum(-1)

    def generator_error(self, batch):
        """Squared error of the probabilities of the behaviour model. Shape [n]."""
        return (torch.softmax(self.model.behaviour(batch.observations), -1) - batch.actions).pow(2).mean(-1)

    def generator_loss(self, batch):
        """That error, over the batch."""
        return self.generator_error(batch).mean()

    def reward_output_layers(self):
        """All that the critic consists of."""
        return [self.model.critic]

    def reward_heads(self, observations, actions):
        """Q_r. Shape [1, n]."""
        return self.model.critic.of(observations, actions)[None]

    def cost_heads(self, observations, actions):
        """Q_c. Shape [1, n]."""
        return self.model.cost_critic.of(observations, actions)[None]


class Scenario:
    """Logged data, one attack on them, and the exact solutions with the poison and without it.

    Attributes:
        data, rows: the poisoned columns, and which rows are the forget set.
        poisoned, retrained: a Solution each, of the empirical model of all rows and of the retain set.
        behaviour, retained_behaviour: how often each action is taken in each place, in all rows and in the retain set.
        forgotten, retained: share of each pair in the forget set and in the retain set.
        clean: share of each pair of the retain set that is not in the forget set.

    All tables have shape [states, actions].
    """

    def __init__(self, attack, features, unit="transition"):
        self.mdp, self.features = ring_road(), features
        logged = log_data(self.mdp, features, np.tile([0.4, 0.4, 0.2], (PLACES, 1)), 300)
        result = poison(logged, attack, rate=RATES[attack], unit=unit)
        self.data, self.rows = result.data, result.manifest.row_numbers(result.data, result.ids)
        kept = np.ones(len(self.data["rewards"]), bool)
        kept[self.rows] = False
        model = lambda rows: empirical(self.data, features, self.mdp.start, self.mdp.gamma, rows)  # noqa: E731
        self.retain_model = model(kept)
        self.poisoned, self.retrained = solve(model(slice(None)), LIMIT), solve(self.retain_model, LIMIT)
        everything, retained, forgotten = (pair_counts(self.data, features, rows)
                                           for rows in (slice(None), kept, self.rows))
        self.behaviour, self.retained_behaviour = (n / n.sum(1, keepdims=True) for n in (everything, retained))
        clean = np.where(forgotten > 0, 0, retained)
        self.forgotten, self.retained, self.clean = (n / max(n.sum(), 1) for n in (forgotten, retained, clean))

    def views(self):
        """Fresh views (forget set, retain set)."""
        return forget_and_retain(TransitionStore(self.data), self.rows)

    def agent(self, solution=None, threshold=LIMIT, learns=True):
        """An agent at ``solution`` (default: the poisoned one); ``learns`` switches its own updates off."""
        return TableAdapter.at(self.features, solution or self.poisoned, self.behaviour, threshold, self.mdp.gamma,
                               learns=learns)

    def true_cost(self, agent):
        """Exact discounted cost of the agent's policy in the true model."""
        return discounted(self.mdp, agent.table("actor"), self.mdp.costs)

    def true_return(self, agent):
        """Exact discounted return of the agent's policy in the true model."""
        return discounted(self.mdp, agent.table("actor"), self.mdp.rewards)
