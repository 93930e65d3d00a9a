"""Find a forget set when nobody hands one over: detectors score rows, this module decides about trajectories."""
import dataclasses
import os

import numpy as np
from scipy import stats

from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.detectors.base import clean_majority, ratios
from osrl_unlearn.errors import ConfigError, RunError
from osrl_unlearn.options import parse
from osrl_unlearn.registry import DETECTORS

LEAST = 10       # trajectories below which there is no majority to speak of
FREEDOM = 5      # degrees of freedom of the null: real scores have heavier tails than a normal distribution


def make_detector(name, options=None):
    """The detector called ``name`` with ``options`` (a mapping). Raises ConfigError."""
    cls = DETECTORS.load(name)
    return cls(parse(cls.Options, options or {}, "--set "))


def detect(data, detector="ensemble", *, fdr=0.05, seed=0, ids=None, adapter=None, reward_scale=1.0, cost_scale=1.0,
           options=None, task=None, dataset=None, progress=True):
    """Find the trajectories that are poisoned, without labels.

    The row scores of each detector are summed up per trajectory twice: their mean shows trajectories that are poisoned
    as a whole, the mean of the highest tenth those that are poisoned in a few rows. Either is divided by what is worth
    attention: the detector's ``floor``, or five robust standard deviations above the clean majority's centre if that
    is more. The largest of these ratios is the trajectory's score.

    What scores clean trajectories have is estimated from the data at hand (Efron, "Large-Scale Simultaneous Hypothesis
    Testing: The Choice of a Null Hypothesis", JASA 2004): centre and spread of log(1 + score) are those of the densest
    half, which is clean as long as at most about 35 % are not, and the tail is Student's. Benjamini and Hochberg's
    procedure (JRSS B 1995) then bounds the share of false alarms among all alarms by ``fdr``. That alone would flag
    clean but odd trajectories, since the null's tail is an assumption; so nothing is flagged whose score is below 1.
    On two clean datasets of more than 1,000 trajectories this flags less than 1 %.

    Args:
        data: DSRL's dictionary of arrays; it is not changed.
        detector: name of a detector, or a :class:`~osrl_unlearn.detectors.base.Detector`.
        fdr: false discovery rate to aim at, in (0, 1).
        seed: seed of everything random; no global generator is used.
        ids: trajectory id of each row, shape [rows]; default: counted in file order.
        adapter: an agent trained on ``data``, for detectors that ask one; ``reward_scale`` and ``cost_scale`` are what
            rewards and costs were multiplied by in its training.
        options: the detector's options, as a mapping, if ``detector`` is a name.
        task, dataset: recorded in the manifest.
        progress: whether to show bars on standard error.

    Returns:
        A :class:`~osrl_unlearn.data.manifest.ForgetManifest` of whole trajectories, perhaps none, whose ``detection``
        holds the score of every trajectory, flagged or not.

    Raises:
        ConfigError: unknown detector or option, an fdr outside (0, 1), an agent that is missing, too few trajectories.
    """
    detector = make_detector(detector, options) if isinstance(detector, str) else detector
    detector.label = detector.name if progress else None
    check_fdr(fdr)
    index = TrajectoryIndex(data, ids)
    if len(index.starts) < LEAST:
        raise ConfigError("detection needs at least {} trajectories, the data have {}: name the forget set by "
                          "hand".format(LEAST, len(index.starts)))
    parts = {part.name: ratios(scores, index, part.floor) for part, scores in detector.parts(
        data, index, seed, adapter=adapter, reward_scale=reward_scale, cost_scale=cost_scale)}
    score = np.max(list(parts.values()), 0)
    flagged = (score >= 1) & discoveries(p_values(score), fdr)
    units = index.units("trajectory")
    lengths = index.stops - index.starts
    spans = [[index.ids[i], 0, lengths[i]] for i in np.flatnonzero(flagged)]
    return ForgetManifest.of(data, spans, task=task, dataset=dataset, detection={
        "detector": detector.name, "options": dataclasses.asdict(detector.options), "fdr": float(fdr),
        "threshold": float(score[flagged].min()) if flagged.any() else None, "seed": int(seed),
        "trajectories": {"id": index.ids.tolist(), "return": units.returns.tolist(), "cost": units.costs.tolist(),
                         "score": score.tolist(), "flagged": flagged.tolist()},
        "detectors": {name: values.tolist() for name, values in parts.items()}})


def check_fdr(fdr):
    """Raise ConfigError unless ``fdr`` is a rate between 0 and 1."""
    if isinstance(fdr, bool) or not isinstance(fdr, (int, float)) or not 0 < fdr < 1:
        raise ConfigError("the false discovery rate must be above 0 and below 1, got {}".format(fdr))


def p_values(score):
    """Chance that a clean trajectory has as high a score. Shape [trajectories]."""
    logs = np.log1p(score)
    centre, spread = clean_majority(logs)
    return stats.t.sf((logs - centre) / max(spread, 1e-2), FREEDOM)


def discoveries(p, fdr):
    """Which of the hypotheses with ``p`` values [n] Benjamini and Hochberg's procedure rejects."""
    ordered = np.sort(p)
    passed = np.flatnonzero(ordered <= fdr * np.arange(1, len(p) + 1) / len(p))
    return p <= ordered[passed[-1]] if len(passed) else np.zeros(len(p), bool)


def measure(detected, true):
    """How well a detected forget set meets the true one, counted in trajectories.

    Args:
        detected: a manifest from :func:`detect`; its ``spans`` say what was flagged, its ``detection`` the scores.
        true: the manifest of the attack on the same data. A trajectory is poisoned if any of its rows is.

    Returns:
        {"auroc", "precision", "recall", "false_alarms_per_1000" clean trajectories}; None for what is not defined:
        precision without an alarm, recall and AUROC without poison. AUROC is Mann and Whitney's U over the product of
        both numbers of trajectories.
    """
    found = detected.detection["trajectories"]
    known, score = np.asarray(found["id"]), np.asarray(found["score"])
    poisoned = np.isin(known, [span[0] for span in true.spans])
    flagged = np.isin(known, [span[0] for span in detected.spans])
    hits, bad, good = int((flagged & poisoned).sum()), int(poisoned.sum()), int((~poisoned).sum())
    return {"auroc": float(stats.mannwhitneyu(score[poisoned], score[~poisoned]).statistic / (bad * good))
            if bad and good else None,
            "precision": hits / int(flagged.sum()) if flagged.any() else None,
            "recall": hits / bad if bad else None,
            "false_alarms_per_1000": 1000 * int((flagged & ~poisoned).sum()) / good if good else None}


def find_forget_set(config, folder, data, ids, adapter, true=None, **about):
    """The forget set of --unlearn.forget detect, also saved in the run directory ``folder``: (manifest, sentence).

    ``config`` is an UnlearnConfig; ``true`` the manifest of the attack if it is known; ``about`` goes to
    :func:`detect`. Raises RunError when nothing is found.
    """
    manifest = detect(data, config.detector, fdr=config.fdr, seed=config.seed, ids=ids, adapter=adapter, **about)
    manifest = dataclasses.replace(manifest, reward_scale=about.get("reward_scale"), cost_scale=about.get("cost_scale"))
    path = os.path.join(folder, "osrl_unlearn", "detected.json")
    manifest.save(path)
    if not manifest.spans:
        raise RunError("nothing was detected: {}; there is nothing to forget, and the agent is unchanged. The scores "
                       "are in {}".format(describe(manifest), path))
    sentence = "The forget set was detected: {}.".format(describe(manifest))
    if true is not None and true.spans:
        found = measure(manifest, true)
        sentence += " Against the trajectories that were really poisoned: precision {:.2f}, recall {:.2f}.".format(
            found["precision"], found["recall"])
    return manifest, sentence


def describe(manifest):
    """How many trajectories are named, and by what, in a few words."""
    about = manifest.detection
    return "{:,} of {:,} trajectories are suspected by {} at a false discovery rate of {:g}".format(
        len(manifest.spans), len(about["trajectories"]["id"]), about["detector"], about["fdr"])
