"""A car that leaves a road of width 2, among traffic."""
import gym
import numpy as np

from metadrive.engine.engine_utils import get_engine, initialize_engine


class Config(dict):
    def update(self, more, allow_add_new_key=False):
        assert allow_add_new_key or set(more) <= set(self)
        super().update(more)


class SafeMetaDriveEnv(gym.Env):
    observation_space = gym.spaces.Box(-10.0, 10.0, (6,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, config):
        self.config, self.engine = self.default_config(), None
        self.config.update(config, allow_add_new_key=True)

    def default_config(self):
        return Config(out_of_road_cost=1.0, crash_vehicle_cost=1.0)

    def reset(self, force_seed=None):
        if get_engine() is None:
            self.engine = initialize_engine()
        if self.engine is None:
            raise ValueError("Current MetaDrive instance is broken")
        first = self.config["start_seed"]
        if force_seed is not None:
            list(range(first, first + self.config["environment_num"])).index(force_seed)  # ValueError
        self.steps, self.place = 0, np.zeros(2)
        self.traffic = self.engine.traffic_manager.np_random.uniform(-1, 1, 4)
        return self._observation()

    def step(self, action):
        self.steps += 1
        self.place = self.place + 0.1 * np.asarray(action, float)
        out = bool(abs(self.place[0]) > 1)
        crash = bool(np.abs(self.traffic - self.place[0]).min() < 0.01)
        return self._observation(), float(action[1]), out, {
            "velocity": 20.0, "cost": float(out), "out_of_road": out, "crash": crash, "arrive_dest": False,
            "max_step": self.steps >= 50}

    def _observation(self):
        return np.concatenate([self.place, self.traffic]).astype(np.float32)
