"""``osrl-unlearn collect``: make an offline dataset in DSRL's HDF5 format.

A fast-safe-rl learner trains online while its cost limit rises step by step, the way DSRL's own data were collected;
FSRL's grid filter keeps trajectories that are spread over the plane of return and cost. The same command gives the
same arrays, on the same machine and package versions. OUT is written only when the run has ended. Ctrl-C writes the
trajectories kept so far to ``OUT.partial.hdf5``, a dataset like any other, and exits with status 130; a run cannot be
resumed: the same command starts anew.
"""
import contextlib
import difflib
import os
import re
import shlex
import sys

import numpy as np

from osrl_unlearn import environments, status
from osrl_unlearn.errors import ConfigError, EnvironmentProblem
from osrl_unlearn.files import atomic_path, check_new, check_writable
from osrl_unlearn.hooks import compat
from osrl_unlearn.options import check_seed

# Agent class, its settings and those of its updates. The Lagrangian gains and the ten episodes for each update are
# those of FSRL's own collection script; the larger steps make do with some hundred thousand environment steps.
COMMON = {"lr": 1e-3, "gamma": 0.97, "lagrangian_pid": (0.05, 0.005, 0.1)}
ALGORITHMS = {"trpol": ("TRPOLagAgent", dict(COMMON, target_kl=0.008), {"batch_size": 99999, "repeat": 4}),
              "ppol": ("PPOLagAgent", dict(COMMON), {"batch_size": 512, "repeat": 4})}
EPISODES_PER_UPDATE = 10
# A policy that became nearly deterministic would stop learning, and its data would be narrow.
MIN_LOG_STD = -1.9
# The cost limits, as shares of the largest cost in DSRL's data: first a safe policy is learned, then it is let go.
LIMIT_SHARES = (0.05, 0.05, 0.05, 0.125, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
PACKAGES = ("fast-safe-rl", "tianshou", "dsrl", "bullet-safety-gym", "safety-gymnasium", "gymnasium", "torch", "numpy")


def add_arguments(parser):
    """Add the options of ``osrl-unlearn collect`` to an argparse parser."""
    parser.add_argument("--task", required=True, help="DSRL task, such as OfflineBallCircle-v0")
    parser.add_argument("--out", required=True, help="HDF5 file to write")
    parser.add_argument("--trajectories", type=int, default=450, help="trajectories to keep (default 450)")
    parser.add_argument("--steps", type=int, help="environment steps (default 6 episodes for each trajectory kept)")
    parser.add_argument("--cost-limits", type=float, nargs="+", metavar="LIMIT",
                        help="cost limits, each in force for an equal part of the steps (default: from 5 to 100 %% of "
                             "the largest cost in DSRL's data of the task)")
    parser.add_argument("--algorithm", choices=sorted(ALGORITHMS), default="trpol",
                        help="TRPO-Lagrangian (trpol, default) or PPO-Lagrangian (ppol)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default 0)")


def main(args):
    """Run ``osrl-unlearn collect``; returns the exit status."""
    try:
        made = collect(args.task, args.out, trajectories=args.trajectories, steps=args.steps,
                       cost_limits=args.cost_limits, algorithm=args.algorithm, seed=args.seed,
                       progress=not status.quiet)
    except KeyboardInterrupt as stop:
        print("interrupted: {}".format(str(stop) or "nothing is written"), file=sys.stderr)
        return 130
    print("{out}: {trajectories} trajectories, {transitions} transitions, return {return_min:.0f} to {return_max:.0f}, "
          "cost {cost_min:.0f} to {cost_max:.0f}".format(**made))
    return 0


def collect(task, out, *, trajectories=450, steps=None, cost_limits=None, algorithm="trpol", seed=0, progress=True):
    """Collect a dataset of ``task`` into the file ``out``; returns a dict that describes it.

    ``cost_limits`` are in force one after the other, each for an equal part of ``steps``. Fewer than ``trajectories``
    are kept if the steps do not suffice for them. Raises ConfigError, EnvironmentProblem, or KeyboardInterrupt.
    """
    out = os.fspath(out)
    _check_options(out, trajectories, steps, cost_limits, algorithm, seed)
    console = sys.stderr
    with environments.stdout_to_stderr():
        env, length, max_cost = _make_env(task, seed)
        steps = steps or 6 * trajectories * length
        cost_limits = [float(limit) for limit in (
            np.multiply(LIMIT_SHARES, max_cost) if cost_limits is None else cost_limits)]
        about = {"task": task, "algorithm": algorithm, "seed": seed, "steps": steps, "cost_limits": cost_limits}
        about["command"] = shlex.join(
            ["osrl-unlearn", "collect", "--task", task, "--out", os.path.basename(out), "--trajectories",
             str(trajectories), "--steps", str(steps), "--cost-limits"] + list(map(repr, cost_limits))
            + ["--algorithm", algorithm, "--seed", str(seed)])
        about["versions"] = _versions()
        kept = _trajectory_buffer(trajectories, max(max_cost, max(cost_limits)))
        try:
            _train(env, kept, steps, cost_limits, algorithm, seed, console if progress else None)
        except KeyboardInterrupt:
            # The filter moves entries in place: one that was interrupted may have left some of them twice.
            unique = list({id(trajectory): trajectory for trajectory in kept.buffer}.values())
            if not unique:
                raise KeyboardInterrupt("no trajectory was complete, nothing is written")
            partial = os.path.splitext(out)[0] + ".partial.hdf5"
            _write(partial, unique, dict(about, partial=True))
            raise KeyboardInterrupt("the trajectories so far ({}) are in {}; nothing was written to {}, and the same "
                                    "command starts anew".format(len(unique), partial, out))
        finally:
            env.close()
        if not kept.buffer:
            raise ConfigError("no trajectory of {} had a cost of at most {:g} in {} steps; raise --steps or "
                              "--cost-limits".format(task, kept.cmax, steps))
        if len(kept.buffer) > trajectories:
            kept.apply_grid_filter()
        return _write(out, kept.buffer, about)


def _check_options(out, trajectories, steps, cost_limits, algorithm, seed):
    for name, value in (("--trajectories", trajectories), ("--steps", steps)):
        if value is not None and value < 1:
            raise ConfigError("{} is {}; expected a whole number of at least 1".format(name, value))
    if cost_limits is not None and not (len(cost_limits) and np.isfinite(cost_limits).all() and min(cost_limits) >= 0):
        raise ConfigError("--cost-limits is {}; expected one or more numbers of at least 0".format(list(cost_limits)))
    if algorithm not in ALGORITHMS:
        raise ConfigError("no algorithm is called {!r}; choose {}".format(algorithm, " or ".join(sorted(ALGORITHMS))))
    check_seed(seed)
    if not out or os.path.isdir(out):
        raise ConfigError("--out {!r}: expected the name of a file".format(out))
    check_new(out)
    check_writable(os.path.dirname(os.path.abspath(out)))


def _make_env(task, seed):
    """The online environment of a DSRL task, its episode length, and the largest cost in DSRL's data."""
    if environments.is_metadrive(task):
        raise EnvironmentProblem("{}: MetaDrive is not supported by collect; choose a "
                                 "Bullet-Safety-Gym or Safety-Gymnasium task".format(task))
    try:
        compat.install()
        import bullet_safety_gym  # noqa: F401  (registers the online tasks)
        import fsrl.agent  # noqa: F401
        import gymnasium as gym
        from dsrl import infos
        from fsrl.utils.exp_util import seed_all
    except ImportError as error:
        raise EnvironmentProblem("collect needs fast-safe-rl, dsrl and bullet-safety-gym: {}".format(error))
    tasks = {}
    for name in gym.registry:
        match = re.match(r"Offline(\w+?)(Gymnasium)?-v\d+$", name)
        # Safety-Gymnasium's own interface (without "Gymnasium" in the name) returns six values from step().
        if match and (match.group(2) or name.replace("-v", "Gymnasium-v") not in gym.registry):
            tasks[name] = match.group(1)
    if task not in tasks:
        near = ([name for name in tasks if name.replace("Gymnasium", "") == task]
                or difflib.get_close_matches(task, tasks, n=3, cutoff=0.3) or sorted(tasks))
        raise ConfigError("collect knows no DSRL task {!r}; nearest: {}".format(task, ", ".join(near)))
    seed_all(seed)
    try:
        offline = gym.make(task, disable_env_checker=True)
        env = gym.make(task.replace("Offline", "Safety", 1), disable_env_checker=True)
        # The MuJoCo tasks take their seed from here, the Bullet tasks from NumPy's global generator.
        env.reset(seed=seed)
    except Exception as error:
        raise EnvironmentProblem("{} cannot be made: {}: {}".format(
            task, type(error).__name__, (str(error).splitlines() or [""])[0][:200]))
    length = infos.DEFAULT_MAX_EPISODE_STEPS[tasks[task]]
    for what, there, here in (
            ("observation space", offline.observation_space, env.observation_space),
            ("action space", offline.action_space, env.action_space),
            ("episode length", length, env.spec.max_episode_steps)):
        if there != here:
            raise EnvironmentProblem("{}: DSRL's {} is {}, but that of {} is {}; install the versions that DSRL "
                                     "names".format(task, what, there, env.spec.id, here))
    offline.close()
    return env, length, infos.MAX_EPISODE_COST[tasks[task]]


def _trajectory_buffer(trajectories, max_cost):
    from fsrl.data import TrajectoryBuffer

    class Buffer(TrajectoryBuffer):
        @staticmethod
        def filter_points(points, target_size):
            points = np.array(points, dtype=float)
            # FSRL divides by the range, which is zero for the costs of a learner that has not met any yet.
            points[0, points.max(0) == points.min(0)] += 1
            return TrajectoryBuffer.filter_points(points, target_size)

    # Without a bound the few wild trajectories of an untrained learner stretch the grid and are all kept.
    return Buffer(trajectories, cmax=1.1 * max_cost)


def _train(env, kept, steps, cost_limits, algorithm, seed, console):
    """Train a learner for ``steps`` steps in ``env``, store its trajectories in ``kept``, show a bar on ``console``."""
    import fsrl.agent
    from fsrl.data import BasicCollector
    from fsrl.utils import DummyLogger
    from tianshou.data import ReplayBuffer
    from tqdm import tqdm
    logger = DummyLogger()
    logger.print = lambda *args, **kwargs: None  # the one method that DummyLogger does not silence
    agent, settings, update = ALGORITHMS[algorithm]
    # One thread: the order of sums in parallel kernels is not fixed.
    policy = getattr(fsrl.agent, agent)(env, logger=logger, cost_limit=cost_limits[0], thread=1, seed=seed,
                                        **settings).policy
    policy.train()
    collector = BasicCollector(policy, env, ReplayBuffer(EPISODES_PER_UPDATE * env.spec.max_episode_steps),
                               exploration_noise=True, traj_buffer=kept)
    done = 0
    with tqdm(total=steps, unit="step", file=console, disable=console is None) as bar:
        while done < steps:
            limit = cost_limits[len(cost_limits) * done // steps]
            # One episode a call: within a call FSRL 0.1.0 starts the next episode from the last observation of the
            # one before, not from the one that reset() gave.
            stats = []
            while len(stats) < EPISODES_PER_UPDATE and done < steps:
                stats.append(collector.collect(n_episode=1))
                done += stats[-1]["n/st"]
                bar.update(min(stats[-1]["n/st"], steps - bar.n))
            cost = float(np.mean([episode["cost"] for episode in stats]))
            bar.set_postfix({"limit": limit, "cost": cost, "return": float(np.mean([s["rew"] for s in stats])),
                             "kept": min(len(kept.buffer), kept.max_trajectory)})
            if done >= steps:
                break
            policy.update_cost_limit(limit)
            policy.pre_update_fn(stats_train={"cost": cost})
            policy.update(0, collector.buffer, **update)
            policy.post_update_fn(stats_train={"cost": cost})
            policy.actor.sigma_param.data.clamp_(min=MIN_LOG_STD)
            collector.reset_buffer(keep_statistics=True)


def _versions():
    from importlib.metadata import PackageNotFoundError, version
    found = ["Python {}.{}.{}".format(*sys.version_info)]
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append("{} {}".format(package, version(package)))
    return ", ".join(found)


def _write(path, trajectories, about):
    """Write trajectories in DSRL's layout, atomically, with ``about`` as file attributes; returns a summary."""
    import h5py
    columns = {name: np.concatenate([np.asarray(trajectory[name]) for trajectory in trajectories]).astype(kind)
               for kind, names in (("float32", ("observations", "next_observations", "actions", "rewards", "costs")),
                                   ("bool", ("terminals", "timeouts"))) for name in names}
    returns, costs = (np.array([np.sum(item[name]) for item in trajectories]) for name in ("rewards", "costs"))
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        # Attributes, because DSRL reads every dataset in the file as a column.
        file.attrs.update(about, trajectories=len(trajectories))
        for name, column in columns.items():
            # A chunk is a piece of one column, because neighbouring values of one quantity compress best.
            chunk = (min(len(column), 1 << 18),) + (1,) * (column.ndim - 1)
            file.create_dataset(name, data=column, compression="gzip", compression_opts=9, shuffle=True, chunks=chunk)
    return {"out": path, "trajectories": len(trajectories), "transitions": len(columns["rewards"]),
            "return_min": returns.min(), "return_max": returns.max(), "cost_min": costs.min(), "cost_max": costs.max()}
