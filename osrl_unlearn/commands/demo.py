"""``osrl-unlearn demo``: poison, train, unlearn and compare, on the shipped dataset, with OSRL's own classes."""
import os
import time

import numpy as np

from osrl_unlearn import environments, resources, status
from osrl_unlearn.data.dataset import SHIPPED
from osrl_unlearn.data.poison import poison
from osrl_unlearn.files import check_writable
from osrl_unlearn.options import check_seed
from osrl_unlearn.registry import ADAPTERS, read_yaml

AGENTS = ("coptidice", "bcql", "cpq")


def add_arguments(parser):
    """The command's arguments."""
    parser.add_argument("--agent", choices=AGENTS, default="coptidice")
    parser.add_argument("--seed", type=int, default=0, help="of the attack, training, unlearning and evaluation")
    parser.add_argument("--out", help="folder for the results (default: demo-AGENT-seed-N)")


def main(args):
    """Print one table of clean, poisoned, retrained, fine-tuned and unlearned agents."""
    check_seed(args.seed)
    started = time.perf_counter()
    out = args.out or "demo-{}-seed-{}".format(args.agent, args.seed)
    config = read_yaml(os.path.join(resources.folder("configs"), "demo", args.agent + ".yaml"))
    check_writable(out)
    text = run_demo(config, args.seed, out, not status.quiet)
    print(text)
    print("{:.1f} minutes; everything is in {}".format((time.perf_counter() - started) / 60, os.path.abspath(out)))
    return 0


def run_demo(config, seed, out, progress=True):
    """Train, unlearn and compare as ``config`` (see configs/demo) says; returns the text to print.

    Agents that an earlier, interrupted demo with the same settings has trained are taken from ``out``.
    """
    import torch
    torch.set_num_threads(1)  # faster for networks of this size, and the same numbers on every machine
    from osrl_unlearn.evaluate.rollouts import evaluate, normalization, scores
    from osrl_unlearn.training import trained
    agent = dict(config["agent"], task=config["task"], seed=seed, update_steps=config["updates"],
                 batch_size=config["batch_size"])
    cls = ADAPTERS.load(agent.pop("name"))
    env = environments.make(config["task"], agent["cost_limit"], agent["reward_scale"])
    dataset = os.path.join(resources.folder("datasets"), SHIPPED[config["task"]])
    data, ids = environments.load(env, agent, dataset)
    attack = config["attack"]
    poisoned = poison(data, attack["name"], rate=attack["rate"], unit=attack["unit"], seed=seed, ids=ids,
                      options=attack["options"], task=config["task"], dataset=dataset)
    forget = poisoned.manifest.row_numbers(poisoned.data, poisoned.ids)
    retain = np.setdiff1d(np.arange(len(poisoned.data["rewards"])), forget)
    status.say("demo: {} on {} ({:,} transitions); {} poisons {:.0%}; {:,} updates per agent".format(
        cls.name, config["task"], len(data["rewards"]), attack["name"], len(forget) / len(poisoned.data["rewards"]),
        config["updates"]))

    constants = normalization(env, agent["cost_limit"])
    entries, adapters = {}, {}
    for name, arrays, rows in (("clean", data, None), ("poisoned", poisoned.data, None),
                               ("retrained", poisoned.data, retain)):
        manifest = poisoned.manifest if name == "poisoned" else None
        adapter, seconds = trained(os.path.join(out, name), cls, env, agent, arrays, rows=rows, manifest=manifest,
                                   progress=progress)
        entries[name] = dict(scores(evaluate(adapter, config["eval_episodes"], seed, progress, "evaluate " + name),
                                    constants), updates=config["updates"], seconds=seconds)
        adapters[name] = adapter
    reports = {}
    for method in ("fine_tune", "safe_rule"):
        reports[method] = _unlearn(method, config, agent, adapters, poisoned, entries, reports, seed, out, progress)
    return _text(config, entries, reports, constants)


def _unlearn(method, config, agent, adapters, poisoned, entries, reports, seed, out, progress):
    from osrl_unlearn.unlearning import Trained, UnlearnConfig, run_unlearning
    adapter = adapters["poisoned"]
    before = adapter.state()
    trained = Trained(adapter, poisoned.data, poisoned.ids, poisoned.manifest, os.path.join(out, "poisoned"), agent,
                      config["task"], agent["cost_limit"], agent["reward_scale"], agent["cost_scale"],
                      config["updates"], entries["poisoned"]["seconds"], config["batch_size"])
    more = {"clean": entries["clean"]}
    for other, report in reports.items():
        more[other] = _entry(report)
    report, _ = run_unlearning(trained, UnlearnConfig(method, budget=config["budget"], seed=seed,
                                                      eval_episodes=config["eval_episodes"]),
                               progress, adapters["retrained"], more,
                               {name: entries[name] for name in ("poisoned", "retrained")})
    adapter.restore(before)
    return report


def _entry(report):
    return dict(report["unlearned"], updates=report["updates"]["unlearn"], seconds=report["wall_seconds"]["unlearn"])


def _text(config, entries, reports, constants):
    from osrl_unlearn.evaluate.report import format_table, normalization_text
    from osrl_unlearn.evaluate.statistics import paired_difference
    rows = dict(entries, **{name: _entry(report) for name, report in reports.items()})
    interval = lambda s: "{:.1f} [{:.1f}, {:.1f}]".format(s["mean"], *s["ci95"])  # noqa: E731
    table = format_table(
        [[name, interval(e["reward"]), interval(e["cost"]), "{:.2f}".format(e["normalized_reward"]),
          "{:.2f}".format(e["normalized_cost"]), "{:,}".format(e["updates"]), "{:.0f}".format(e["seconds"])]
         for name, e in rows.items()],
        ["agent", "reward", "cost", "norm. reward", "norm. cost", "updates", "seconds"])
    harm = paired_difference(entries["poisoned"]["episodes"]["cost"], entries["clean"]["episodes"]["cost"])
    bound = max(constants["cost_limit"], entries["retrained"]["cost"]["mean"])
    result = rows["safe_rule"]
    kept = result["reward"]["mean"] / entries["retrained"]["reward"]["mean"]
    checks = [
        ("the attack harms", harm["ci95"][0] > 0,
         "poisoned - clean cost: {:.1f} [{:.1f}, {:.1f}]".format(harm["mean"], *harm["ci95"])),
        ("the cost is within the limit or the retrained agent's", result["cost"]["mean"] <= bound,
         "{:.1f}, bound {:.1f}".format(result["cost"]["mean"], bound)),
        ("at least 90 % of the retrained agent's reward is kept", kept >= 0.9, "{:.0%}".format(kept)),
        ("at most 5 % of the training updates", result["updates"] <= 0.05 * config["updates"],
         "{:.1%}".format(result["updates"] / config["updates"]))]
    lines = ["", table, "", "Per episode: mean [95 % interval] of {} paired episodes. Cost limit {}.".format(
        config["eval_episodes"], config["agent"]["cost_limit"]), normalization_text(constants), "", "safe_rule:"]
    lines += ["  {:3} {} ({})".format("yes" if good else "NO", claim, figure) for claim, good, figure in checks]
    return "\n".join(lines)
