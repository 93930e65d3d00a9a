"""Poison, unlearn and report on offline safe RL agents trained with OSRL.

The public names below are imported on first use, so that importing the package costs nothing:

    poison(data, attack, rate=...)          -> Poisoned(data, manifest, ids)
    detect(data, ...)                       -> ForgetManifest of what looks poisoned, when nobody says what is
    unlearn(trainer, data, forget, ...)     -> Outcome; the trainer's agent is changed in place
    audit.audit(trainer, data, forget, ...) -> figures, claims and a verdict: what is left of the forget set
    ForgetManifest                          what to forget, with the hashes of the data it belongs to
    adapt(trainer)                          the adapter of an OSRL trainer
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
