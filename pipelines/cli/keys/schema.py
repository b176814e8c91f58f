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
        infinite: whether `inf` is accepted. `nan` never is.
        items: values of the entries of a list; `None` accepts any.
        pattern: regular expression of the whole text, and a description of the text; `None` accepts any text.

    """

    types: tuple[type, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[bool | int | str, ...] = ()
    nullable: bool = False
    is_component: bool = False
    infinite: bool = False
    items: Field | None = None
    pattern: tuple[str, str] | None = None


MAX_WIDTH = 100_000
"""Larger layers do not fit into memory."""

FLAG = Field((bool,))
COUNT = Field((int,), minimum=1)
NATURAL = Field((int,), minimum=0)
NUMBER = Field((float,))
NOT_NEGATIVE = Field((float,), minimum=0)
POSITIVE = Field((float,), above=0)
FRACTION = Field((float,), minimum=0, maximum=1)
TEXT = Field((str,))
LIST = Field((list,))
TEXTS = Field((list,), items=Field((str,), pattern=(r"\D.*", "a name")))
GROUP = Field((dict,))
NULLABLE_COUNT = COUNT._replace(nullable=True)
NULLABLE_POSITIVE = POSITIVE._replace(nullable=True)
COMPONENT = GROUP._replace(is_component=True)
NULLABLE_COMPONENT = COMPONENT._replace(nullable=True)
COMPONENTS = Field((list,), items=COMPONENT)
WIDTH = COUNT._replace(maximum=MAX_WIDTH)
WIDTHS = Field((list,), items=WIDTH)
LIMIT = POSITIVE._replace(infinite=True)

ENV_ID = r"(?!\d+$)(?:[\w.-]+:)?(?:[\w:-]+/)?[\w:.-]*\w"
"""An id of Gymnasium, with or without `module:`, or the dotted path of a class or function."""
FOLDER = r"[^\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]+"
"""Any text without control characters."""

FIELDS: dict[str, Field] = {
    "seed": NATURAL,
    "total_frames": COUNT._replace(maximum=10**15),
    "run_dir": TEXT._replace(nullable=True, pattern=(FOLDER, "a folder")),
    "num_threads": COUNT._replace(maximum=1024),
    "compile": Field(choices=(True, False, "auto", "trace")),
    "logger": GROUP,
    "intrinsic": GROUP,
    "trust_region": GROUP,
    "transforms": COMPONENTS,
    "critic.epochs": NULLABLE_COUNT,
    "critic.lmbda": FRACTION._replace(nullable=True),
    "critic.optimizer": GROUP,
    "critic.head.num_bins": WIDTH,
    "critic.head.v_min": NUMBER,
    "critic.head.v_max": NUMBER,
    "critic.head.sigma_ratio": NOT_NEGATIVE,
    "critic.head.symlog": FLAG,
    "critic.head.delta": POSITIVE,
    "critic.head.beta": Field((float,), minimum=0, below=1),
    "ppo.max_grad_norm": LIMIT,
    "ppo.max_skipped_steps": COUNT,
    "ppo.normalize_advantage": Field(choices=("rollout", "minibatch"), nullable=True),
    "ppo.critic_optimizer": GROUP,
    "ppo.value_pretraining": NATURAL,
    "ppo.reward_normalizer": NULLABLE_COMPONENT,
    "ppo.reward_normalizer.limit": LIMIT,
    "ppo.reward_normalizer.gamma": FRACTION,
    "ppo.reward_normalizer.clip": LIMIT,
    "checkpoint.every_seconds": NULLABLE_POSITIVE,
    "checkpoint.every_frames": NULLABLE_COUNT,
    "resume.auto": FLAG,
    "resume.require_exact": FLAG,
    "eval.every_frames": NULLABLE_COUNT,
    "eval.stop_at": NUMBER._replace(nullable=True),
    "eval.episodes": NATURAL._replace(maximum=10**6),
    "eval.max_steps": NULLABLE_COUNT,
    "eval.env": GROUP,
    "eval.video": FLAG,
    "env.num_envs": COUNT._replace(maximum=10**6),
    "env.num_workers": NATURAL._replace(choices=("auto",)),
    "env.step_timeout": POSITIVE,
    "env.on_failure": Field(choices=("raise", "restart")),
    "env.max_restarts": COUNT,
    "env.id": Field((str, dict), pattern=(ENV_ID, "an id such as CartPole-v1 or my_module:MyEnv-v0")),
    "env.wrappers": COMPONENTS,
    "env.info_keys": TEXTS,
    "env.render_mode": Field((str,), pattern=(r"[a-z]\w*", "a mode such as rgb_array"), nullable=True),
    "collector.frames_per_env": COUNT,
    "collector.num_workers": COUNT._replace(maximum=1024),
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
    "estimator.rho_thresh": LIMIT,
    "estimator.c_thresh": LIMIT,
    "policy.head.log_std": NUMBER,
    "policy.head.state_dependent": FLAG,
    "policy.head.num_steps": COUNT,
    "policy.head": COMPONENT,
    "policy.body": COMPONENT,
    "policy.critic_body": NULLABLE_COMPONENT,
    "policy.actor_observations": TEXTS._replace(nullable=True),
    "policy.critic_observations": TEXTS._replace(nullable=True),
    "policy.body.num_cells": WIDTHS,
    "policy.body.activation": Field(choices=("tanh", "relu", "elu", "gelu", "silu")),
    "policy.body.layer_norm": FLAG,
    "policy.body.num_features": WIDTH,
    "policy.body.channels": WIDTHS,
    "policy.memory": NULLABLE_COMPONENT,
    "policy.memory.width": WIDTH,
    "policy.memory.num_layers": COUNT._replace(maximum=1000),
    "policy.memory.num_heads": WIDTH,
    "policy.memory.context_length": WIDTH,
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
    "objective.clip_epsilon": Field((float, list), above=0, infinite=True, items=LIMIT),
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
    "trainer.accelerator": Field((dict,), choices=("auto", "cpu", "gpu", "cuda", "mps", "tpu")),
    "trainer.devices": Field(
        (int, list, str), minimum=-1, maximum=10_000, items=NATURAL, pattern=(r"auto|-1|\d+(,\d+)*", "auto or '0,1'")
    ),
    "trainer.strategy": Field((str, dict), pattern=(r"auto|single_\w+|ddp\w*", "auto or ddp")),
    "trainer.precision": Field(
        choices=("32-true", "bf16-mixed", "16-mixed", "32", 32, "16", 16, "bf16"), nullable=True
    ),
    "trainer.max_epochs": Field((int,), minimum=-1, nullable=True),
    "trainer.log_every_n_steps": NATURAL._replace(nullable=True),
    "trainer.enable_checkpointing": FLAG._replace(nullable=True),
    "trainer.enable_model_summary": FLAG._replace(nullable=True),
    "trainer.enable_progress_bar": FLAG._replace(nullable=True),
    "trainer.use_distributed_sampler": FLAG,
    "trust_region.mean_bound": POSITIVE,
    "trust_region.cov_bound": POSITIVE,
    "trust_region.alpha": NOT_NEGATIVE,
    "update.epochs": COUNT,
    "update.critic_epochs": NULLABLE_COUNT,
    "update.minibatch_size": COUNT,
    "update.sequence_length": NULLABLE_COUNT,
    "update.burn_in": NATURAL,
    "update.target_kl": NULLABLE_POSITIVE,
    "update.recompute_advantage": FLAG,
    "update.cg_steps": COUNT._replace(maximum=1000),
    "update.damping": NOT_NEGATIVE,
    "update.line_search_steps": NATURAL._replace(maximum=1000),
    "update.backtrack": Field((float,), above=0, below=1),
    "update.num_rollouts": COUNT._replace(maximum=10_000),
    "update.auxiliary_epochs": COUNT,
    "update.beta_clone": NOT_NEGATIVE,
    "update.auxiliary_lr": NOT_NEGATIVE,
}
"""The values of every key in `conf/`. `*` stands for one name. A new key needs a line here and a comment in YAML."""

ARGUMENTS: dict[str, Field] = {
    "env.max_episode_steps": NULLABLE_COUNT,
    "optimizer.amsgrad": FLAG,
    "optimizer.betas": Field((list,), items=Field((float,), minimum=0, below=1)),
    "optimizer.capturable": FLAG,
    "optimizer.differentiable": FLAG,
    "optimizer.foreach": FLAG._replace(nullable=True),
    "optimizer.fused": FLAG._replace(nullable=True),
    "optimizer.maximize": FLAG,
    "trainer.benchmark": FLAG._replace(nullable=True),
    "trainer.callbacks": COMPONENTS._replace(nullable=True),
    "trainer.detect_anomaly": FLAG,
    "trainer.deterministic": Field(choices=(True, False, "warn"), nullable=True),
    "trainer.limit_train_batches": Field((float,), minimum=0, nullable=True),
    "trainer.max_steps": Field((int,), minimum=-1),
    "trainer.max_time": Field((str, dict), pattern=(r"\d\d:\d\d:\d\d:\d\d", "DD:HH:MM:SS"), nullable=True),
    "trainer.min_epochs": NATURAL._replace(nullable=True),
    "trainer.min_steps": NATURAL._replace(nullable=True),
    "trainer.num_nodes": COUNT._replace(maximum=10_000),
    "trainer.plugins": Field((dict, list), items=COMPONENT, nullable=True),
    "trainer.profiler": Field((dict,), choices=("simple", "advanced", "pytorch"), nullable=True),
    "trainer.sync_batchnorm": FLAG,
}
"""The values of arguments of built-in components that `conf/` does not set, such as `+optimizer.betas=[0.9,0.99]`."""
