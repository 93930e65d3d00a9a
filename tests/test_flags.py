import subprocess
import sys

import pytest
from agents import subprocess_environment

from osrl_unlearn.errors import ConfigError
from osrl_unlearn.hooks.flags import split_argv

# Every field of the configs of OSRL's training and evaluation scripts, all of which are flags.
OSRL_FIELDS = """
    PID a_hidden_sizes action_head_layers actor_lr add_cost_feat alpha alpha_lr attention_dropout aug_cmax aug_cmin
    aug_rmax aug_rmin augment_percent batch_size bc_mode best beta betas c_hidden_sizes cat_cost_feat cgap clip_grad
    cost_bins cost_limit cost_prefix cost_reverse cost_sample cost_scale cost_transform cost_ub_epsilon costs
    critic_lr cstd dataset deg density device embedding_dim embedding_dropout episode_len epsilon eval_episodes
    eval_every f_type gamma group init_temperature inpaint_ranges kernel learning_rate linear lmbda logdir
    loss_cost_weight loss_state_weight lr_warmup_steps max_rew_decrease max_reward min_reward mmd_sigma
    mul_cost_feat name no_entropy noise_scale npb num_chi num_heads num_layers num_nu num_q num_qc
    num_samples_mmd_match num_workers outliers_percent path pf_only pf_sample phi prefix prob project qc_scalar
    random_aug residual_dropout returns reward_scale rmin rstd sample_action_num scalar_lr seed seq_len
    start_sampling start_update_policy_step stochastic suffix target_mmd_thresh target_returns task tau threads
    time_emb update_steps use_cost use_rew vae_hidden_sizes vae_lr verbose weight_decay
""".split()


def test_flags_before_and_after_the_script():
    line = split_argv(["--poison", "cost_mask", "--unlearn.steps=20", "train.py", "--task", "T", "--poison.rate", "0.1",
                       "pos", "--dataset", "d.hdf5", "--seed=3"])
    assert line.ours == {"poison": "cost_mask", "unlearn.steps": "20", "poison.rate": "0.1", "dataset": "d.hdf5"}
    assert (line.target, line.as_module) == ("train.py", False)
    assert line.rest == ["--task", "T", "pos", "--seed=3"]
    assert not line.help


def test_module():
    line = split_argv(["--unlearn", "retrain", "-m", "a.b", "-m", "x", "--unlearn.k", "v"])
    assert (line.target, line.as_module, line.rest) == ("a.b", True, ["-m", "x"])
    assert line.ours == {"unlearn": "retrain", "unlearn.k": "v"}


def test_nothing_after_two_dashes_is_ours():
    line = split_argv(["s.py", "a", "--", "--poison", "x", "--", "--poisn", "-h"])
    assert line.rest == ["a", "--poison", "x", "--", "--poisn", "-h"]
    assert line.ours == {} and not line.help


def test_the_script_may_stand_after_two_dashes():
    line = split_argv(["--poison", "x", "--", "s.py", "--poison"])
    assert (line.ours, line.target, line.rest) == ({"poison": "x"}, "s.py", ["--poison"])


@pytest.mark.parametrize("argv, target, rest", [
    (["-h"], None, []),
    (["--help", "s.py"], "s.py", []),
    (["s.py", "--help"], "s.py", ["--help"]),  # the script may have a help of its own
])
def test_help(argv, target, rest):
    line = split_argv(argv)
    assert line.help and (line.target, line.rest) == (target, rest)


def test_no_target():
    assert split_argv([]) == ({}, None, False, [], False, False)
    assert split_argv(["--poison", "s.py"]).target is None


@pytest.mark.parametrize("tokens, value", [
    (["-5"], "-5"), (["-1e-3"], "-1e-3"), (["-.5"], "-.5"), (["=-x"], "-x"), (["=a=b"], "a=b"), (["a b"], "a b"),
])
def test_values(tokens, value):
    argv = ["--poison.x" + tokens[0]] if tokens[0].startswith("=") else ["--poison.x"] + tokens
    assert split_argv(argv + ["s.py"]).ours == {"poison.x": value}


@pytest.mark.parametrize("argv", [
    ["s.py", "--poison"], ["--poison", "--unlearn", "x", "s.py"], ["s.py", "--poison", "--", "x"],
    ["--poison=", "s.py"], ["s.py", "--unlearn.steps", "-x"],
])
def test_a_value_is_required(argv):
    with pytest.raises(ConfigError, match="needs a value"):
        split_argv(argv)


def test_twice():
    with pytest.raises(ConfigError, match=r"--poison.rate is given twice \(0.1 and 0.2\)"):
        split_argv(["--poison.rate", "0.1", "s.py", "--poison.rate=0.2"])


@pytest.mark.parametrize("argv, text", [
    (["-x", "s.py"], "unknown flag -x before the script"),
    (["--task", "T", "s.py"], "unknown flag --task before the script"),
    (["--datset", "d", "s.py"], "did you mean --dataset"),
    (["-m"], "-m needs the name of a module"),
    (["-m", "--poison", "x"], "-m needs the name of a module"),
])
def test_wrong_before_the_target(argv, text):
    with pytest.raises(ConfigError, match=text):
        split_argv(argv)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("flag, right", [
    ("--poisn", "--poison"), ("--posion", "--poison"), ("--poisen", "--poison"), ("--Poison", "--poison"),
    ("--unlern", "--unlearn"), ("--unlaern", "--unlearn"), ("--unlearned", "--unlearn"),
    ("--poison_rate", "--poison.rate"), ("--poisonrate", "--poison.rate"), ("--poison-rate=1", "--poison.rate"),
    ("--unlearn-steps", "--unlearn.steps"), ("--unlern.steps", "--unlearn.steps"),
])
def test_typos_name_the_right_flag(flag, right, after):
    argv = ["s.py", flag, "1"] if after else [flag, "1", "s.py"]
    with pytest.raises(ConfigError) as error:
        split_argv(argv)
    assert "did you mean {}?".format(right) in str(error.value)


@pytest.mark.parametrize("name", [name for name in OSRL_FIELDS if name != "dataset"] + ["position", "version", "learn"])
def test_flags_of_training_scripts_pass(name):
    rest = ["--" + name, "1", "--{}=1".format(name), "--{}.x".format(name), "-1", "-" + name[0]]
    assert split_argv(["s.py"] + rest).rest == rest


def test_unknown_options_of_ours_are_left_to_others():
    assert split_argv(["s.py", "--poison.no_such", "1"]).ours == {"poison.no_such": "1"}


def test_other_names():
    line = split_argv(["s.py", "--poison", "x", "--budget", "3"], names=["budget"])
    assert (line.ours, line.rest) == ({"budget": "3"}, ["--poison", "x"])


def test_poison_alone_does_not_load_what_only_unlearning_needs():
    program = ("import sys; from osrl_unlearn import cli; cli._session({'poison': 'cost_hide'}); "
               "print([name for name in ('scipy.stats', 'osrl_unlearn.unlearning') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program], env=subprocess_environment(), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.stdout.strip() == "[]", done.stderr
