"""Make a task's environment and load its data as OSRL's scripts do."""
import contextlib
import os
import random
import sys
import tempfile

import numpy as np

from osrl_unlearn.data.dataset import check_arrays, check_file, resolve
from osrl_unlearn.errors import EnvironmentProblem
from osrl_unlearn.hooks import compat
from osrl_unlearn.registry import nearest

# An optional requirement of OSRL, which goes on without it until it is used.
OAPACKAGE = ("OApackage is not installed: OSRL needs it for BC in mode 'frontier', and for CDT with augment_percent "
             "above 0 unless random_aug or pf_only is given; run python -m pip install oapackage, or choose another "
             "bc_mode, or --augment_percent 0")
TRAJECTORY = "_osrl_unlearn_trajectory"  # a column that rides along through DSRL's filters


def lacks_oapackage(error):
    """Whether a script failed because OSRL used OApackage, which it had gone on without."""
    return isinstance(error, NameError) and "'oapackage'" in str(error)


@contextlib.contextmanager
def stdout_to_stderr():
    """What libraries print while they load, in Python or in C, is no result of ours."""
    # Bullet-Safety-Gym redirects C's streams by the names of Python's, so these must be the real ones.
    out, err = sys.__stdout__, sys.__stderr__
    for stream in (sys.stdout, sys.stderr, out, err):
        stream.flush()
    saved = os.dup(out.fileno())
    os.dup2(err.fileno(), out.fileno())
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        out.flush()
        os.dup2(saved, out.fileno())
        os.close(saved)


def make(task, cost_limit, reward_scale=1.0):
    """The offline task, wrapped as in OSRL's scripts. Raises EnvironmentProblem when it cannot be made."""
    compat.install()
    with stdout_to_stderr():
        try:
            import bullet_safety_gym  # noqa: F401 - registers the tasks
            import dsrl  # noqa: F401
            import gymnasium
            import osrl.algorithms  # noqa: F401 - every task is made for one of OSRL's agents
            from dsrl.offline_env import OfflineEnvWrapper, wrap_env
        except ImportError as error:
            raise EnvironmentProblem("{} is not installed: run 'osrl-unlearn doctor' to see what is missing".format(
                error.name or error))
        try:
            env = _old_gym(task) if is_metadrive(task) else gymnasium.make(task)
        except gymnasium.error.Error as error:
            raise EnvironmentProblem("no task '{}': {}".format(task, str(error).splitlines()[0]))
        if not hasattr(env, "set_target_cost"):
            raise EnvironmentProblem("'{}' is no task of DSRL: {}".format(task, nearest(
                task, [name for name in gymnasium.registry if name.startswith("Offline")])))
        env.set_target_cost(cost_limit)
        return OfflineEnvWrapper(wrap_env(env, reward_scale=reward_scale))


def is_metadrive(task):
    """Whether a task is one of MetaDrive's, which DSRL registers with old gym."""
    return "metadrive" in task.lower()


def _old_gym(task):
    import gym
    if not np.__version__.startswith("1."):
        raise EnvironmentProblem("{}: old gym, which DSRL registers MetaDrive's tasks with, fails with NumPy {}: run "
                                 "python -m pip install 'numpy<2'".format(task, np.__version__))
    try:
        import metadrive  # noqa: F401
        return gym.make(task)
    except ImportError as error:
        raise EnvironmentProblem("{}: MetaDrive is not installed ({}); DSRL's README says which version it "
                                 "needs".format(task, error))
    except gym.error.Error as error:
        raise EnvironmentProblem("no task '{}': {}".format(task, str(error).splitlines()[0]))


def start_episode(env, seed):
    """Reset ``env`` so that its next episode is the one of ``seed``, as far as the environment lets itself be seeded.

    Safety-Gymnasium seeds an environment once, at construction. Bullet tasks ignore the seed and draw from NumPy's
    global generator. MetaDrive's seeds are numbers of scenarios, of which DSRL's tasks have one; its traffic is
    drawn from a generator that nobody seeds. It has one engine per process, which only one environment can hold.
    """
    base = env.unwrapped
    spec = getattr(base, "spec", None)
    if spec is None or not is_metadrive(spec.id):
        base.reset(seed=seed)
        return
    from metadrive.engine.engine_utils import close_engine, get_engine
    if base.engine is None or base.engine is not get_engine():
        close_engine()
    base.reset(seed=base.config["start_seed"] + seed % base.config["environment_num"])
    base.engine.traffic_manager.np_random = np.random.RandomState(seed)


def find_dataset(env, chosen=None):
    """The file of ``env``'s dataset, checked against the task's spaces. Raises DataError."""
    base = env.unwrapped
    task = base.spec.id if base.spec else type(base).__name__
    path = resolve(task, base.dataset_url, base.dataset_filepath if base.dataset_url else None, chosen)
    check_file(path, task, base.observation_space.shape, base.action_space.shape)
    return path


def load(env, config, dataset=None, python_random=None):
    """Read and pre-process the dataset as OSRL's scripts do with ``config``.

    Returns (data, trajectory id of each row). ``python_random`` is the state of Python's generator that DSRL's density
    filter drew from; by default the one that OSRL's ``seed_all`` leaves.
    """
    from osrl_unlearn.data.trajectories import TrajectoryIndex
    path = find_dataset(env, dataset)
    with stdout_to_stderr():
        data = env.unwrapped.get_dataset(path)
        check_arrays(data, path)
        data[TRAJECTORY] = TrajectoryIndex(data).row_ids()
        keys = ("outliers_percent", "noise_scale", "inpaint_ranges", "epsilon", "density")
        options = {key: config[key] for key in keys if config.get(key) is not None}
        if options.get("density", 1.0) != 1.0:
            from dsrl.infos import DENSITY_CFG
            density = DENSITY_CFG["{}_density{}".format(config["task"], options["density"])]
            options.update({key: density[key] for key in ("cbins", "rbins", "max_npb", "min_npb")})
        before = random.getstate()
        if python_random is None:
            random.seed(config.get("seed", 0))
        else:
            random.setstate(python_random)
        try:
            with _elsewhere():
                data = env.unwrapped.pre_process_data(data, **options)
        finally:
            random.setstate(before)
    return data, data.pop(TRAJECTORY)


@contextlib.contextmanager
def _elsewhere():
    """DSRL's pre_process_data writes a plot into the current folder and never closes the figure."""
    import matplotlib
    matplotlib.use(os.environ.get("MPLBACKEND", "Agg"))
    import matplotlib.pyplot as plt
    open_before, here = set(plt.get_fignums()), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
            for number in set(plt.get_fignums()) - open_before:
                plt.close(number)
