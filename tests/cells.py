"""A small suite, and a bench's function, for tests; in a file of its own that worker processes import quickly."""
import os
import time

from osrl_unlearn.errors import ConfigError

AGENT = {"name": "coptidice", "cost_limit": 40, "episode_len": 200, "reward_scale": 0.1, "cost_scale": 1,
         "a_hidden_sizes": [8], "c_hidden_sizes": [8], "f_type": "softchi", "gamma": 0.99, "alpha": 0.5,
         "cost_ub_epsilon": 0.01, "num_nu": 1, "num_chi": 1, "actor_lr": 1e-4, "critic_lr": 1e-4, "scalar_lr": 1e-4}
SUITE = {"seeds": [0], "evaluation": {"last": 2, "every": 10, "episodes": 1},
         "settings": {"tiny": {"task": "OfflineBallCircle-v0", "updates": 30, "batch_size": 16, "min_return": 0,
                               "agent": AGENT}},
         "attacks": {"hidden": {"name": "cost_hide", "rates": [0.2]}, "trigger_backdoor": {"rates": [0.1]}}}


def square(cell, out):
    """A bench's function: notes that it was called, and by which process, and does what the cell says."""
    with open(os.path.join(out, "pid"), "w") as file:
        file.write(str(os.getpid()))
    with open(os.path.join(out, "calls"), "a") as file:
        file.write("{}\n".format(cell["x"]))
    time.sleep(cell.get("sleep", 0))
    if "needs" in cell and not os.path.exists(cell["needs"]):
        raise ConfigError("no file at {}".format(cell["needs"]))
    if cell.get("die"):
        os._exit(1)
    if cell.get("error"):
        raise {"ours": ConfigError, "other": ValueError}[cell["error"]]("because of {}\nmore".format(cell["x"]))
    return {"square": cell["x"] ** 2, "threads": os.environ["OMP_NUM_THREADS"]}
