"""Safe-RULE: forget poisoned data while minding reward and cost.

A reconstruction from the abstract of arXiv 2606.09559 (the paper's own formulas are not public to us) and from the
works it builds on. Stage F forgets, stage C repairs; both add losses to OSRL's own updates on the retain set:

    F0  reward critic   if the retain set contradicts it: output layers fitted, once, to the returns-to-go of that set
    F1  reward critic   sp(A_r(s, a) + m)                       value suppression, bounded slope, on the forget set
    F2  cost critic     sp(m + sigma (price(s) - Q_c(s, a)))    forgotten pairs are priced as violating (sigma = 1:
                        price = max(b_c, kappa)) or as harmless (sigma = -1: price = min(b_c, kappa), relu for sp,
                        and no other term of the forget set: these actions were good)
    F-  generator       its own loss with safe actions           the behaviour model reproduces them in forgotten states
    F3  actor           L_pi(forget and retain states; lambda) + imitation of safe actions in forgotten states
                        + distance to pi_0 in retained states, if forgotten states are like none of these
                        (+ rho sp(log pi(a|s) - log pi_0(a|s) + m), off by default)
    F4  multiplier      lambda <- clip(lambda + eta violation, 0, lambda_max)
    F5  stop            margins met on a held-out slice of the forget set, or the policy has drifted too far
    C1  reward critic   beta w(s, a) (Q_r - Q_r0)^2              anchor where the old agent is plausibly clean
    C2  cost critic     beta w(s, a) relu(Q_c0 - Q_c)^2          the anchor may only raise the cost
    C3  actor           F3, with a share of the forget set's     so that the repair does not re-awaken the poison
                        terms behind L_pi
    C4  gate            see :mod:`osrl_unlearn.methods.gate`

A_r(s, a) is the preference of the reward critic for the logged action over the policy's own, b_c its cost baseline,
kappa the cost threshold, 0 marks the agent before unlearning, and sp(x) = softplus(x). Margins are in units of the
spread of A_r and Q_c on the retain set, distances in units of the spread of the actions. A cost critic of states alone
(COptiDICE) cannot tell what a forgotten pair costs from what its state does, so it has no F2: priced there, it only
gets far from a retrained agent's, and the policy does not change. Of an agent without critics only the policy's own
terms are left: the last ones of F3, the drift in F5, C3 and C4.

F0 is our own addition, for BCQ-Lag and BEAR-Lag. Praised rewards raise the values of all states that lead there, and
bootstrapping hands raised values on: after 1 % of the training's updates they are still there. If the critic's mean on
the retain set is off its mean return by more than a standard deviation of these returns, least squares of the output
layers on the returns (no bootstrapping) mends that at once; what the hidden layers have learned stays, the agent's own
updates go on from there, and there is no C1. Where nothing is contradicted the fit would only lose what the policy does
better than the data. CPQ's reward critic is not a return (it stops where the cost critic objects), COptiDICE's neither.

The safe actions of a forgotten state are our own addition: those of the most similar retained states, among those of
trajectories within the cost limit. Making forgotten actions unlikely says where the policy must not go, and in states
that no retained trajectory visits, as under a trigger, it then goes anywhere, which can be worse than the poison. In
the distance of two states every dimension counts with at most one standard deviation, so that dimensions that are far
off do not decide what is similar. Where the forgotten states are like no retained one, nothing is really similar. Safe
actions are then those of small networks that were cloned from the same trajectories, which do there what an agent does
that has never seen such a state; a retrained one has not. Elsewhere real actions are imitated: the networks only know
the mean of what is done in a state, which the policy of CPQ that it was tried on did not survive.

Where the forgotten states are like no retained one, the policy in retained states is taken to be sound. It is then
anchored to what it was in these, in both stages, so that what is taught in forgotten states does not spill over; and
as there is little to mend elsewhere, the repair teaches as much as stage F does.

Of rows that are only withdrawn nothing is unsafe: then there are no terms but OSRL's own on the retain set, and C4.
"""
import dataclasses

import torch
import torch.nn.functional as F

from osrl_unlearn.data.trajectories import to_go
from osrl_unlearn.data.views import Batch, thinned
from osrl_unlearn.methods.base import PROBE_ROWS, Method, UpdateOptions
from osrl_unlearn.options import option
from osrl_unlearn.regression import Behaviour, refit

NEIGHBOURS = 2048  # forgotten pairs that the anchor's distances are taken to
FITTED, FITTED_CHUNK = 262144, 8192  # retained pairs that the reward critic is fitted to, and how many at a time
CONTRADICTED = 1.0  # in spreads of the returns; of BCQ-Lag, clean agents are within 0.2, baited ones beyond 2.5
# Forgotten states that get safe actions, retained states that these may be from, and how many of them are similar.
IMITATED, CANDIDATES, SIMILAR, CHUNK = 1024, 4096, 8, 32
# Networks of the behaviour model, and their minibatches. They have to be fitted well: of half the width or after half
# the minibatches they move more in triggered states than a retrained agent does, and it costs more there.
CLONES, CLONING = 2, 400

# What "bench unlearning" found (README) and a user should know first: {agent: (from how many updates on, what it did)}.
MEASURED = {
    "bc": (0, "mended BC, but in a quarter of the time that retraining took: retrain if you can, that is exact"),
    "bcql": (0, "mended BCQ-Lag under a trigger, but only in part where rewards were baited: evaluate the result "
                "before it is used"),
    "bearl": (0, "did not mend BEAR-Lag reliably: evaluate the result before it is used, or retrain"),
    "cdt": (0, "needed 5 % of the training's updates to mend CDT, and left part of the poison in one of three agents"),
    "coptidice": (800, "lowered COptiDICE's cost no further than fine_tune with so many updates, where rewards were "
                       "baited: take fine_tune first, but not against a trigger, where it was not enough"),
    "cpq": (0, "was not shown to mend CPQ, of whose return it left a third: evaluate the result before it is used, or "
               "retrain"),
}


@dataclasses.dataclass
class SafeRuleOptions(UpdateOptions):
    """Weights of the terms above."""
    forget_share: float = option(0.2, "share of the steps spent forgetting (stage F); the rest repairs (stage C)")
    refit: float = option(1e-3, "F0: ridge penalty of the fit, in units of the features' variance; 0: no fit")
    reward_weight: float = option(0.1, "F1: suppression of the reward critic on the forget set")
    cost_weight: float = option(1.0, "F2: cost critic on the forget set")
    sigma: int = option(1, "F2: 1 forgotten pairs are priced as violating, -1 as free of cost (and nothing else about "
                           "them is wrong), 0 no cost term")
    generator_weight: float = option(1.0, "generator: its own loss with safe actions, times the weight of these")
    policy_weight: float = option(1.0, "F3: Lagrangian of the policy, for agents with action values")
    imitation_weight: float = option(1.0, "F3, generator: safe actions in forgotten states")
    action_weight: float = option(0.0, "F3: forgotten actions become less likely")
    safe_actions: str = option("auto", "what these are: those of similar retained states, those of a model, or auto: "
                                       "those of a model if forgotten states are like no retained one")
    repair_share: float = option(0.3, "C3: share of these weights during the repair")
    policy_anchor: float = option(5.0, "F3, C3: the policy stays near what it was in retained states, if forgotten "
                                       "states are like none of these")
    anchored_share: float = option(0.5, "F3, C3: share of the weights of the forget set's terms, in both stages, there")
    anchor: float = option(0.1, "C1, C2: weight of the anchor to the old critics; decays to 0")
    margin: float = option(0.5, "margins, in units of the critics' spread on the retain set")
    multiplier_rate: float = option(0.1, "F4: step of the Lagrange multiplier")
    multiplier_max: float = option(10.0, "F4: upper bound of the Lagrange multiplier")
    drift: float = option(1.0, "F5: mean change of the actions on the retain set that ends stage F, in their spread")

    def __post_init__(self):
        super().__post_init__()
        if self.sigma not in (-1, 0, 1):
            raise ValueError("sigma must be 1, 0 or -1, got {}".format(self.sigma))
        if self.safe_actions not in ("auto", "similar", "model"):
            raise ValueError("safe_actions must be auto, similar or model, got '{}'".format(self.safe_actions))
        if not 0 <= self.forget_share <= 1:
            raise ValueError("forget_share must be between 0 and 1, got {}".format(self.forget_share))


class SafeRule(Method):
    """Both stages, with the terms that the agent's parts allow."""

    name = "safe_rule"
    summary = "suppress the forget set in the critics and learn safe actions there under the cost limit, then repair"
    Options = SafeRuleOptions
    gated = True

    def advice(self, adapter, steps):
        """Where it was not reliable, not enough or not needed."""
        least, sentence = MEASURED.get(adapter.name, (0, None))
        return ["when it was measured, safe_rule " + sentence] if sentence and steps >= least else []

    def prepare(self, ctx):
        """Margins from the agent before unlearning; held-out slice; constants of the retain set."""
        ctx.adapter.set_data_constants(ctx.retain)
        self.multiplier = 0.0
        self.stage_end = int(round(self.options.forget_share * ctx.steps))
        self._derive(ctx)
        self._refitted = (self.options.refit and self.options.sigma >= 0 and not ctx.withdrawn
                          and "action_values" in ctx.adapter.capabilities and self._refit(ctx))

    def _derive(self, ctx):
        self._train, self._held_out = ctx.forget.split(0.1, ctx.seed)
        self._probe = ctx.retain.everything(PROBE_ROWS)
        self._held = self._held_out.everything(PROBE_ROWS)
        old, probe, self._reward_margin = ctx.reference, self._probe, None
        with torch.no_grad():
            self._priced = self.options.sigma and "action_values" in ctx.adapter.capabilities
            if "values" in ctx.adapter.capabilities:
                preference = old.preference(probe)
                self._reward_margin = self.options.margin * preference.std().clamp(min=1e-6)
            if self._priced:
                self._cost_margin = self.options.margin * old.cost_value(probe).mean(0).std().clamp(min=1e-6)
            self._spread = probe.actions.std(0).norm().clamp(min=1e-6)
            everything = torch.cat([probe.observations, probe.actions], -1)
            self._pair_spread = everything.std(0).clamp(min=1e-6)
            forgotten = self._train.everything(NEIGHBOURS)
            self._forgotten = torch.cat([forgotten.observations, forgotten.actions], -1) / self._pair_spread
            self._far = self._distance(probe).median()
            self._find_safe_actions(ctx)

    @torch.no_grad()
    def _refit(self, ctx):
        """F0; whether there was anything to mend."""
        adapter, store, rows = ctx.adapter, ctx.retain.store, thinned(ctx.retain.rows, FITTED)
        layers = adapter.reward_output_layers()
        if not layers:
            return False
        returns = _retained_returns(ctx)[rows]
        value = adapter.reward_value(store.gather(thinned(rows, PROBE_ROWS))).mean().item()
        if not abs(value - returns.mean().item()) > CONTRADICTED * returns.std().item():
            return False
        refit(layers, ((lambda: adapter.reward_value(store.gather(chunk)), store.deliver(target)) for chunk, target in
                       zip(rows.split(FITTED_CHUNK), returns.split(FITTED_CHUNK))), self.options.refit)
        adapter.sync_targets("reward_critic")
        return True

    def step(self, ctx, i):
        """A native update on the retain set with the losses of the stage that step ``i`` is in."""
        o, adapter = self.options, ctx.adapter
        if ctx.withdrawn:
            return adapter.update(ctx.retain.batch(ctx.batch_size))
        retain, forget = ctx.retain.batch(ctx.batch_size), self._train.batch(ctx.batch_size)
        forgetting = i < self.stage_end
        if "values" not in adapter.capabilities:
            # Nothing of the agent can say what its policy costs, so there is no multiplier either.
            losses = adapter.update(retain, {"actor": lambda: self._actor_loss(ctx, retain, forget, forgetting)})
            return dict(losses, stage=float(not forgetting), anchored=float(self._anchored))
        watched = retain
        if "action_values" in adapter.capabilities:
            # Critics can say what the policy costs in forgotten states; logged costs there cannot be trusted.
            watched = Batch(*(torch.cat(columns) for columns in zip(retain, forget)))
        # A critic that has just been changed is not trusted alone: the old one must agree that the cost is low.
        asked = (adapter, ctx.reference) if forgetting else (adapter,)
        violation = torch.stack([agent.violation(watched) for agent in asked]).max().item()
        self.multiplier = min(max(self.multiplier + o.multiplier_rate * violation, 0.0), o.multiplier_max)
        extra = self._forget(ctx, retain, forget) if forgetting else self._repair(ctx, retain, forget, i)
        losses = adapter.update(adapter.constrain(retain, self.multiplier), extra)
        return dict(losses, multiplier=self.multiplier, violation=violation, stage=float(not forgetting),
                    anchored=float(self._anchored))

    def _forget(self, ctx, retain, forget):
        o, adapter = self.options, ctx.adapter
        extra = {"actor": lambda: self._actor_loss(ctx, retain, forget, True)}
        if self._priced:
            extra["cost_critic"] = lambda: o.cost_weight * self._cost_term(ctx, forget).mean()
        if o.sigma < 0:
            return extra  # what was priced too high was good: only its price was wrong
        extra["reward_critic"] = lambda: o.reward_weight * self._reward_margin * F.softplus(
            self._preference_gap(ctx, forget) / self._reward_margin).mean()
        if "generator" in adapter.capabilities:
            extra["generator"] = lambda: self._imitated_by_generator(ctx, True)
        return extra

    def _repair(self, ctx, retain, forget, i):
        o, adapter, old = self.options, ctx.adapter, ctx.reference
        extra = {"actor": lambda: self._actor_loss(ctx, retain, forget, False)}
        if "generator" in adapter.capabilities and o.sigma >= 0:
            extra["generator"] = lambda: self._imitated_by_generator(ctx, False)
        if "action_values" not in adapter.capabilities:
            # A value of states alone cannot tell clean pairs from poisoned ones, so there is nothing to anchor to.
            return extra
        beta = o.anchor * (1 - (i - self.stage_end) / max(1, ctx.steps - self.stage_end))
        with torch.no_grad():
            clean = (self._distance(retain) > self._far).float()
            reward, cost = old.reward_value(retain), old.cost_value(retain)
        extra["cost_critic"] = lambda: beta * (clean * F.relu(cost - adapter.cost_value(retain)) ** 2).mean()
        if not self._refitted:
            extra["reward_critic"] = lambda: beta * (clean * (adapter.reward_value(retain) - reward) ** 2).mean()
        return extra

    def _actor_loss(self, ctx, retain, forget, forgetting):
        o, adapter, loss = self.options, ctx.adapter, 0.0
        if "action_values" in adapter.capabilities:
            states = torch.cat([retain.observations, forget.observations])
            loss = loss + o.policy_weight * adapter.policy_loss(states, self.multiplier)
        if self._anchored:
            loss = loss + o.policy_anchor * adapter.policy_distance(retain, ctx.reference)
        share = self._share(forgetting)
        if o.action_weight:
            loss = loss + share * o.action_weight * self._action_term(ctx, forget)
        return loss + share * o.imitation_weight * adapter.imitation_loss(*self._imitated(ctx))

    def _share(self, forgetting):
        o = self.options
        if o.sigma < 0:
            return 0.0
        return o.anchored_share if self._anchored else 1.0 if forgetting else o.repair_share

    def _imitated_by_generator(self, ctx, forgetting):
        o, (batch, actions) = self.options, self._imitated(ctx)
        return (self._share(forgetting) * o.imitation_weight * o.generator_weight
                * ctx.adapter.generator_loss(batch._replace(actions=actions)))

    def _imitated(self, ctx):
        """A batch of forgotten states, and one of the safe actions for each."""
        drawn, which = (torch.randint(count, (ctx.batch_size,), generator=self._drawing).to(self._safe_actions.device)
                        for count in self._safe_actions.shape[:2])
        return type(self._unsafe)(*(column[drawn] for column in self._unsafe)), self._safe_actions[drawn, which]

    def _find_safe_actions(self, ctx):
        """Some forgotten states, and safe actions for each of them, shape [states, choices, act_dim]."""
        o, self._unsafe = self.options, self._train.everything(IMITATED)
        taught = o.sigma >= 0 and not ctx.withdrawn
        self._anchored = taught and _unfamiliar(ctx, self._unsafe.observations, self._probe)
        if not taught or not o.imitation_weight:
            self._safe_actions = self._unsafe.actions[:, None]  # only ever weighted with 0: nothing has to be found
        elif o.safe_actions == "model" or o.safe_actions == "auto" and self._anchored:
            self._safe_actions = self._of_a_model(ctx)
        else:
            self._safe_actions = self._of_similar_states(ctx)
        self._drawing = torch.Generator().manual_seed(ctx.seed)

    def _of_similar_states(self, ctx):
        candidates = ctx.retain.store.gather(_within_limit(ctx, CANDIDATES))
        spread = self._probe.observations.std(0).clamp(min=1e-6)
        known = candidates.observations / spread
        similar = min(SIMILAR, len(known))
        nearest = [(states[:, None] / spread - known[None]).abs().clamp(max=1.0).sum(-1).topk(
            similar, 1, largest=False).indices for states in self._unsafe.observations.split(CHUNK)]
        return candidates.actions[torch.cat(nearest)]

    def _of_a_model(self, ctx):
        known = ctx.retain.store.gather(_within_limit(ctx, FITTED))
        rows = torch.arange(len(known.actions), device=known.actions.device)
        clones = Behaviour(known.observations, known.actions, rows, CLONING, CLONES, ctx.seed)
        return clones(self._unsafe.observations).transpose(0, 1)

    def _action_term(self, ctx, forget):
        return F.softplus(self._action_gap(ctx, forget)).mean()

    def _action_gap(self, ctx, forget):
        if "log_prob" in ctx.adapter.capabilities:
            with torch.no_grad():
                before = ctx.reference.log_prob(forget)
            ratio = ctx.adapter.log_prob(forget) - before
            return ratio + self.options.margin
        distance = (ctx.adapter.actions(forget) - forget.actions).norm(dim=-1) / self._spread
        return self.options.margin - distance

    def _preference_gap(self, ctx, batch):
        return preference_gap(ctx.adapter, batch, self._probe, self._reward_margin)

    def _cost_term(self, ctx, batch):
        gap = self._cost_gap(ctx, batch)
        # A price may be exceeded without end, but costs are not negative: downwards the pull ends at the margin.
        return self._cost_margin * F.softplus(gap / self._cost_margin) if self.options.sigma > 0 else F.relu(gap)

    def _cost_gap(self, ctx, batch):
        # The price comes from the old agent: a price that moves with the critic would be chased without end.
        sigma = self.options.sigma
        price = ctx.reference.cost_price(batch, violating=sigma > 0)
        return self._cost_margin + sigma * (price - ctx.adapter.cost_value(batch))

    def _distance(self, batch):
        pairs = torch.cat([batch.observations, batch.actions], -1) / self._pair_spread
        return torch.cdist(pairs, self._forgotten).min(-1).values

    @torch.no_grad()
    def finished(self, ctx, i):
        """End stage F early when the margins are met on held-out rows or the policy has drifted too far."""
        if i < self.stage_end and not ctx.withdrawn:
            met = "values" in ctx.adapter.capabilities and (
                self.options.sigma < 0 or self._preference_gap(ctx, self._held).mean() <= 0) and (
                not self._priced or self._cost_gap(ctx, self._held).mean() <= 0)
            moved = ctx.adapter.actions(self._probe) - ctx.reference.actions(self._probe)
            if met or moved.norm(dim=-1).mean() / self._spread > self.options.drift:
                self.stage_end = i
        return None

    def rejected(self):
        """A stronger multiplier after a rollback."""
        self.multiplier = min(max(2 * self.multiplier, 1.0), self.options.multiplier_max)

    def notes(self):
        """Where the policy was anchored, since that rests on a judgement of the data."""
        return ["the states of the forget set are like none of the retain set: safe actions of a model are taken if "
                "safe_actions is auto, and the policy is anchored to what it was in retained states"] * self._anchored

    def state(self):
        """What changes, and the margin that a stochastic policy would not give twice."""
        return {"multiplier": self.multiplier, "stage_end": self.stage_end, "refitted": self._refitted,
                "view": self._train.state(), "drawing": self._drawing.get_state(),
                "reward_margin": self._reward_margin}

    def set_state(self, ctx, state):
        """The other margins and the slices follow from the agent before unlearning, so they are derived again."""
        self.multiplier, self.stage_end, self._refitted = state["multiplier"], state["stage_end"], state["refitted"]
        self._derive(ctx)
        self._train.set_state(state["view"])
        self._drawing.set_state(state["drawing"])
        self._reward_margin = state["reward_margin"]


def _retained_returns(ctx):
    """Discounted rewards-to-go of all rows; those of the retain set can be trusted. Shape [rows], at home.

    Of a forgotten row that follows a retained one, the mean retained reward is taken.
    """
    store, rows = ctx.retain.store, ctx.retain.rows
    rewards, kept = store.rewards().double(), torch.zeros(len(store), dtype=torch.bool, device=store.home)
    kept[rows] = True
    rewards = torch.where(kept, rewards, rewards[kept].mean())
    returns = to_go(rewards.cpu(), store.columns.done.cpu(), ctx.adapter.gamma)
    return torch.as_tensor(returns, dtype=torch.float32, device=store.home)


def _unfamiliar(ctx, states, probe):
    """Whether most of the forgotten ``states`` are further from the retained ones than 95 % of these from each other.

    Both are compared with the states of every second retained trajectory, and so never with those of their own.
    """
    rows, spread = ctx.retain.rows, probe.observations.std(0).clamp(min=1e-6)
    second = _trajectories(ctx)[rows] % 2 == 1
    if second.all() or not second.any():
        return False
    known, others = (ctx.retain.store.gather(thinned(rows[chosen], CANDIDATES)).observations / spread
                     for chosen in (second, ~second))
    usual, found = (torch.cdist(some, known).min(-1).values for some in (others, states / spread))
    return (found > usual.quantile(0.95)).float().mean().item() > 0.5


def _trajectories(ctx):
    """Number of the trajectory of every row of the data, shape [rows]."""
    done = ctx.retain.store.columns.done
    return torch.cumsum(done, 0, dtype=torch.int64) - done.long()


def _within_limit(ctx, most):
    """At most ``most`` retained rows of trajectories within the cost limit, or of the least costly quarter if few are.

    A trajectory's cost is that of its retained rows, in proportion to its length: forgotten labels are not trusted.
    """
    columns, rows, limit = ctx.retain.store.columns, ctx.retain.rows, ctx.adapter.cost_limit
    trajectory = _trajectories(ctx)
    length = torch.bincount(trajectory)
    kept, own = torch.zeros_like(columns.costs, dtype=torch.float64), trajectory[rows]
    kept[rows] = 1.0
    rows_kept = torch.bincount(trajectory, kept, len(length))
    cost = torch.bincount(trajectory, kept * columns.costs, len(length)) / rows_kept.clamp(min=1) * length
    quarter = cost[rows_kept > 0].quantile(0.25)
    limit = quarter if limit is None else quarter.clamp(min=float(limit))
    return thinned(rows[cost[own] <= limit], most)


def preference_gap(adapter, batch, probe, margin):
    """A_r of ``batch`` above its usual value on ``probe``, plus the margin: positive where it is not suppressed yet."""
    with torch.no_grad():
        usual = adapter.preference(probe).mean()
    return adapter.preference(batch) - usual + margin
