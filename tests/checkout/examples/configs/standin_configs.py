from dataclasses import dataclass, field
from typing import List, Optional, Tuple


@dataclass
class StandinConfig:
    """Settings of all agents; the script picks what its agent takes."""
    agent: str = "bcql"
    task: str = "OfflineBallCircle-v0"
    dataset: Optional[str] = None
    logdir: str = "logs"
    name: str = "standin"
    seed: int = 0
    device: str = "cpu"
    reward_scale: float = 0.1
    cost_scale: float = 1
    density: float = 1.0
    actor_lr: float = 0.001
    critic_lr: float = 0.001
    vae_lr: float = 0.001
    alpha_lr: float = 0.001
    scalar_lr: float = 0.001
    cost_limit: int = 40
    episode_len: int = 200
    batch_size: int = 32
    update_steps: int = 40
    num_workers: int = 0
    a_hidden_sizes: List[int] = field(default_factory=lambda: [16, 16])
    c_hidden_sizes: List[int] = field(default_factory=lambda: [16, 16])
    vae_hidden_sizes: int = 16
    sample_action_num: int = 3
    mmd_sigma: float = 50
    target_mmd_thresh: float = 0.05
    num_samples_mmd_match: int = 3
    kernel: str = "gaussian"
    start_update_policy_step: int = 0
    gamma: float = 0.99
    tau: float = 0.005
    beta: float = 0.5
    phi: float = 0.05
    lmbda: float = 0.75
    PID: List[float] = field(default_factory=lambda: [2.0, 0.06, 0.02])
    qc_scalar: float = 1.5
    num_q: int = 2
    num_qc: int = 2
    f_type: str = "softchi"
    alpha: float = 0.5
    cost_ub_epsilon: float = 0.01
    num_nu: int = 2
    num_chi: int = 2
    bc_mode: str = "multi-task"
    seq_len: int = 5
    embedding_dim: int = 16
    num_layers: int = 1
    num_heads: int = 2
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    embedding_dropout: float = 0.1
    time_emb: bool = True
    use_rew: bool = True
    use_cost: bool = True
    cost_transform: bool = True
    add_cost_feat: bool = False
    mul_cost_feat: bool = False
    cat_cost_feat: bool = False
    action_head_layers: int = 1
    cost_prefix: bool = False
    stochastic: bool = True
    init_temperature: float = 0.2
    learning_rate: float = 0.001
    lr_warmup_steps: int = 30
    loss_cost_weight: float = 0.02
    cost_sample: bool = True
    linear: bool = True
    target_returns: Tuple[Tuple[float, float], ...] = ((700.0, 10), (800.0, 40))
    eval_episodes: int = 1
    eval_every: int = 20
