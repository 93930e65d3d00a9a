"""What is left of a forget set in an agent: metrics, the claims that follow from them, certificates."""


def audit(trainer, data, forget, *, original=None, references=(), holdout=None, cost_limit=None, updates=None,
          batch_size=256, ids=None, episodes=0, seed=0, progress=False):
    """Audit the agent of an OSRL ``trainer``; agents are left as they were. What ``osrl-unlearn audit`` writes down.

    Args:
        trainer, original, references: OSRL trainers, or adapters of them: the agent under audit, the one before
            unlearning (``adapt(trainer).twin()``, taken then), and agents that were retrained without the forget set.
        data: the dictionary of arrays that the agent was trained on; forget: ForgetManifest of it.
        holdout: data that none of the agents was trained on.
        cost_limit: per episode; default: the agent's.
        updates: how many its training took, which says for how long metrics may train.
        ids: trajectory id of each row; default: counted in file order.
        episodes: paired episodes per agent in the trainer's environment; 0: without it.

    Returns:
        {"audit": {metric: figures, or why there are none}, "claims": [{"claim", "text", "holds": True, False or None
        for not tested, "because"}], "verdict": "unlearned", "partly", "not" or "untested", "reason", "limits"}.

    Raises:
        IncompatibleAgent, ManifestMismatch; ConfigError: no cost limit is known, or a reference has the weights of
        another agent, or an agent is a ``frozen()`` one, which can neither act nor be trained.
    """
    from osrl_unlearn.adapters import adapt
    from osrl_unlearn.adapters.base import Adapter
    from osrl_unlearn.audit import certificate
    from osrl_unlearn.audit.base import Context, compute
    from osrl_unlearn.errors import ConfigError

    adapter, before, *others = [agent if agent is None or isinstance(agent, Adapter) else adapt(agent)
                                for agent in (trainer, original, *references)]
    if any(agent is not None and agent.model is not agent.trainer.model for agent in (adapter, before, *others)):
        raise ConfigError("a frozen() agent can neither act nor be trained, as an audit needs it: give a trainer, or "
                          "adapt(trainer).twin(), taken before unlearning")
    limit = adapter.cost_limit if cost_limit is None else cost_limit
    if limit is None:
        raise ConfigError("the cost limit of '{}' is not known: give cost_limit".format(adapter.name))
    forget.verify(data)
    ctx = Context(adapter, data, ids, forget, float(limit), adapter.reward_scale, adapter.cost_scale, batch_size,
                  updates, before, others, holdout, forget.trigger(), episodes, seed, progress)
    models = certificate.model_hashes(ctx)
    certificate.check_references(models, ["number {}".format(n + 1) for n in range(len(others))])
    figures = compute(ctx)
    return dict(certificate.judged(figures, models, ctx.cost_limit, ctx.trigger is not None), audit=figures)
