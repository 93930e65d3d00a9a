"""On PYTHONPATH, takes from short runs most of what they spend on questions that only long ones can answer."""
from osrl_unlearn.hooks.imports import on_import

on_import("osrl_unlearn.screening", lambda module: setattr(module, "STEPS", 1))
on_import("osrl_unlearn.audit.fqe", lambda module: setattr(module, "STEPS", 20))
on_import("osrl_unlearn.audit.auditor", lambda module: setattr(module, "STEPS", 20))
