"""What unlearning does to a poisoned agent of a bench: any method, budget and list of what to forget."""
import dataclasses

import numpy as np

from osrl_unlearn.bench import agents
from osrl_unlearn.data.trajectories import TrajectoryIndex
from osrl_unlearn.errors import ConfigError

STREAM = 1  # the lists' generator is seeded with (STREAM, seed), no other generator is


def unlearn_agent(cell, out):
    """Let the agent of a cell forget, and evaluate what it has become.

    The agent is that of :func:`~osrl_unlearn.bench.agents.agent`. cell["method"] is {"name", "options", "budget": share
    of the training's updates}, or None for doing nothing; cell["forget"] says what is forgotten, see :func:`listed`.
    The final agent is evaluated in cell["evaluation"]["last"] x ["episodes"] episodes, which start as those of
    :func:`~osrl_unlearn.bench.agents.evaluate_agent` do: whatever is done to an agent can be compared in pairs.

    Returns:
        {"evaluations": [{"reward", "cost", "length"}] with lists [episodes], "triggered": the same under the trigger
        of the attack or None, "updates", "seconds": what unlearning cost, "train_seconds", "accepted", "rollbacks",
        "reason", "forget": {"rows", "trajectories"}, "screening": of the request}; all of the unlearning is None, and
        its cost 0, if nothing is done.
    """
    adapter, seconds, clean, ids = agents.agent(cell, out)
    spec = cell["poison"]
    result = {"updates": 0, "seconds": 0.0, "train_seconds": seconds, "accepted": None, "rollbacks": None,
              "reason": None, "forget": None, "screening": None}
    if cell["method"] is not None:
        poisoned = agents.poisoned(spec, clean, ids, cell["agent"]["task"], cell, out)
        result.update(_forget(adapter, poisoned, cell))
    trigger = spec and agents.learned(spec, clean, ids, cell["seed"], out).trigger()
    numbers = range(cell["evaluation"]["last"])
    result["evaluations"] = [agents.episodes(adapter, cell, number) for number in numbers]
    result["triggered"] = trigger and [agents.episodes(adapter, cell, number, trigger) for number in numbers]
    return result


def _forget(adapter, poisoned, cell):
    from osrl_unlearn.engine import budget_steps, make_method, prepare
    from osrl_unlearn.screening import screen
    agent, seed = cell["agent"], cell["seed"]
    manifest = listed(poisoned, cell["forget"], seed)
    screening = screen(poisoned.data, manifest.row_numbers(poisoned.data, poisoned.ids), cost_limit=agent["cost_limit"],
                       gamma=adapter.gamma, ids=poisoned.ids, seed=seed)
    method = make_method(cell["method"]["name"], cell["method"]["options"])
    outcome = prepare(adapter, poisoned.data, manifest, method=method,
                      steps=budget_steps(method, agent["update_steps"], budget=cell["method"]["budget"]),
                      batch_size=agent["batch_size"], seed=seed, ids=poisoned.ids, reward_scale=agent["reward_scale"],
                      cost_scale=agent["cost_scale"], progress=False).run()
    return {"updates": outcome.steps, "seconds": outcome.seconds, "accepted": outcome.accepted,
            "rollbacks": outcome.rollbacks, "reason": outcome.reason,
            "forget": {"rows": manifest.rows, "trajectories": manifest.trajectories}, "screening": screening}


def listed(poisoned, forget, seed):
    """The manifest of what somebody asks to forget, right or wrong.

    Args:
        poisoned: the :class:`~osrl_unlearn.data.poison.Poisoned` data.
        forget: None for all that is poisoned; {"part": name} for a part of it; {"known", "wrong"} for a list that holds
            the share ``known`` of the poisoned trajectories, and of which the share ``wrong`` is clean trajectories;
            {"control": name} for as many clean trajectories as the part has.
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
        known, wrong = 0, manifest.part(forget["control"]).trajectories
    else:
        known = int(round(forget["known"] * len(bad)))
        wrong = int(round(known * forget["wrong"] / (1 - forget["wrong"])))
    if wrong > len(good):
        raise ConfigError("a list with {} clean trajectories was asked for, there are {}".format(wrong, len(good)))
    lengths = dict(zip(index.ids, index.stops - index.starts))
    chosen = set(bad[:known])
    spans = [span for span in manifest.spans if span[0] in chosen]
    spans = sorted(spans + [[int(i), 0, int(lengths[i])] for i in good[:wrong]])
    return dataclasses.replace(manifest, spans=spans, rows=sum(b - a for _, a, b in spans), parts=None)
