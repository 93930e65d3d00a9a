"""What is measured of an unlearned agent beside its episodes: distance to retraining, relearning, its checkpoints."""
import numpy as np
from scipy.stats import wasserstein_distance

from osrl_unlearn.audit.distance import says as _says
from osrl_unlearn.audit.distance import visited as _visited
from osrl_unlearn.bench import agents, unlearning
from osrl_unlearn.data.views import TransitionStore, forget_and_retain

PAIRS = 2048  # pairs of state and action of each set at which agents are compared
RELEARNING = 10  # ordinary updates on the retain set for each update of unlearning
OTHER_BATCHES = 1000  # added to the seed of the batches of relearning


def compute(cell, out):
    """The result of a cell of ``bench unlearning``, whatever its "kind" is."""
    kinds = {"unlearning": unlearning.unlearn_agent, "distance": distance, "relearning": relearning,
             "checkpoints": checkpoints}
    return kinds[cell["kind"]](cell, out)


def checkpoints(cell, out):
    """Evaluate every checkpoint that the method accepted while it ran, under the trigger if the attack has one.

    The method does not see these episodes. They start as the first of :func:`~osrl_unlearn.bench.agents.episodes` do.

    Returns:
        {"evaluations": [{"step", "reward", "cost", "length"}]} in the order of the steps; the last one is the agent
        that the method returned.
    """
    adapter, _, poisoned, trigger = unlearning.load(cell, out)
    states = []

    def on_check(step, metrics):
        if metrics["accepted"]:
            states.append((step, adapter.state()))

    unlearning.forget(adapter, poisoned, cell, out, on_check)
    found = []
    for step, state in states:
        adapter.restore(state)
        found.append(dict(agents.episodes(adapter, cell, 0, trigger), step=step))
    return {"evaluations": found}


def relearning(cell, out):
    """Train an unlearned agent as OSRL would, cell["relearning"] updates on the retain set, and evaluate it again.

    Returns {"evaluations", "triggered"} of :func:`~osrl_unlearn.bench.unlearning.unlearn_agent`.
    """
    from osrl_unlearn.engine import make_method
    adapter, _, poisoned, trigger = unlearning.load(cell, out)
    unlearning.forget(adapter, poisoned, cell, out)
    manifest = unlearning.listed(poisoned, cell["forget"], cell["seed"])
    ordinary = make_method("fine_tune", {"learning_rate": 0})  # the optimisers' own rates
    unlearning.prepared(adapter, poisoned.data, poisoned.ids, manifest, ordinary, cell["relearning"],
                        dict(cell, unlearning_seed=cell["seed"] + OTHER_BATCHES)).run()
    return unlearning.evaluations(adapter, cell, trigger)


def distance(cell, out):
    """How far the agent of a cell is from the one that was retrained with the same seed.

    Both are compared at pairs of state and action of the forget set, of the retain set, and at "fresh" ones: what the
    retrained agent sees and does in its first episodes of evaluation.

    Returns:
        {"actions": mean distance of the policies' actions, in units of the actions' spread in the retain set,
        "reward_value", "cost_value": Wasserstein-1 distance of the distributions of the critics' values, in units of
        the retrained agent's spread in the retain set}, each {"forget", "retain", "fresh"}.
    """
    adapter, _, poisoned, _ = unlearning.load(cell, out)
    before, agent = adapter.state(), cell["agent"]
    unlearning.forget(adapter, poisoned, dict(cell, method=unlearning.RETRAIN, unlearning_seed=None), out)
    store = TransitionStore(poisoned.data, agent["reward_scale"], agent["cost_scale"], adapter.device)
    rows = unlearning.listed(poisoned, cell["forget"], cell["seed"]).row_numbers(poisoned.data, poisoned.ids)
    forgotten, retained = (view.everything(PAIRS) for view in forget_and_retain(store, rows))
    sets = {"forget": forgotten, "retain": retained, "fresh": visited(adapter, cell)}
    spread = retained.actions.std(0).norm().item()
    reference = {name: _says(adapter, batch, cell["seed"]) for name, batch in sets.items()}
    adapter.restore(before)
    if cell["method"] is not None:
        unlearning.forget(adapter, poisoned, cell, out)
    own = {name: _says(adapter, batch, cell["seed"]) for name, batch in sets.items()}
    result = {"actions": {name: float(np.linalg.norm(own[name]["actions"] - reference[name]["actions"], axis=1).mean()
                                      / max(spread, 1e-6)) for name in sets}}
    for value in ("reward_value", "cost_value"):
        unit = max(float(reference["retain"][value].std()), 1e-6)
        result[value] = {name: float(wasserstein_distance(own[name][value], reference[name][value])) / unit
                         for name in sets}
    return result


def visited(adapter, cell):
    """What an agent visits in its first episodes of evaluation, see :func:`~osrl_unlearn.audit.distance.visited`."""
    return _visited(adapter, lambda: agents.episodes(adapter, cell, 0))[0]
