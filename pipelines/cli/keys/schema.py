"""Types and ranges of all configuration keys. Their defaults and meanings are in `conf/`; see `reference.py`."""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """The values that a key accepts.

    Attributes:
        types: types of the value. `float` includes whole numbers, and `dict` is a group of any keys.
        minimum: numbers must be at least this.
        maximum: numbers must be at most this.
        above: numbers must be greater than this.
        below: numbers must be less than this.
        choices: other values that are accepted.
        nullable: whether `null` is accepted.
        is_component: whether a group of keys needs a `_target_`.

    """

    types: tuple[type, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[bool | str, ...] = ()
    nullable: bool = False
    is_component: bool = False


FLAG = Field((bool,))
COUNT = Field((int,), minimum=1)
NATURAL = Field((int,), minimum=0)
NUMBER = Field((float,))
NOT_NEGATIVE = Field((float,), minimum=0)
POSITIVE = Field((float,), above=0)
FRACTION = Field((float,), minimum=0, maximum=1)
TEXT = Field((str,))
LIST = Field((list,))
GROUP = Field((dict,))
NULLABLE_LIST = LIST._replace(nullable=True)
NULLABLE_COUNT = COUNT._replace(nullable=True)
NULLABLE_POSITIVE = POSITIVE._replace(nullable=True)
COMPONENT = GROUP._replace(is_component=True)
NULLABLE_COMPONENT = COMPONENT._replace(nullable=True)

FIELDS: dict[str, Field] = {
    "seed": NATURAL,
    "total_frames": COUNT._replace(maximum=10**15),
    "run_dir": TEXT._replace(nullable=True),
    "num_threads": COUNT,
    "compile": Field(choices=(True, False, "auto", "trace")),
    "logger": GROUP,
    "intrinsic": GROUP,
    "transforms": LIST,
    "critic.epochs": NULLABLE_COUNT,
    "critic.lmbda": FRACTION._replace(nullable=True),
    "critic.optimizer": GROUP,
    "critic.head.num_bins": COUNT,
    "critic.head.v_min": NUMBER,
    "critic.head.v_max": NUMBER,
    "critic.head.sigma_ratio": NOT_NEGATIVE,
    "critic.head.symlog": FLAG,
    "critic.head.delta": POSITIVE,
    "critic.head.beta": Field((float,), minimum=0, below=1),
    "ppo.max_grad_norm": POSITIVE,
    "ppo.max_skipped_steps": COUNT,
    "ppo.normalize_advantage": Field(choices=("rollout", "minibatch"), nullable=True),
    "ppo.critic_optimizer": GROUP,
    "ppo.value_pretraining": NATURAL,
    "ppo.reward_normalizer": NULLABLE_COMPONENT,
    "ppo.reward_normalizer.limit": POSITIVE,
    "ppo.reward_normalizer.gamma": FRACTION,
    "ppo.reward_normalizer.clip": POSITIVE,
    "checkpoint.every_seconds": NULLABLE_POSITIVE,
    "checkpoint.every_frames": NULLABLE_COUNT,
    "resume.require_exact": FLAG,
    "eval.every_frames": NULLABLE_COUNT,
    "eval.stop_at": NUMBER._replace(nullable=True),
    "eval.episodes": NATURAL,
    "eval.max_steps": NULLABLE_COUNT,
    "eval.env": GROUP,
    "eval.video": FLAG,
    "env.num_envs": COUNT,
    "env.num_workers": NATURAL._replace(choices=("auto",)),
    "env.step_timeout": POSITIVE,
    "env.on_failure": Field(choices=("raise", "restart")),
    "env.max_restarts": COUNT,
    "env.id": Field((str, dict)),
    "env.wrappers": LIST,
    "env.info_keys": LIST,
    "env.render_mode": TEXT._replace(nullable=True),
    "collector.frames_per_env": COUNT,
    "collector.num_workers": COUNT,
    "collector.trust_policy": FLAG,
    "collector.double_buffer": FLAG,
    "collector.rollouts": NULLABLE_COMPONENT,
    "controller.*": COMPONENT,
    "controller.*.final": NOT_NEGATIVE,
    "controller.*.target_kl": POSITIVE,
    "controller.*.factor": Field((float,), above=1),
    "controller.*.minimum": POSITIVE,
    "controller.*.maximum": POSITIVE,
    "controller.*.gamma": NOT_NEGATIVE,
    "controller.*.num_steps": COUNT,
    "estimator.gamma": FRACTION,
    "estimator.lmbda": FRACTION,
    "estimator.value_network": NULLABLE_COMPONENT,
    "estimator.vectorized": FLAG,
    "estimator.rho_thresh": POSITIVE,
    "estimator.c_thresh": POSITIVE,
    "policy.head.log_std": NUMBER,
    "policy.head.state_dependent": FLAG,
    "policy.head.num_steps": COUNT,
    "policy.head": COMPONENT,
    "policy.body": COMPONENT,
    "policy.critic_body": NULLABLE_COMPONENT,
    "policy.actor_observations": NULLABLE_LIST,
    "policy.critic_observations": NULLABLE_LIST,
    "policy.body.num_cells": LIST,
    "policy.body.activation": Field(choices=("tanh", "relu", "elu", "gelu", "silu")),
    "policy.body.layer_norm": FLAG,
    "policy.body.num_features": COUNT,
    "policy.body.channels": LIST,
    "policy.memory": NULLABLE_COMPONENT,
    "policy.memory.width": COUNT,
    "policy.memory.num_layers": COUNT,
    "policy.memory.num_heads": COUNT,
    "policy.memory.context_length": COUNT,
    "policy.memory.gated": FLAG,
    "policy.shared": FLAG,
    "policy.encoders": GROUP,
    "policy.critic": COMPONENT,
    "policy.normalize_observation": FLAG,
    "intrinsic.count.body": COMPONENT,
    "intrinsic.count.weight": NOT_NEGATIVE,
    "intrinsic.count.gamma": FRACTION,
    "intrinsic.count.lmbda": FRACTION,
    "intrinsic.count.is_episodic": FLAG,
    "logger.csv.save_dir": TEXT,
    "logger.csv.name": TEXT,
    "logger.csv.version": TEXT,
    "logger.tensorboard.save_dir": TEXT,
    "logger.tensorboard.name": TEXT,
    "logger.tensorboard.version": TEXT,
    "logger.mlflow.experiment_name": TEXT,
    "logger.mlflow.tracking_uri": TEXT._replace(nullable=True),
    "logger.wandb.project": TEXT._replace(nullable=True),
    "logger.wandb.save_dir": TEXT,
    "objective.clip_epsilon": Field((float, list), above=0),
    "objective.entropy_coeff": Field((float, dict)),
    "objective.critic_coeff": NOT_NEGATIVE._replace(nullable=True),
    "objective.clip_value": NULLABLE_POSITIVE,
    "objective.beta": NOT_NEGATIVE,
    "objective.dtarg": POSITIVE,
    "objective.increment": Field((float,), minimum=1),
    "objective.decrement": Field((float,), above=0, maximum=1),
    "objective.beta_min": POSITIVE,
    "objective.beta_max": POSITIVE,
    "objective.loss_critic_type": Field(choices=("l1", "l2", "smooth_l1")),
    "objective.normalize_advantage": FLAG,
    "objective.functional": FLAG,
    "optimizer.lr": NOT_NEGATIVE,
    "optimizer.eps": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "trainer.accelerator": TEXT,
    "trainer.devices": Field((int, list, str), minimum=-1),
    "trainer.strategy": Field((str, dict)),
    "trainer.precision": Field((str, int), nullable=True),
    "trainer.max_epochs": Field((int,), minimum=-1, nullable=True),
    "trainer.log_every_n_steps": NATURAL._replace(nullable=True),
    "trainer.enable_checkpointing": FLAG._replace(nullable=True),
    "trainer.enable_model_summary": FLAG._replace(nullable=True),
    "trainer.enable_progress_bar": FLAG._replace(nullable=True),
    "trainer.use_distributed_sampler": FLAG,
    "update.epochs": COUNT,
    "update.critic_epochs": NULLABLE_COUNT,
    "update.minibatch_size": COUNT,
    "update.sequence_length": NULLABLE_COUNT,
    "update.burn_in": NATURAL,
    "update.target_kl": NULLABLE_POSITIVE,
    "update.recompute_advantage": FLAG,
}
"""The values of every key in `conf/`. `*` stands for one name. A new key needs a line here and a comment in YAML."""
