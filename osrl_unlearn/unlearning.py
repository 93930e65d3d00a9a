"""From a trained agent to files: evaluate, unlearn, evaluate again, save, report. Used by every way to start it."""
import dataclasses
import json
import os
import sys
from typing import Any, Dict, List, Optional

from osrl_unlearn import logs, rundir
from osrl_unlearn.audit.certificate import audit_path, certificate_path
from osrl_unlearn.audit.signature import signature_path
from osrl_unlearn.data.manifest import ForgetManifest, versions
from osrl_unlearn.data.trigger import Trigger
from osrl_unlearn.detection import check_fdr, make_detector
from osrl_unlearn.engine import budget_steps, check_budget, make_method, prepare
from osrl_unlearn.errors import RunError
from osrl_unlearn.evaluate.report import TRIGGERED, terminal_summary, write_report
from osrl_unlearn.evaluate.rollouts import evaluate, normalization, scores
from osrl_unlearn.files import load_tensors, save_tensors, sha256_state
from osrl_unlearn.methods.base import Interrupted
from osrl_unlearn.options import check_seed, option
from osrl_unlearn.screening import screen
from osrl_unlearn.status import say


@dataclasses.dataclass
class UnlearnConfig:
    """The --unlearn flags; ``method`` is NAME or what FILE.yaml names, ``options`` are the method's own."""
    method: str
    steps: Optional[int] = option(None, "updates to spend; excludes budget")
    budget: Optional[float] = option(None, "updates to spend, as a share of the training's (default: the method's)")
    forget: Optional[str] = option(None, "forget manifest (default: that of --poison, or of the run), or: detect")
    detector: str = option("ensemble", "with --unlearn.forget detect: what finds the forget set")
    fdr: float = option(0.05, "with --unlearn.forget detect: share of false alarms among the trajectories found")
    reference: Optional[str] = option(None, "run directory of a retrained agent to compare with")
    seed: int = option(0, "seed of batches and of torch during unlearning")
    eval_episodes: int = option(20, "paired episodes per agent for the report; 0 switches evaluation off")
    strict: bool = option(False, "refuse a request to forget that looks harmful, instead of warning")
    withdrawn: bool = option(False, "nothing is wrong with the forget set, it is only to be gone")
    options: Dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.eval_episodes < 0:
            raise ValueError("eval_episodes must not be negative, got {}".format(self.eval_episodes))
        check_budget(self.steps, self.budget)
        check_seed(self.seed)
        check_fdr(self.fdr)
        make_detector(self.detector)

    @property
    def detecting(self):
        """Whether the forget set is to be found."""
        return self.forget == "detect"


@dataclasses.dataclass
class Trained:
    """A trained agent with its data, however it was come by."""
    adapter: Any
    data: Dict[str, Any]
    ids: Any
    manifest: ForgetManifest
    folder: str                   # the run directory
    config: Optional[Dict[str, Any]]
    task: str
    cost_limit: float
    reward_scale: float
    cost_scale: float
    updates: Optional[int]        # of the training
    train_seconds: Optional[float]
    batch_size: int
    notes: List[str] = dataclasses.field(default_factory=list)
    python_random: Any = None
    trigger: Optional[Trigger] = None  # of an attack that is not on record in the manifest
    unlearned: int = 0                 # updates of earlier unlearning


def check_request(adapter, config, task):
    """Say before any long work what stands in the way of unlearning this agent of ``task`` as ``config`` says.

    Raises IncompatibleAgent, ConfigError, RunError.
    """
    make_method(config.method, config.options).check(adapter)
    if config.detecting:
        make_detector(config.detector).check(adapter)
    if config.reference:
        _check_reference(config.reference, rundir.agents(config.reference), task, adapter)
    wrong = next((name for name, weight in adapter.model.named_parameters() if not weight.isfinite().all()), None)
    if wrong is not None:
        raise RunError("the weights of '{}' hold NaN or infinity, first in '{}': its training diverged; train it anew, "
                       "for example with lower learning rates".format(adapter.name, wrong))


def run_unlearning(trained, config, progress=True, reference=None, more_agents=None, known=None):
    """Unlearn ``trained`` as ``config`` says; write everything under its folder; return (report, summary text).

    ``reference`` is an adapter of a retrained agent, or None to load ``config.reference``. ``more_agents`` are further
    entries for the report, ``known`` the entries "poisoned" and "retrained" if these agents were evaluated before.
    OSRL's logger, if the trainer has one, gets the trace and the evaluations at steps that continue the training's.
    What was done before with the same settings is not done again: its report is returned, the agent stays as it is.

    Raises :class:`OsrlUnlearnError` before anything is written for whatever the user can mend; KeyboardInterrupt after
    Ctrl-C, with a file beside the result from which the same command goes on.
    """
    adapter = trained.adapter
    check_request(adapter, config, trained.task)
    if config.withdrawn:
        trained = dataclasses.replace(trained, manifest=dataclasses.replace(trained.manifest, withdrawn=True))
    method = make_method(config.method, config.options)
    steps = budget_steps(method, trained.updates, config.steps, config.budget)
    if reference is None and config.reference:
        reference = _reference(config.reference, trained)
    folder, offset = rundir.unlearned_dir(trained.folder, method.name), (trained.updates or 0) + trained.unlearned
    about = {"method": method.name, "options": dataclasses.asdict(method.options), "steps": steps,
             "seed": config.seed, "batch_size": trained.batch_size}
    model_before = sha256_state(adapter.model.state_dict())
    origin = rundir.trained_in(trained.folder)
    first = model_before if origin == trained.folder else sha256_state(rundir.read_weights(origin))
    settings = json.loads(json.dumps(dict(
        about, model=model_before, forget=trained.manifest.digest(), eval_episodes=config.eval_episodes,
        strict=config.strict, reference=reference and sha256_state(reference.model.state_dict()))))
    if settings["reference"] == model_before:
        raise RunError("the reference has the weights of the agent before unlearning: expected one that was retrained "
                       "without the forget set")
    report = _done(folder, settings)
    if report is not None:
        say("{} is complete (.complete): nothing is done again; delete the folder to start anew".format(folder))
        return report, terminal_summary(report, os.path.abspath(folder))
    prepared = prepare(adapter, trained.data, trained.manifest, method=method, steps=steps,
                       batch_size=trained.batch_size, seed=config.seed, ids=trained.ids,
                       reward_scale=trained.reward_scale, cost_scale=trained.cost_scale, progress=progress,
                       on_check=_logging(adapter.trainer.logger, offset))
    for note in prepared.notes:
        say(note)
    if os.path.isfile(os.path.join(folder, "report.json")):
        say("{} holds a result of other settings: it is replaced, and an audit of it goes".format(folder))
        lost = _lost(folder, trained.manifest)
        if lost:
            say("{:,} rows that it names are not named this time: for them to stay forgotten, stop this and unlearn "
                "from {}".format(lost, folder))
    trained = dataclasses.replace(trained, notes=trained.notes + prepared.notes)
    screening = _screened(trained, prepared.context.forget.rows.cpu().numpy(), config)
    request = dict(about, forget=trained.manifest.digest())
    resume = _resumable(folder, request, model_before)
    constants = normalization(adapter.trainer.env, trained.cost_limit)

    def score(agent, label, trigger=None):
        if not config.eval_episodes:
            return None
        return scores(evaluate(agent, config.eval_episodes, config.seed, progress, label, trigger), constants)

    known, more_agents = known or {}, dict(more_agents or {})
    poisoned = known.get("poisoned") or score(adapter, "evaluate before")
    # What a backdoor does shows under its trigger only.
    trigger = (trained.manifest.trigger() or trained.trigger) if config.eval_episodes else None
    if trigger is not None:
        more_agents[TRIGGERED.format("poisoned")] = score(adapter, "evaluate before, trigger", trigger)
    logs.write(adapter.trainer.logger, offset, logs.evaluation(poisoned, constants))
    try:
        outcome = prepared.run(resume)
    except Interrupted as interrupted:
        save_tensors(_resume_path(folder), dict(interrupted.state, about=request, model=model_before))
        print("\nosrl-unlearn: interrupted after {} of {} steps; the same unlearning of {} goes on from there".format(
            interrupted.state["i"], steps, trained.folder), file=sys.stderr)
        raise KeyboardInterrupt
    _save(folder, trained, about, method, outcome.steps)
    report = _report(trained, config, about, outcome, constants, model_before)
    report["notes"] = trained.notes + method.notes()
    report["models"].update(reference=settings["reference"], trained=first)
    report.update(screening=screening, poisoned=poisoned, unlearned=score(adapter, "evaluate after"), reference=None)
    if reference is not None:
        report["reference"] = known.get("retrained") or score(reference, "evaluate reference")
    if trigger is not None:
        more_agents[TRIGGERED.format("unlearned")] = score(adapter, "evaluate after, trigger", trigger)
    if more_agents:
        report["more_agents"] = more_agents
    write_report(folder, report, outcome.trace)
    _log(folder, trained, report, offset)
    rundir.complete(folder, settings)
    return report, terminal_summary(report, os.path.abspath(folder))


def _reference(run_dir, trained):
    reference = rundir.load(run_dir, trained.adapter.device).adapter
    _check_reference(run_dir, [reference.name], trained.task, trained.adapter)
    return reference


def _check_reference(run_dir, names, task, adapter):
    """Raise RunError unless the agent in ``run_dir``, of one of these ``names``, can be compared with ``adapter``'s."""
    found = rundir.read_config(run_dir)["task"]
    if found != task or adapter.name not in names:
        raise RunError("the reference {} holds {} on {}, the agent is {} on {}".format(
            run_dir, " or ".join(names) or "an unknown agent", found, adapter.name, task))


def _screened(trained, rows, config):
    """What :func:`~osrl_unlearn.screening.screen` finds in the request; its warnings are printed, or refused."""
    screening = screen(trained.data, rows, cost_limit=trained.cost_limit, gamma=trained.adapter.gamma,
                       ids=trained.ids, seed=config.seed)
    for warning in screening["warnings"]:
        if config.strict:
            raise RunError("the request to forget is refused (strict): " + warning)
        print("osrl-unlearn: warning: " + warning, file=sys.stderr)
    return screening


def _save(folder, trained, about, method, steps):
    rundir.complete(folder, None)
    certificate = certificate_path(folder)
    for path in (audit_path(folder), certificate, signature_path(certificate)):
        if os.path.exists(path):
            os.unlink(path)  # they are about the agent that is replaced here
    unlearned = trained.unlearned + steps
    rundir.save_unlearned(folder, trained.config, about, trained.adapter, rundir.side_state(
        trained.adapter, updates=(trained.updates or 0) + unlearned, unlearned=unlearned,
        batch_size=trained.batch_size, train_seconds=trained.train_seconds, reward_scale=trained.reward_scale,
        cost_scale=trained.cost_scale, dataset=trained.manifest.dataset, python_random=trained.python_random))
    trained.manifest.save(rundir.manifest_path(folder))
    method.save(folder)
    if os.path.exists(_resume_path(folder)):
        os.unlink(_resume_path(folder))


def _log(folder, trained, report, offset):
    """The checks and evaluations of a report: the last one for OSRL's logger, which has the others; all to a file."""
    before, after = (logs.evaluation(report[agent], report["normalization"]) for agent in ("poisoned", "unlearned"))
    end = offset + report["updates"]["unlearn"]
    logs.write(trained.adapter.trainer.logger, end, after)
    rows = {offset + entry["step"]: [logs.check(entry)] for entry in report["trace"]}
    rows.setdefault(offset, []).append(before)
    rows.setdefault(end, []).append(after)
    logs.write_progress(folder, trained.folder, rows)


def _report(trained, config, about, outcome, constants, model_before):
    manifest, trace, train = trained.manifest, outcome.trace, trained.train_seconds
    ratio = lambda a, b: a / b if b else None  # noqa: E731
    multipliers = [entry["multiplier"] for entry in trace if "multiplier" in entry]
    return {
        "schema": 1, "task": trained.task, "agent": trained.adapter.name, "method": about["method"],
        "options": about["options"], "cost_limit": float(trained.cost_limit), "seed": config.seed,
        "dataset": manifest.dataset,
        "attack": None if manifest.attack is None else dict(
            manifest.attack, rate=manifest.rate, unit=manifest.unit, seed=manifest.seed),
        "forget": {"unit": manifest.unit, "rows": manifest.rows, "trajectories": manifest.trajectories,
                   "share": manifest.rows / len(trained.data["rewards"]),
                   "detected": manifest.detection and {k: manifest.detection[k] for k in ("detector", "fdr")}},
        "updates": {"train": trained.updates, "unlearn": outcome.steps,
                    "ratio": ratio(outcome.steps, trained.updates)},
        "wall_seconds": {"train": train, "unlearn": outcome.seconds, "ratio": ratio(outcome.seconds, train)},
        "normalization": constants,
        "critics": _critics(outcome),
        "multiplier": {"max": max(multipliers), "mean": sum(multipliers) / len(multipliers),
                       "final": multipliers[-1],
                       "active_share": sum(m > 0 for m in multipliers) / len(multipliers)} if multipliers else None,
        "gate": outcome.gate, "accepted": outcome.accepted, "rollbacks": outcome.rollbacks,
        "reason": outcome.reason, "versions": versions(),
        "models": {"before": model_before, "after": sha256_state(trained.adapter.model.state_dict())},
        "trace": trace,
    }


def _critics(outcome):
    out = {}
    for name, before in outcome.before.items():
        value, _, rows = name.partition("/")
        out.setdefault(value, {})[rows] = {"before": before, "after": outcome.after[name]}
    return out


def _logging(logger, offset):
    """Log checks to OSRL's logger."""
    return lambda step, entry: logs.write(logger, offset + step, logs.check(entry))


def _done(folder, settings):
    """The report of what was done before with the same ``settings``, or None."""
    path = os.path.join(folder, "report.json")
    if rundir.completed(folder) != settings or not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        report = json.load(file)
    try:
        model = sha256_state(rundir.read_weights(folder))
    except RunError:  # it is gone, or somebody wrote over it
        return None
    return report if model == report["models"]["after"] else None


def _lost(folder, manifest):
    """Number of rows that the result in ``folder`` has forgotten and ``manifest`` does not name."""
    path = rundir.manifest_path(folder)
    both = manifest.after(ForgetManifest.load(path)) if os.path.isfile(path) else manifest
    return both.count() - manifest.count()


def _resume_path(folder):
    return os.path.join(folder, "osrl_unlearn", "resume.pt")


def _resumable(folder, about, model):
    path = _resume_path(folder)
    if not os.path.isfile(path):
        return None
    state = load_tensors(path)
    if state.pop("model") != model:
        say("{} is from an interrupted run on another agent: it is not used".format(path))
        return None
    if state.pop("about") != about:
        raise RunError("{} is from an interrupted run with other settings: delete it to start anew, or repeat the "
                       "settings to go on".format(path))
    say("going on from step {} of an interrupted run".format(state["i"]))
    return state
