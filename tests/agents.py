"""Small OSRL trainers for toy data (observations of size 8, actions of size 2)."""
import contextlib
import os
import sys

import numpy as np

import osrl_unlearn

with contextlib.redirect_stdout(sys.stderr):
    from osrl.algorithms import (BC, BCQL, BEARL, CDT, CPQ, BCQLTrainer, BCTrainer, BEARLTrainer, CDTTrainer,
                                 COptiDICE, COptiDICETrainer, CPQTrainer)

QUICK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "quick")  # for subprocess_environment()
AGENTS = ("bc", "bcql", "bearl", "cdt", "coptidice", "cpq")
WITH_CRITICS = ("bcql", "bearl", "coptidice", "cpq")
COMMON = dict(state_dim=8, action_dim=2, max_action=1.0, a_hidden_sizes=[16, 16], c_hidden_sizes=[16, 16],
              cost_limit=5, episode_len=15)


def make_trainer(name, env=None, device="cpu"):
    """A trainer of the agent ``name`` with networks of 16 units; draws its weights from torch's generator."""
    common, on = dict(COMMON, device=device), dict(device=device)
    if name == "cpq":
        model = CPQ(vae_hidden_sizes=16, sample_action_num=3, num_q=2, num_qc=2, **common)
        return CPQTrainer(model.to(device), env, actor_lr=1e-3, critic_lr=1e-3, reward_scale=0.1, **on)
    if name == "bcql":
        model = BCQL(vae_hidden_sizes=16, sample_action_num=3, PID=[2.0, 0.06, 0.02], num_q=2, num_qc=2, **common)
        return BCQLTrainer(model.to(device), env, actor_lr=1e-3, critic_lr=1e-3, reward_scale=0.1, **on)
    if name == "bc":
        model = BC(state_dim=8, action_dim=2, max_action=1.0, a_hidden_sizes=[16, 16], episode_len=15, **on)
        return BCTrainer(model.to(device), env, actor_lr=1e-3, cost_limit=5, **on)
    if name == "cdt":
        model = CDT(state_dim=8, action_dim=2, max_action=1.0, seq_len=4, episode_len=20, embedding_dim=16,
                    num_layers=1, num_heads=2, attention_dropout=0.1, residual_dropout=0.1, embedding_dropout=0.1,
                    use_rew=True, use_cost=True, stochastic=True, target_entropy=-2)
        return CDTTrainer(model.to(device), env, learning_rate=1e-3, lr_warmup_steps=3, reward_scale=0.1,
                          loss_cost_weight=0.02, **on)
    if name == "bearl":
        model = BEARL(vae_hidden_sizes=16, sample_action_num=3, num_samples_mmd_match=3, PID=[2.0, 0.06, 0.02], num_q=2,
                      num_qc=2, start_update_policy_step=2, **common)
        return BEARLTrainer(model.to(device), env, actor_lr=1e-3, critic_lr=1e-3, reward_scale=0.1, **on)
    model = COptiDICE(f_type="softchi", init_state_propotion=0.07, observations_std=np.ones((1, 8), np.float32),
                      actions_std=np.ones((1, 2), np.float32), num_nu=2, num_chi=2, **common)
    return COptiDICETrainer(model.to(device), env, reward_scale=0.1, **on)


def subprocess_environment(*folders, **more):
    """Variables for a subprocess that imports the same osrl_unlearn, whether installed or in a checkout."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(osrl_unlearn.__file__)))
    return dict(os.environ, PYTHONPATH=os.pathsep.join([package, *folders]), OMP_NUM_THREADS="1",
                WANDB_MODE="disabled", **more)
