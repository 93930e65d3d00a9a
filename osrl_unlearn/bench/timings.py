"""How long things take in one process, and on which machine: OSRL's training loop and ours, unlearning and retraining.

What is compared takes turns (A B A B ...), so that whatever else happens on the machine happens to both.
"""
import inspect
import os
import platform
import time

import numpy as np

from osrl_unlearn import environments
from osrl_unlearn.registry import ADAPTERS

PREFETCHED = 2  # batches that a DataLoader holds ready per worker


def compute(cell, out):
    """The result of any cell of ``bench speed``: what its function returns, and "machine" and "others".

    "others" is how many cores other processes kept busy meanwhile, on average; None where the system does not say.
    """
    import torch

    from osrl_unlearn.bench import processes
    measure = {"loop": loop, "unlearning": unlearning, "script": processes.script, "size": processes.size}
    torch.set_num_threads(cell["threads"])
    started, all_before, own_before = time.perf_counter(), _busy(), sum(os.times()[:4])
    result = measure[cell["kind"]](cell, out)
    seconds, others = time.perf_counter() - started, None
    if all_before is not None:
        others = max(0.0, (_busy() - all_before) - (sum(os.times()[:4]) - own_before)) / seconds
    return dict(result, machine=machine(cell.get("agent", {}).get("device", "cpu")), others=others)


def machine(device="cpu"):
    """What the speed depends on: {"cpu", "cores", "usable_cores", "memory_bytes", "gpu", "system"}; no names, no paths.

    What the system does not say is None.
    """
    import torch
    cpu = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        cpu = models[0] if models else cpu
    return {"cpu": cpu, "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "gpu": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else None,
            "system": "{} {}".format(platform.system(), platform.machine())}


def _busy():
    """Seconds that all cores together have worked since the system started, or None where /proc does not say."""
    if not os.path.isfile("/proc/stat"):
        return None
    with open("/proc/stat", encoding="utf-8") as file:
        user, nice, system, _, _, *interrupts = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(interrupts[:2])) / os.sysconf("SC_CLK_TCK")


def _waited(device):
    """The time, when all that the GPU was told to do is done."""
    import torch
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# Loops ----------------------------------------------------------------------------------------------------------------

def loop(cell, out):
    """Seconds per update of OSRL's loop and of ours, with the same agent, and per batch of both.

    cell["agent"] is OSRL's configuration with "name" and "task"; cell["updates"] are timed at a time. OSRL's batches
    are measured with the configuration's workers and with none.

    Returns:
        {"seconds": {"loop", "batch", "batch_alone": {"osrl", "ours": [repetitions]}}}
    """
    config = cell["agent"]
    device, workers = config.get("device", "cpu"), config["num_workers"]
    env = environments.make(config["task"], config["cost_limit"], config.get("reward_scale", 1.0))
    data, _ = environments.load(env, config, cell["path"])
    adapter = ADAPTERS.load(config["name"]).build(config, env, device)
    store = adapter.store(data, config.get("reward_scale", 1.0), config.get("cost_scale", 1.0))
    view = store.view(store.rows, 0, True)
    adapter.set_data_constants(view)
    dataset = osrl_dataset(data, config)
    train, pick = adapter.trainer.train_one_step, arguments(adapter)

    def osrl_batches(number):
        from torch.utils.data import DataLoader
        loader = iter(DataLoader(dataset, batch_size=config["batch_size"], pin_memory=True, num_workers=number))
        return lambda: [column.to(device) for column in next(loader)]

    def osrl_updates():
        draw = osrl_batches(workers)
        return lambda: train(*pick(draw()))

    def our_batches():
        return lambda: view.batch(config["batch_size"])

    def our_updates():
        return lambda: adapter.update(view.batch(config["batch_size"]))

    makers = {("loop", "osrl"): osrl_updates, ("loop", "ours"): our_updates,
              ("batch", "osrl"): lambda: osrl_batches(workers), ("batch", "ours"): our_batches,
              ("batch_alone", "osrl"): lambda: osrl_batches(0), ("batch_alone", "ours"): our_batches}
    found = take_turns(makers, PREFETCHED * workers + 1, cell["updates"], cell["repetitions"], device)
    return {"seconds": {what: {who: found[what, who] for who in ("osrl", "ours")}
                        for what in ("loop", "batch", "batch_alone")}}


def osrl_dataset(data, config):
    """OSRL's dataset of the columns ``data``, made as its script for the agent config["name"] makes it."""
    from osrl.common import dataset as osrl
    data = dict(data)  # both write into the dictionary
    if config["name"] == "cdt":
        known = inspect.signature(osrl.SequenceDataset.__init__).parameters
        options = {name: config[name] for name in known if name in config}
        options["cost_transform"] = (lambda x: 70 - x) if config["linear"] else (lambda x: 1 / (x + 10))
        with environments.stdout_to_stderr():
            return osrl.SequenceDataset(data, **options)
    if config["name"] == "bc":
        osrl.process_bc_dataset(data, config["cost_limit"], config["gamma"], config["bc_mode"])
        return osrl.TransitionDataset(data)
    return osrl.TransitionDataset(data, reward_scale=config["reward_scale"], cost_scale=config["cost_scale"],
                                  state_init=config["name"] == "coptidice")


def arguments(adapter):
    """A function: a batch of OSRL's loader, a list of columns -> the arguments of ``train_one_step``."""
    from osrl_unlearn.data.views import Batch
    asked = list(inspect.signature(adapter.trainer.train_one_step).parameters)
    if asked == ["batch"]:
        return lambda columns: [columns]
    if "states" in asked:  # a batch of sequences has just these
        return lambda columns: columns
    where = [Batch._fields.index(name) for name in asked]
    return lambda columns: [columns[i] for i in where]


def take_turns(makers, warm, count, repetitions, device="cpu"):
    """Seconds per call of several functions: {name: [repetitions]}.

    Args:
        makers: {name: function that returns the function to be timed}. It is made anew for every turn and dropped after
            it: a DataLoader's workers do not work while others are timed.
        warm: calls before the time runs, more than a DataLoader holds ready.
        count: calls that are timed at a time.
    """
    seconds = {name: [] for name in makers}
    for _ in range(repetitions):
        for name, make in makers.items():
            call = make()
            for _ in range(warm):
                call()
            started = _waited(device)
            for _ in range(count):
                call()
            seconds[name].append((_waited(device) - started) / count)
            del call
    return seconds


# Unlearning -----------------------------------------------------------------------------------------------------------

def unlearning(cell, out):
    """Seconds that ``safe_rule`` takes at every share of cell["shares"] to be forgotten, and that retraining takes.

    The agent is that of :func:`~osrl_unlearn.bench.agents.agent`, trained on the clean data; random trajectories are
    forgotten. Preparations (views, the frozen reference, the safety gate) count.

    Returns:
        {"retrain": [repetitions], "shares": [[repetitions] per share], "rows": [forgotten rows per share],
        "updates": {"retrain", "safe_rule"}}
    """
    from osrl_unlearn.bench import agents
    from osrl_unlearn.bench.unlearning import prepared
    from osrl_unlearn.data.manifest import ForgetManifest
    from osrl_unlearn.engine import budget_steps, make_method
    adapter, _, data, ids = agents.agent(cell, out)
    before, order = adapter.state(), np.random.default_rng(cell["seed"]).permutation(np.unique(ids))
    lists = [ForgetManifest.of_trajectories(data, order[:max(1, int(round(share * len(order))))], ids)
             for share in cell["shares"]]
    updates = {"retrain": cell["agent"]["update_steps"], "safe_rule": budget_steps(
        make_method("safe_rule"), cell["agent"]["update_steps"], budget=cell["budget"])}

    def seconds(name, manifest):
        adapter.restore(before)
        started = _waited(adapter.device)
        prepared(adapter, data, ids, manifest, make_method(name), updates[name], cell).run()
        return _waited(adapter.device) - started

    retrain, found = [], [[] for _ in lists]
    for _ in range(cell["repetitions"]):
        retrain.append(seconds("retrain", lists[-1]))
        for times, manifest in zip(found, lists):
            times.append(seconds("safe_rule", manifest))
    return {"retrain": retrain, "shares": found, "rows": [manifest.rows for manifest in lists], "updates": updates}
