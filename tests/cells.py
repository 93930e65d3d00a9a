"""A bench's function for tests, in a file of its own that worker processes import quickly."""
import os
import time

from osrl_unlearn.errors import ConfigError


def square(cell, out):
    """A bench's function: notes that it was called, and does what the cell says."""
    with open(os.path.join(out, "calls"), "a") as file:
        file.write("{}\n".format(cell["x"]))
    time.sleep(cell.get("sleep", 0))
    if cell.get("die"):
        os._exit(1)
    if cell.get("error"):
        raise {"ours": ConfigError, "other": ValueError}[cell["error"]]("because of {}\nmore".format(cell["x"]))
    return {"square": cell["x"] ** 2, "threads": os.environ["OMP_NUM_THREADS"]}
