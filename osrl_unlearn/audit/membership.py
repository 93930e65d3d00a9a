"""Membership inference: does the agent still treat forgotten trajectories as data that it was trained on?"""
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import linregress, rankdata

from osrl_unlearn.audit.base import AGAINST, Metric, NotComputed, Result

RESAMPLES = 2000
LOW = (0.01, 0.05)  # false positive rates at which the true positive rate is reported
BOOTSTRAP = "95 % percentile bootstrap interval over trajectories, {:,} resamples".format(RESAMPLES)


def scores(ctx, adapter, where):
    """{attack: score of each trajectory of a :class:`~osrl_unlearn.audit.base.Set` [trajectories]}; higher: a member.

    "action_error": minus the squared distance of the policy's actions to the logged ones. "likelihood": the density of
    the logged actions. "reconstruction": minus the squared error with which the agent's generator finds the logged
    actions again.
    """
    found = {"action_error": lambda b: -(adapter.actions(b) - b.actions).pow(2).sum(-1)}
    if "log_prob" in adapter.capabilities:
        found["likelihood"] = adapter.log_prob
    if "generator" in adapter.capabilities:
        found["reconstruction"] = lambda b: -adapter.generator_error(b)
    return {name: where.per_trajectory(ctx.ask(adapter, where.batch, question)) for name, question in found.items()}


def values(ctx, adapter, sets):
    """{"reward_value", "cost_value": the critics on each of ``sets`` (lists [rows])}, of agents that have critics.

    Critics of different agents differ in offset and scale, so each is mapped linearly onto what the trajectories of the
    last set really brought or cost from there on, by least squares.
    """
    found = {}
    for name in ("reward_value", "cost_value") if "values" in adapter.capabilities else ():
        said = [ctx.ask(adapter, s.batch, lambda b: getattr(adapter, name)(b).mean(0)) for s in sets]  # noqa: B023
        line = linregress(said[-1], to_go(sets[-1], name)) if np.ptp(said[-1]) else None
        found[name] = [v if line is None else line.slope * v + line.intercept for v in said]
    return found


def to_go(where, name):
    """What the critic called ``name`` is to say of a Set. Shape [rows]."""
    return where.rewards_to_go if name == "reward_value" else where.costs_to_go


def auroc(members, others):
    """Area under the ROC curve of scores [n] against scores [m]: the share of pairs in the right order, ties half."""
    members, others = np.asarray(members), np.asarray(others)
    n, m = members.shape[-1], others.shape[-1]
    ranks = rankdata(np.concatenate([members, others], -1), axis=-1)
    return (ranks[..., :n].sum(-1) - n * (n + 1) / 2) / (n * m)


def threshold(others, rate):
    """The lowest of ``others`` [m] that at most ``rate`` of them exceed: the highest where m is below 1 / rate."""
    others = np.sort(np.asarray(others), -1)
    return others[..., -1 - int(np.floor(rate * others.shape[-1]))]


def true_positives(members, others, rate):
    """Share of ``members`` [n] above the :func:`threshold`."""
    return (np.asarray(members) > threshold(others, rate)[..., None]).mean(-1)


def separation(members, others, seed=0):
    """AUROC and true positive rates of scores, each {"mean", "ci95", "n"}; percentile bootstrap over trajectories.

    ``others`` of shape [agents, m] are pooled: the same trajectories, drawn together, in several agents.
    """
    rng = np.random.default_rng(seed)
    a = np.asarray(members)[rng.integers(len(members), size=(RESAMPLES, len(members)))]
    others = np.atleast_2d(others)
    drawn = rng.integers(others.shape[-1], size=(RESAMPLES, others.shape[-1]))
    b, others = np.concatenate([row[drawn] for row in others], -1), others.ravel()
    figures = {"auroc": auroc}
    figures.update({"tpr_at_fpr_{:g}".format(rate): lambda x, y, rate=rate: true_positives(x, y, rate)
                    for rate in LOW})
    return {name: {"mean": float(figure(np.asarray(members), others)),
                   "ci95": [float(v) for v in np.percentile(figure(a, b), [2.5, 97.5])], "n": len(members)}
            for name, figure in figures.items()}


def matched(forget, others):
    """Positions of the trajectories of the Set ``others`` that are most like those of ``forget``, each used once.

    Likeness is the distance of the mean states and actions, each dimension in units of its spread in ``others``; the
    sum over all pairs is the smallest possible. All are returned if there are not more than in ``forget``.
    """
    if len(others.ids) <= len(forget.ids):
        return np.arange(len(others.ids))
    means = [np.stack([s.per_trajectory(column) for part in (s.batch.observations, s.batch.actions)
                       for column in part.double().cpu().numpy().T], 1) for s in (forget, others)]
    spread = np.maximum(means[1].std(0), 1e-9)
    return np.sort(linear_sum_assignment(cdist(means[0] / spread, means[1] / spread))[1])


class Membership(Metric):
    """AUROC of forgotten trajectories against ones that are like them but are not to be forgotten.

    With references, a trajectory's score is the audited agent's minus the mean of the references', for which forgotten
    trajectories are no members: how hard a trajectory is cancels out, and retained trajectories show what the
    difference is by chance. The value attacks take how far the critic is moved towards the trajectory's labels.
    With a holdout, scores are also compared as they are. Each of several references is put in the audited agent's place
    to show how far from 0.5 an agent is that never saw the forget set ("calibration": the farthest). Without that the
    value attacks do not count: critics that start differently differ most where they were not trained, which is on the
    forget set.
    The agent before unlearning in the audited one's place shows whether an attack can see membership here ("power").
    """

    name = "membership"
    summary = "do forgotten trajectories still look like members (AUROC, strongest of several attacks)"
    needs = frozenset({"non_members"})
    tests = {"auroc": BOOTSTRAP + "; the area itself is that of the Mann-Whitney U", "tpr_at_fpr": BOOTSTRAP,
             "strongest": "the attack whose AUROC is farthest from 0.5, no interval"}

    def compute(self, ctx):
        """{"attacks": {attack: separation}, "strongest": name, "calibration", "power": as "attacks", or absent}."""
        forget, other = ctx.sets["forget"], ctx.sets["retain" if ctx.holdout is None else "holdout"]
        like = matched(forget, other)
        if min(len(forget.ids), len(like)) < 2:
            raise NotComputed("at least two trajectories to forget and two others are needed")
        agents = [adapter for name, adapter in ctx.agents.items() if name != "original"]

        def ask(agent):
            return [scores(ctx, agent, s) for s in (forget, other)], values(ctx, agent, (forget, other))

        def against(one, references):
            pairs = differences(one, references, (forget, other)) if references else {}
            if ctx.holdout is not None:
                pairs.update({name: [side[name] for side in one[0]] for name in one[0][0]})
            return pairs

        def separations(pairs):
            return {name: separation(a, b[like], seed=ctx.seed) for name, (a, b) in pairs.items()}

        asked = [ask(agent) for agent in agents]
        pairs = against(asked[0], asked[1:])
        attacks = separations(pairs)
        value = {"attacks": attacks}
        per = {name: dict(zip(map(str, forget.ids.tolist()), pair[0].tolist())) for name, pair in pairs.items()}
        found = [separations(against(asked[n], asked[1:n] + asked[n + 1:])) for n in range(1, len(asked))]
        if found and found[0]:
            value["calibration"] = {name: max((figures[name] for figures in found),
                                              key=lambda figures: abs(figures["auroc"]["mean"] - 0.5))
                                    for name in found[0]}
        said = dict(zip(("audited", "reference"), asked))
        if ctx.original is not None:
            said["original"] = ask(ctx.original)
            value["power"] = separations(against(said["original"], asked[1:]))
        value["strongest"] = max((name for name in attacks if len(agents) > 2 or "value" not in name),
                                 key=lambda name: abs(attacks[name]["auroc"]["mean"] - 0.5))
        shown = {name: {critic: {"forget": forget.per_trajectory(rows[0]).tolist(),
                                 "others": other.per_trajectory(rows[1])[like].tolist()}
                        for critic, rows in answers[1].items()} for name, answers in said.items()}
        return Result(value, per, {"against": "held-out" if ctx.holdout is not None else "retained",
                                   "trajectories": {"forget": len(forget.ids), "others": len(like)}, "values": shown})


def differences(agent, references, sets):
    """{attack: [scores of the trajectories of each of ``sets``]} of an agent against ``references``."""
    found = {name + AGAINST: [agent[0][n][name] - np.mean([r[0][n][name] for r in references], 0)
                              for n in range(len(sets))] for name in agent[0][0]}
    for name in agent[1]:
        found[name + AGAINST] = []
        for n, s in enumerate(sets):
            theirs = np.mean([r[1][name][n] for r in references], 0)
            found[name + AGAINST].append(s.per_trajectory(
                (agent[1][name][n] - theirs) * np.sign(to_go(s, name) - theirs)))
    return found
