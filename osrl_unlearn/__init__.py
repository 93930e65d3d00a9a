"""Poison, unlearn and report on offline safe RL agents trained with OSRL.

The public names below are imported on first use, so that importing the package costs nothing:

    poison(data, attack, rate=...)          -> Poisoned(data, manifest, ids)
    detect(data, ...)                       -> ForgetManifest of what looks poisoned, when nobody says what is
    unlearn(trainer, data, forget, ...)     -> Outcome; the trainer's agent is changed in place
    audit.audit(trainer, data, forget, ...) -> figures, claims and a verdict: what is left of the forget set
    ForgetManifest                          what to forget, with the hashes of the data it belongs to
    adapt(trainer)                          the adapter of an OSRL trainer

>>> from osrl_unlearn import adapt, detect, poison, unlearn
>>> from osrl_unlearn.testing import toy_data
>>> data = toy_data(trajectories=120, length=20)
>>> bad = poison(data, "reward_bait", rate=0.1)
>>> bad.manifest.trajectories, bad.data["observations"] is data["observations"]
(12, True)
>>> found = detect(bad.data, options={"steps": 200})
>>> [span[0] for span in found.spans] == [span[0] for span in bad.manifest.spans]
True

>>> from osrl.algorithms import BC, BCTrainer
>>> from osrl_unlearn.audit import audit
>>> trainer = BCTrainer(BC(state_dim=8, action_dim=2, max_action=1.0, a_hidden_sizes=[16], episode_len=20), env=None)
>>> before = adapt(trainer).twin()
>>> unlearn(trainer, bad.data, bad.manifest, method="fine_tune", steps=10, progress=False).accepted
True
>>> claims = audit(trainer, bad.data, bad.manifest, original=before, cost_limit=10)["claims"]
>>> [(claim["text"], claim["holds"]) for claim in claims if claim["claim"] == "changed"]
[('its weights are not those of the agent before unlearning', True)]
"""
import importlib

__version__ = "0.1.0"

_PUBLIC = {"poison": "osrl_unlearn.data.poison", "ForgetManifest": "osrl_unlearn.data.manifest",
           "detect": "osrl_unlearn.detection", "unlearn": "osrl_unlearn.engine", "adapt": "osrl_unlearn.adapters"}
__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))
    return getattr(importlib.import_module(_PUBLIC[name]), name)
