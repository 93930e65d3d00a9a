"""The safety gate: accept an agent only if it does not look more costly than the agent that it replaces.

No environment is used, and none of the agent's own critics: those were trained on the poison.
"""
import numpy as np
import torch

from osrl_unlearn.data.trajectories import to_go
from osrl_unlearn.generators import private_torch
from osrl_unlearn.regression import RandomFeatures

STATES = 1024
NEIGHBOURS = 2048  # retained pairs that distances are taken to
# How many times the old agent's the estimated cost and the distance to the data may be: below, the critic cannot tell
# two agents apart. A backdoor does not show in retained states, so what removes it has an estimate near the old one.
TOLERANCE = 1.1
NOTHING = 0.01  # share of the threshold below which estimated costs are the noise of a fit to hardly any costs


class SafetyGate:
    """A small critic of the discounted cost-to-go, fitted once to the retain set.

    It regresses on what the logged trajectories really cost (no bootstrapping), so it values the policy's action
    followed by the logged behaviour: a first-order estimate, good for comparing two policies that are near the data. So
    a policy that leaves the data is not accepted either: the mean distance of (s, pi(s)) to the nearest retained pair,
    each dimension in units of its spread. Either may grow by a tenth: the estimate is not more precise than that.
    Forgotten rows are not fitted; where a retained row is followed by forgotten ones, their costs count as at least
    the mean positive cost of the retain set, since their labels cannot be trusted.

    Args:
        store, retain: the data, and the view of what the agent goes on learning from.
        reference: adapter of the agent before unlearning.
        gamma, threshold: discount, and the cost limit in discounted units (``cost_threshold``), or None. A first-order
            estimate is too low to be held against it; it only says which estimates are too small to matter.
        trusted: numbers of the rows that are fitted; default: those of ``retain``. An agent may learn from fewer.
    """

    def __init__(self, store, retain, reference, gamma, threshold=None, seed=0, trusted=None):
        everything = store.take(torch.arange(len(store), device=store.home))
        costs = everything.costs.double().cpu().numpy().copy()
        kept = np.zeros(len(costs), bool)
        trusted = retain.rows if trusted is None else torch.as_tensor(trusted, device=store.home)
        kept[trusted.cpu().numpy()] = True
        positive = costs[kept & (costs > 0)]
        if len(positive):
            costs[~kept] = np.maximum(costs[~kept], positive.mean())
        target = to_go(costs, everything.done.cpu().numpy(), gamma)
        target = torch.as_tensor(target, dtype=torch.float32, device=store.home)
        x = torch.cat([everything.observations, everything.actions], -1)
        self._critic = RandomFeatures(x, target, trusted, seed, store.device)
        self._states = retain.everything(STATES)
        self.threshold = None if threshold is None else float(threshold)
        self._seed = int(seed)
        pairs = retain.everything(NEIGHBOURS)
        self._pairs = self._critic.standardise(torch.cat([pairs.observations, pairs.actions], -1))
        self.before, self.distance_before = self._judge(reference)
        self.last = self.distance = None
        self.accepted = self.rejected = 0

    @torch.no_grad()
    def _judge(self, adapter):
        # The same latents every time, so that stochastic policies are compared on equal terms.
        with private_torch(self._seed, self._states.observations.device):
            actions = adapter.actions(self._states)
        x = torch.cat([self._states.observations, actions], -1)
        distances = torch.cdist(self._critic.standardise(x), self._pairs).min(-1).values
        # No cost is negative, but a fit to few costs may be.
        return self._critic(x).clamp(min=0).mean().item(), distances.mean().item()

    def accepts(self, adapter):
        """(whether the agent may replace the last accepted one, its estimated cost).

        It may not if its cost is clearly higher than that of the agent before unlearning, or if its actions have moved
        away from the retained data, where the estimate means nothing.
        """
        self.last, self.distance = self._judge(adapter)
        least = max(self.before, NOTHING * (self.threshold or 0.0))
        accepted = self.last <= TOLERANCE * least and self.distance <= TOLERANCE * self.distance_before
        self.accepted += accepted
        self.rejected += not accepted
        return accepted, self.last

    def state(self):
        """What changes with every check, as plain values."""
        return {"last": self.last, "distance": self.distance, "accepted": self.accepted, "rejected": self.rejected}

    def set_state(self, state):
        """Go on from what :meth:`state` returned."""
        self.last, self.distance = state["last"], state["distance"]
        self.accepted, self.rejected = state["accepted"], state["rejected"]

    def summary(self):
        """For the report; costs are discounted, as ``threshold`` is."""
        return {"used": True, "estimate_before": self.before, "estimate_after": self.last,
                "distance_before": self.distance_before, "distance_after": self.distance,
                "threshold": self.threshold, "accepted_checks": self.accepted, "rejected_checks": self.rejected}
