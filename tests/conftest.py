"""Every test leaves Python's import machinery and its handling of Ctrl-C as it found them."""
import contextlib
import signal

import pytest

from osrl_unlearn.hooks import compat

# submitit closes every handler of logging when it is imported, and absl's closes its stream with it: in the middle of a
# test, that stream would be the one in which pytest keeps what the tests print.
with contextlib.suppress(ImportError):
    import submitit  # noqa: F401


@pytest.fixture(autouse=True)
def _import_hooks_are_taken_back():
    yield
    for undo in list(compat._installed):
        undo()


@pytest.fixture(scope="module")
def few_steps():
    """What quick/sitecustomize.py does for subprocesses: few steps of the critics that screen and audit.

    They take most of the time of a short run and of an audit, and have tests of their own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("osrl_unlearn.screening.STEPS", 1)
        patch.setattr("osrl_unlearn.audit.fqe.STEPS", 20)
        patch.setattr("osrl_unlearn.audit.auditor.STEPS", 20)
        yield


@pytest.fixture(autouse=True)
def _ctrl_c_raises():
    # A shell starts background jobs with SIGINT ignored, and Python keeps it that way.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
