"""What unlearning does to a poisoned agent of a bench: any method, budget and list of what to forget."""
import dataclasses
import os

import numpy as np

from osrl_unlearn.bench import agents
from osrl_unlearn.bench.runner import key
from osrl_unlearn.data.manifest import ForgetManifest
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.errors import ConfigError
from osrl_unlearn.files import load_tensors, locked, save_tensors

STREAM = 1  # the lists' generator is seeded with (STREAM, seed), no other generator is
RETRAIN = {"name": "retrain", "options": {}, "budget": 1.0}  # exact: what it does, it does by the request alone
FULL_PRICE = 1.0  # agents that cost as much as training are kept


def unlearn_agent(cell, out):
    """Let the agent of a cell forget, and evaluate what it has become.

    The agent is that of :func:`~osrl_unlearn.bench.agents.agent`. cell["method"] is {"name", "options", "budget": share
    of the training's updates}, or None for doing nothing; cell["forget"] says what is forgotten, see :func:`requests`.
    Where cell["screen"] is False, the request is not screened. The final agent is evaluated in
    cell["evaluation"]["last"] x ["episodes"] episodes, which start as those of
    :func:`~osrl_unlearn.bench.agents.evaluate_agent` do: whatever is done to an agent can be compared in pairs.

    Returns:
        {"evaluations": [{"reward", "cost", "length"}] with lists [episodes], "triggered": the same under the trigger
        of the attack or None, "updates", "seconds": what unlearning cost, "train_seconds", "accepted", "rollbacks",
        "reason", "forget": {"rows", "trajectories"}, "screening": of the request}; all of the unlearning is None, and
        its cost 0, if nothing is done.
    """
    adapter, seconds, poisoned, trigger = load(cell, out)
    result = {"updates": 0, "seconds": 0.0, "train_seconds": seconds, "accepted": None, "rollbacks": None,
              "reason": None, "forget": None, "screening": None}
    if cell["method"] is not None:
        result.update(forget(adapter, poisoned, cell, out))
        if cell.get("screen", True):
            result["screening"] = _screened(adapter, poisoned, cell)
    return dict(result, **evaluations(adapter, cell, trigger))


def load(cell, out):
    """The agent of a cell before it forgets anything.

    Returns:
        (adapter, seconds its training took, :class:`~osrl_unlearn.data.poison.Poisoned` data or None, the attack's
        :class:`~osrl_unlearn.data.trigger.Trigger` or None)
    """
    adapter, seconds, clean, ids = agents.agent(cell, out)
    spec = cell["poison"]
    if spec is None:
        return adapter, seconds, None, None
    return (adapter, seconds, agents.poisoned(spec, clean, ids, cell["agent"]["task"], cell, out),
            agents.learned(spec, clean, ids, cell["seed"], out).trigger())


def evaluations(adapter, cell, trigger):
    """{"evaluations", "triggered"} of :func:`unlearn_agent`."""
    numbers = range(cell["evaluation"]["last"])
    return {"evaluations": [agents.episodes(adapter, cell, number) for number in numbers],
            "triggered": trigger and [agents.episodes(adapter, cell, number, trigger) for number in numbers]}


def forget(adapter, poisoned, cell, out, on_check=lambda step, metrics: None):
    """Do to the ``adapter`` what the cell's method does; batches and new weights come from cell["unlearning_seed"], or
    from the cell's seed.

    An agent whose budget is that of training or more is kept in ``out``/unlearned and loaded the next time.

    Returns:
        {"updates", "seconds", "accepted", "rollbacks", "reason", "forget": {"rows", "trajectories"}}
    """
    if cell["method"]["budget"] < FULL_PRICE:
        return _forget(adapter, poisoned, cell, on_check)
    about = {name: cell.get(name) for name in ("version", "dataset", "agent", "poison", "seed", "method", "forget",
                                               "unlearning_seed")}
    path = os.path.join(out, "unlearned", key(about) + ".pt")
    with locked(path):
        if os.path.isfile(path):
            saved = load_tensors(path, adapter.device)
            adapter.restore(saved["state"])
            return saved["result"]
        result = _forget(adapter, poisoned, cell, on_check)
        save_tensors(path, {"state": adapter.state(), "result": result})
    return result


def _forget(adapter, poisoned, cell, on_check):
    from osrl_unlearn.engine import budget_steps, make_method
    spec, outcomes = cell["method"], []
    for manifest in requests(poisoned, cell["forget"], cell["seed"]):
        method = make_method(spec["name"], spec["options"])
        method.gated = method.gated and spec.get("gate", True)
        steps = budget_steps(method, cell["agent"]["update_steps"], budget=spec["budget"])
        outcomes.append(prepared(adapter, poisoned.data, poisoned.ids, manifest, method, steps, cell,
                                 on_check=on_check).run())
    return {"updates": sum(outcome.steps for outcome in outcomes),
            "seconds": sum(outcome.seconds for outcome in outcomes),
            "accepted": any(outcome.accepted for outcome in outcomes),
            "rollbacks": sum(outcome.rollbacks for outcome in outcomes), "reason": outcomes[-1].reason,
            "forget": {"rows": manifest.rows, "trajectories": manifest.trajectories}}


def prepared(adapter, data, ids, manifest, method, steps, cell, **more):
    """:func:`~osrl_unlearn.engine.prepare` with the settings of a cell."""
    from osrl_unlearn.engine import prepare
    agent, seed = cell["agent"], cell.get("unlearning_seed")
    return prepare(adapter, data, manifest, method=method, steps=steps, batch_size=agent["batch_size"],
                   seed=cell["seed"] if seed is None else seed, ids=ids, reward_scale=agent["reward_scale"],
                   cost_scale=agent["cost_scale"], progress=False, **more)


def _screened(adapter, poisoned, cell):
    from osrl_unlearn.screening import screen
    manifest = listed(poisoned, cell["forget"], cell["seed"])
    return screen(poisoned.data, manifest.row_numbers(poisoned.data, poisoned.ids),
                  cost_limit=cell["agent"]["cost_limit"], gamma=adapter.gamma, ids=poisoned.ids,
                  seed=cell["seed"])


def requests(poisoned, forget, seed):
    """The manifest of every request, in order: the one of :func:`listed`, or as many as ``forget`` names.

    {"requests": n} is all that is poisoned, in n requests of about as many trajectories each, whole ones only. As with
    the command, what a request names stays forgotten in the next one, and each has the whole budget.
    """
    if "requests" not in (forget or {}):
        yield listed(poisoned, forget, seed)
        return
    data, spans, manifest = poisoned.data, poisoned.manifest.spans, None
    order = np.random.default_rng([STREAM, seed]).permutation(np.unique([span[0] for span in spans]))
    for part in np.array_split(order, forget["requests"]):
        chosen, earlier = set(part), manifest
        manifest = ForgetManifest.of(data, [span for span in spans if span[0] in chosen])
        manifest = manifest if earlier is None else manifest.after(earlier)
        yield manifest


def listed(poisoned, forget, seed):
    """The manifest of what somebody asks to forget, right or wrong.

    Args:
        poisoned: the :class:`~osrl_unlearn.data.poison.Poisoned` data.
        forget: None for all that is poisoned; {"part": name} for a part of it; {"known", "wrong"} for a list that holds
            the share ``known`` of the poisoned trajectories, and of which the share ``wrong`` is clean trajectories;
            {"control": name} for as many clean trajectories as the part has, or with None as are poisoned; they are
            withdrawn, not accused.
        seed: of the lists. Lists of one seed are nested: a longer one holds what a shorter one does.

    Raises:
        ConfigError: there are not as many clean trajectories.
    """
    manifest, forget = poisoned.manifest, forget or {}
    if "part" in forget:
        return manifest.part(forget["part"])
    if not forget:
        return manifest
    index = TrajectoryIndex(poisoned.data, poisoned.ids)
    rng = np.random.default_rng([STREAM, seed])
    bad = rng.permutation(np.unique([span[0] for span in manifest.spans]))
    good = rng.permutation(np.setdiff1d(index.ids, bad))
    if "control" in forget:
        part = manifest if forget["control"] is None else manifest.part(forget["control"])
        known, wrong = 0, part.trajectories
    else:
        known = int(round(forget["known"] * len(bad)))
        wrong = int(round(known * forget["wrong"] / (1 - forget["wrong"])))
    if wrong > len(good):
        raise ConfigError("a list with {} clean trajectories was asked for, there are {}".format(wrong, len(good)))
    lengths = dict(zip(index.ids, index.stops - index.starts))
    chosen = set(bad[:known])
    spans = [span for span in manifest.spans if span[0] in chosen]
    spans = sorted(spans + [[int(i), 0, int(lengths[i])] for i in good[:wrong]])
    return dataclasses.replace(manifest, spans=spans, rows=sum(b - a for _, a, b in spans), parts=None,
                               withdrawn="control" in forget)
