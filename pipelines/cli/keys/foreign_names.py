"""Translates option names of other libraries to keys of torchppo."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from ....errors import ConfigurationError

NAMES = {
    "optimizer.lr=*": "lr learning_rate policy_lr pi_lr actor_lr step_size",
    "+critic.optimizer.lr=*": "critic_lr vf_lr value_lr",
    "optimizer.eps=*": "adam_eps adam_epsilon optimizer_eps",
    "optimizer=adamw optimizer.weight_decay=*": "weight_decay",
    "controller@controller.lr=linear": "anneal_lr lr_schedule lr_anneal use_linear_lr_decay learning_rate_schedule",
    "controller@controller.lr=kl_adaptive controller.lr.target_kl=*": "desired_kl kl_threshold",
    "collector.frames_per_env=*": "n_steps num_steps nsteps rollout_length horizon horizon_length num_steps_per_env "
    "steps_per_env steps_per_epoch rollout_fragment_length unroll_length num_transitions_per_env n_rollout_steps "
    "rollout_steps",
    "collector.frames_per_env=... (steps of each of the env.num_envs environments)": "train_batch_size buffer_size "
    "train_batch_size_per_learner step_per_collect",
    "update.minibatch_size=*": "batch_size minibatch_size mini_batch_size sgd_minibatch_size",
    "update.minibatch_size=... (frames of one minibatch)": "num_minibatches num_mini_batches n_minibatches "
    "nminibatches num_batches num_mini_batch",
    "update.epochs=*": "n_epochs num_epochs epochs update_epochs num_sgd_iter num_learning_epochs ppo_epochs ppo_epoch "
    "k_epochs noptepochs mini_epochs repeat_per_collect train_iters",
    "estimator.gamma=*": "gamma discount discount_factor discounting",
    "estimator.lmbda=*": "gae_lambda gae_lmbda lam lambda lambda_ lmbda tau",
    "objective.entropy_coeff=*": "ent_coef ent_coeff entropy_coef entropy_coeff entropy_coefficient entropy_cost "
    "entropy_weight",
    "objective.critic_coeff=*": "vf_coef vf_coeff vf_loss_coeff value_loss_coef value_coef value_coeff critic_coef "
    "critic_coeff",
    "objective.clip_epsilon=*": "clip_range clip_coef clip_param clip clip_eps clip_epsilon clip_ratio cliprange "
    "eps_clip e_clip",
    "objective.clip_value=...": "clip_range_vf clip_vloss vf_clip_param use_clipped_value_loss clip_value value_clip",
    "ppo.max_grad_norm=*": "max_grad_norm grad_clip grad_norm gradient_clip gradient_clip_val clip_grad_norm",
    "ppo.normalize_advantage=rollout, minibatch or null": "norm_adv normalize_advantage normalize_advantages "
    "advantage_normalization",
    "update.target_kl=*": "target_kl kl_target max_kl",
    "total_frames=*": "total_timesteps timesteps total_time_steps n_timesteps num_timesteps total_steps max_steps "
    "num_env_steps total_env_steps max_timesteps timesteps_total",
    "total_frames=... (environment steps)": "max_iterations num_iterations num_updates max_epochs max_epoch iterations",
    "env.num_envs=*": "n_envs num_envs num_env nenvs",
    "env.num_workers=*": "num_workers n_workers num_env_runners n_jobs num_cpus",
    "env.id=*": "env_id env_name gym_id environment task env",
    "seed=*": "seed random_seed",
    "num_threads=*": "num_threads torch_num_threads",
    "trainer.accelerator=cpu or cuda": "device cuda gpu accelerator use_cuda use_gpu rl_device",
    "trainer.devices=*": "gpus devices num_gpus",
    "trainer.precision=*": "precision",
    "policy.body.num_cells=[64,64]": "policy_kwargs net_arch hidden_sizes hidden_dims hidden_size fcnet_hiddens "
    "num_cells actor_hidden_dims critic_hidden_dims hidden_layers",
    "policy.body.activation=*": "activation activation_fn fcnet_activation",
    "policy=gru, lstm or transformer": "use_lstm recurrent lstm use_recurrent_policy",
    "policy.head.log_std=...": "log_std_init init_noise_std log_std",
    "head=gsde": "use_sde sde",
    "head=gsde policy.head.num_steps=*": "sde_sample_freq",
    "policy.shared=*": "shared vf_share_layers share_features_extractor",
    "policy.normalize_observation=true or reward=normalized": "normalize norm normalize_env",
    "policy.normalize_observation=true": "norm_obs normalize_observation normalize_observations normalize_obs "
    "empirical_normalization observation_filter normalize_input",
    "reward=normalized": "norm_reward normalize_reward normalize_rewards reward_scaling",
    "reward=clipped": "clip_reward clip_rewards reward_clip",
    "torchppo resume RUN, which continues a run": "resume resume_from resume_from_checkpoint "
    "checkpoint ckpt ckpt_path load load_model load_path restore restore_path pretrained pretrained_model",
    "logger=[csv,wandb]": "wandb track use_wandb wandb_project_name wandb_entity wandb_project",
    "logger=[csv,tensorboard]": "tensorboard tensorboard_log tb_log",
    "eval.video=*": "capture_video record_video video save_video",
    "eval.every_frames=*": "eval_freq eval_interval eval_frequency evaluation_interval eval_every",
    "checkpoint.every_frames=...": "save_freq save_interval checkpoint_freq save_every save_model",
    "eval.episodes=*": "n_eval_episodes eval_episodes num_eval_episodes evaluation_num_episodes evaluation_duration",
    "run_dir=*": "log_dir logdir log_folder output_dir save_path save_dir out_dir exp_dir results_dir",
    "run_dir=runs/*": "exp_name run_name experiment_name tb_log_name",
}
"""Our overrides, and the names of these options in other libraries, separated by spaces. `*` stands for the value."""


def in_our_words(name: str, value: Any, known: Collection[str]) -> str:
    """Return our override for an option of another library, such as `optimizer.lr=0.001`, or an empty string.

    Args:
        name: name of the option, such as `learning_rate`, `--learning-rate` or `ppo.learning_rate`.
        value: value of the option; `None` if it is unknown.
        known: all keys of torchppo.

    """
    text = (
        "..."
        if value is None or isinstance(value, dict)
        else str(value).lower()
        if value in (True, False)
        else str(value)
    )
    name = name.strip("-").replace("-", "_")
    if name in known:
        return f"{name}={text}"
    last = name.rpartition(".")[2].lower()
    for ours, names in NAMES.items():
        if last in names.split():
            return ours.replace("*", text)
    same = [key for key in known if key.endswith(f".{last}") and "*" not in key]
    return f"{same[0]}={text}" if len(same) == 1 else ""


EVAL_OPTIONS = {
    "--episodes *": "episodes eval.episodes n_eval_episodes eval_episodes num_eval_episodes num_episodes n_episodes",
    "--seed *": "seed eval.seed random_seed",
    "--video *": "video_path eval.video_path",
    "--no-video": "eval.video capture_video record_video save_video video",
    "--video-episodes *": "video_episodes num_videos",
    "--render human": "render_mode render",
    "--stochastic, without which the actions are deterministic": "deterministic stochastic eval.deterministic sample",
    "eval.max_steps=*": "max_steps max_episode_steps",
}
"""Options of `torchppo eval`, and the names by which users may look for them, separated by spaces."""


def eval_option(name: str, value: str | None) -> str:
    """Return the option of `torchppo eval` for an override or an option of another library, or an empty string."""
    name = name.lstrip("-+").replace("-", "_")
    for ours, names in EVAL_OPTIONS.items():
        if name in names.split():
            return ours.replace("*", value or "...")
    return ""


def check_eval_overrides(overrides: Iterable[Override]) -> None:
    """Raise a ConfigurationError for an override of `torchppo eval` that is one of its options."""
    for override in overrides:
        if option := eval_option(override.key_or_group, str(override.input_line).partition("=")[2]):
            raise ConfigurationError(f"{override.input_line} is an option of torchppo eval; write {option}")


def override_for(word: str, words: Sequence[str], known: Collection[str]) -> str:
    """Return what to write instead of an unknown option such as `--total-timesteps`, or an empty string.

    Args:
        word: the option.
        words: all words of the command line.
        known: all keys of torchppo.

    """
    name, has_value, value = word.partition("=")
    following = [value] if has_value else list(words[words.index(word) + 1 :][:1])
    given = following[0] if following and following[0][:1] != "-" else None
    return eval_option(name, given) if words[:1] == ["eval"] else in_our_words(name, given, known)
