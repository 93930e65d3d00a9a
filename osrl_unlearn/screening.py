"""Is the request to forget itself an attack? What would disappear with the rows that are to be forgotten.

A deletion can harm: it can remove the honest rows that keep a backdoor asleep (camouflage; UBA-ORL, ICDM 2026), or the
evidence of how to be safe and useful at once. No environment is used, and none of the agent's critics.
"""
import numpy as np
import torch

from osrl_unlearn.data.trajectories import TrajectoryIndex, to_go
from osrl_unlearn.evaluate.statistics import summary
from osrl_unlearn.regression import ToGo

STEPS, HEADS = 600, 1
PAIRS = 4096        # forgotten transitions that are looked at
CHUNK = 1 << 16     # forgotten transitions that are looked at at a time, where it is all of them
COST_FALLS = 0.25   # of the mean cost-to-go: more than equally large random deletions and the noise of the fit do
SAFE_LOST = 0.5     # share of the safe evidence near the cost limit
# How much more than a trajectory's own labels say, in units of the mean cost-to-go. Of the safe trajectories of two
# clean datasets the last twentieth is above 0.7 to 0.9, of those with hidden costs all but the first above 1.4.
DENIED = 1.0


def screen(data, forget, *, cost_limit, gamma=0.99, ids=None, seed=0):
    """Look at a request to forget before anything is changed.

    Args:
        data: DSRL's columns; forget: row numbers; cost_limit: of an episode, in the unit of ``data["costs"]``.

    Returns:
        {"cost_evidence": {"fall": by how much forgetting lowers the estimated cost-to-go of the forgotten transitions,
        as a share of the mean cost-to-go of the data, "ci95": over trajectories, "control": the same for an equally
        large random set of other trajectories, None if they are too few}, "safe_evidence": the share of the safe and
        rewarding transitions that would go: those of trajectories within the cost limit that use half of it or more,
        or whose return is in the upper half; "warnings": sentences}. What is to be forgotten is no evidence of safety
        where what stays says that such behaviour costs much more than its own labels do: hidden costs look safe.

    The fall is the difference between a regression on all rows and one on the rows that stay, both evaluated at the
    forgotten rows. It is high when what is to be forgotten says "costly" and what stays says "harmless" about the same
    behaviour. Which of the two is right, the data cannot say.
    """
    index = TrajectoryIndex(data, ids)
    mask = np.zeros(index.rows, bool)
    mask[forget] = True
    owner = np.repeat(np.arange(len(index.starts)), index.stops - index.starts)
    x = torch.as_tensor(np.concatenate([data["observations"], data["actions"]], 1).astype(np.float32))
    done = np.logical_or(data["terminals"], data["timeouts"])
    # Within a trajectory costs are discounted to its end, whatever becomes of its rows.
    target = torch.as_tensor(to_go(data["costs"], done, gamma), dtype=torch.float32)
    everything = ToGo(x, target, torch.arange(index.rows), STEPS, HEADS, seed)
    scale = max(float(target.mean()), 1e-6)

    def without(rows_gone):
        kept = np.ones(index.rows, bool)
        kept[rows_gone] = False
        return ToGo(x, target, torch.as_tensor(np.flatnonzero(kept)), STEPS, HEADS, seed)

    def falls(rows_gone, staying):
        rows = rows_gone[np.linspace(0, len(rows_gone) - 1, min(PAIRS, len(rows_gone))).astype(np.int64)]
        fall = (everything(x[rows]).mean(0) - staying(x[rows]).mean(0)).numpy() / scale
        groups = np.unique(owner[rows], return_inverse=True)[1]
        return np.bincount(groups, fall) / np.bincount(groups), fall.mean()

    gone = np.flatnonzero(mask)
    staying = without(gone)
    per_trajectory, evidence = falls(gone, staying)
    rng = np.random.default_rng(seed)
    others = rng.permutation(np.setdiff1d(np.arange(len(index.starts)), owner[mask]))
    size = np.cumsum((index.stops - index.starts)[others])
    others = others[:int(np.searchsorted(size, mask.sum())) + 1]
    possible = mask.sum() < size[-1:].sum()
    others = np.flatnonzero(np.isin(owner, others))
    control = falls(others, without(others))[1] if possible else None
    ci = summary(per_trajectory)["ci95"]
    units = index.units("trajectory")
    expected = torch.cat([staying(x[rows]).mean(0) for rows in torch.as_tensor(gone).split(CHUNK)])
    more = np.bincount(owner[gone], (expected - target[gone]).numpy(), len(units.costs))
    denied = more > DENIED * scale * np.bincount(owner[gone], minlength=len(units.costs))
    safe = _safe_evidence(units, mask, owner, cost_limit, denied)
    out = {"cost_evidence": {"fall": float(evidence), "ci95": ci,
                             "control": None if control is None else float(control)},
           "safe_evidence": safe, "warnings": []}
    if ci[0] > COST_FALLS and evidence > 2 * abs(control or 0):
        out["warnings"].append(
            "what is to be forgotten says that its behaviour is costly, and what stays says that it is not: without "
            "these rows its estimated cost falls by {:.0%} of the mean (95 % interval {:.0%} to {:.0%}; random "
            "rows: {}). If their cost labels are honest, forgetting them makes the agent less safe; the rest may "
            "hold a backdoor that they keep asleep".format(
                evidence, ci[0], ci[1], "not measured" if control is None else "{:.0%}".format(control)))
    if safe is not None and safe > SAFE_LOST:
        out["warnings"].append(
            "{:.0%} of the evidence of safe and rewarding behaviour would go: little would be left to learn from how "
            "to keep the cost limit".format(safe))
    return out


def _safe_evidence(units, mask, owner, cost_limit, denied):
    """Share of the rows of safe, rewarding trajectories that would go; None if there are none.

    ``denied``: trajectories whose labels are not believed, bool [trajectories].
    """
    safe = (units.costs <= cost_limit) & ~denied
    if not safe.any():
        return None
    good = safe & ((units.returns >= np.median(units.returns[safe])) | (units.costs > cost_limit / 2))
    rows = good[owner]
    return float((mask & rows).sum() / rows.sum())
