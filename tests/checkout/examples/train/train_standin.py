"""Stands in for OSRL's training scripts: the same steps in the same order, the same bug, several agents in one file."""
import inspect
import os
from dataclasses import asdict

import bullet_safety_gym  # noqa
import dsrl  # noqa
import gymnasium as gym  # noqa
import numpy as np
import pyrallis
import torch
from dsrl.offline_env import OfflineEnvWrapper, wrap_env
from fsrl.utils import TensorboardLogger
from torch.utils.data import DataLoader
from tqdm.auto import trange

from examples.configs.standin_configs import StandinConfig
from osrl.algorithms import (BC, BCQL, BEARL, CDT, CPQ, BCQLTrainer, BCTrainer, BEARLTrainer, CDTTrainer, COptiDICE,
                             COptiDICETrainer, CPQTrainer)
from osrl.common import SequenceDataset, TransitionDataset
from osrl.common.dataset import process_bc_dataset
from osrl.common.exp_util import seed_all

CLASSES = {"bc": (BC, BCTrainer), "bcql": (BCQL, BCQLTrainer), "bearl": (BEARL, BEARLTrainer), "cdt": (CDT, CDTTrainer),
           "cpq": (CPQ, CPQTrainer), "coptidice": (COptiDICE, COptiDICETrainer)}


def fitting(function, settings):
    return {name: settings[name] for name in inspect.signature(function.__init__).parameters if name in settings}


@pyrallis.wrap()
def train(args: StandinConfig):
    logger = TensorboardLogger(args.logdir, log_txt=True, name=args.name)
    logger.save_config(asdict(args), verbose=False)
    seed_all(args.seed)
    torch.set_num_threads(1)

    # The bug of OSRL's scripts: this import makes gym a local name of train().
    if "Metadrive" in args.task:
        import gym
    env = gym.make(args.task)
    data = env.get_dataset()
    env.set_target_cost(args.cost_limit)
    data = env.pre_process_data(data, density=args.density)
    if args.agent == "bc":  # on the bare environment, without scales
        process_bc_dataset(data, args.cost_limit, args.gamma, args.bc_mode)
    else:
        env = OfflineEnvWrapper(wrap_env(env=env, reward_scale=args.reward_scale))

    # BC in mode "multi-task" has the cost as one more observation.
    more = args.agent == "bc" and args.bc_mode == "multi-task"
    coptidice = args.agent == "coptidice"
    if args.agent == "cdt":
        dataset = SequenceDataset(data, seq_len=args.seq_len, reward_scale=args.reward_scale,
                                  cost_scale=args.cost_scale, cost_sample=args.cost_sample,
                                  cost_transform=lambda x: 70 - x)
    elif args.agent == "bc":
        dataset = TransitionDataset(data)
    else:
        dataset = TransitionDataset(data, reward_scale=args.reward_scale, cost_scale=args.cost_scale,
                                    state_init=coptidice)
    batches = iter(DataLoader(dataset, batch_size=args.batch_size, num_workers=args.num_workers))
    settings = dict(asdict(args), state_dim=env.observation_space.shape[0] + more,
                    action_dim=env.action_space.shape[0],
                    max_action=env.action_space.high[0], logger=logger, env=env,
                    target_entropy=-env.action_space.shape[0])
    if coptidice:
        share, obs_std, act_std = dataset.get_dataset_states()
        settings.update(init_state_propotion=share, observations_std=obs_std, actions_std=act_std)
    model_class, trainer_class = CLASSES[args.agent]
    model = model_class(**fitting(model_class, settings))
    logger.setup_checkpoint_fn(lambda: {"model_state": model.state_dict()})
    trainer = trainer_class(model, **fitting(trainer_class, settings))

    best = np.inf
    for step in trange(args.update_steps, desc="Training"):
        batch = [column.to(args.device) for column in next(batches)]
        if coptidice:
            trainer.train_one_step(batch)
        elif args.agent == "bc":
            trainer.train_one_step(batch[0], batch[2])
        else:
            trainer.train_one_step(*batch)
        if (step + 1) % args.eval_every == 0 or step == args.update_steps - 1:
            targets = [target * scale for target, scale in zip(args.target_returns[0], (
                args.reward_scale, args.cost_scale))] if args.agent == "cdt" else []
            reward, cost, length = trainer.evaluate(args.eval_episodes, *targets)
            logger.store(tab="eval", Cost=cost, Reward=reward, Length=length)
            logger.save_checkpoint()
            if cost < best:
                best = cost
                logger.save_checkpoint(suffix="best")
            logger.write(step, display=False)
        else:
            logger.write_without_reset(step)
    if os.environ.get("STANDIN_FAILS"):
        raise SystemExit(int(os.environ["STANDIN_FAILS"]))


if __name__ == "__main__":
    train()
