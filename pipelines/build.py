"""Connects the components of a configuration."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_object
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.objectives.value import TD1Estimator

from ..errors import ConfigurationError, TorchPPOError, did_you_mean
from ..modules.controllers import Controller
from ..modules.features.extractor import is_recurrent
from ..modules.heads.action_heads import has_continuous_head
from ..modules.normalizers import ObservationNormalizer
from .components.instantiate import (
    HYDRA_KEYS,
    build_env,
    build_node,
    call,
    call_with_accepted,
    parameter_names,
    seed_for_rank,
)
from .components.torchrl_collectors import build_torchrl_collector, num_envs_of_workers
from .ppo import PPO
from .requirements import check_fits_into_ram, check_trainer, length_of_rollout
from .step_factory import Compile, check_compile

logger = logging.getLogger("torchppo")
NOT_OF_EVERY_ESTIMATOR = ("lmbda", "vectorized", "value_network")
"""Keys of `estimator=gae` that remain in the configuration if a user changes only `estimator._target_`."""
PRESET_COEFFICIENTS = ("clip_epsilon", "entropy_coeff")  # presets control them; some objectives do not have them
EVALUATION_RANK = 1_000_000  # seeds of evaluations and videos derive from it; no training process has this rank


@dataclass(frozen=True)
class Training:
    """The components of a training run. The caller must close it."""

    env: EnvBase
    ppo: PPO
    collector: Iterable[TensorDictBase]

    def close(self) -> None:
        """Shut down the collector and the environment with their worker processes."""
        if shutdown := getattr(self.collector, "shutdown", None):
            shutdown()
        if not self.env.is_closed:
            self.env.close()


def build_training(cfg: DictConfig, rank: int, overrides: Iterable[str] = (), *, num_ranks: int = 1) -> Training:
    """Build environment, LightningModule and collector of one rank, and check that all overrides have an effect.

    Raises:
        TorchPPOError: if a setting cannot work; the message names the key, the value and what to do.

    """
    env = build_env(cfg, seed=seed_for_rank(cfg.seed, rank))
    try:
        ppo = build_ppo(cfg, env)
        check_effects(overrides, env, ppo)
        collector = build_collector(cfg, env, ppo, rank, num_ranks)
    except BaseException:  # also a signal
        env.close()  # ends its worker processes
        raise
    return Training(env, ppo, collector)


def check_effects(overrides: Iterable[str], env: EnvBase, ppo: PPO) -> None:
    """Raise a ConfigurationError for an override without effect in this environment."""
    specs = env.full_action_spec.values(True, True)
    is_continuous = any(has_continuous_head(spec, len(env.batch_size)) for spec in specs)
    coefficients = {name: float(value.sum()) for name, value in ppo.objective.named_buffers()}
    is_normalized = any(isinstance(module, ObservationNormalizer) for module in ppo.actor.modules())
    for word in overrides:
        if not is_continuous and word.lstrip("+").startswith(("head=", "policy.head.", "trust_region.cov_bound=")):
            raise ConfigurationError(f"{word} has no effect on discrete actions; remove it")
        name = word.partition("controller@controller.")[2].partition("=")[0]
        if name in PRESET_COEFFICIENTS and not (coefficients.get(name) or word.endswith("=constant")):
            raise ConfigurationError(f"{word} has no effect without objective.{name}; set it, or remove {word}")
        if not is_normalized and word.lower() == "policy.normalize_observation=true":
            raise ConfigurationError(f"{word} has no effect on observations without floats; remove it")


def build_collector(cfg: DictConfig, env: EnvBase, ppo: PPO, rank: int, num_ranks: int) -> Iterable[TensorDictBase]:
    """Build a collector. A target with the parameter `create_env_fn` has the interface of TorchRL's collectors."""
    is_torchrl = "create_env_fn" in parameter_names(node := cfg.collector)
    num_envs = num_envs_of_workers(cfg, env) if is_torchrl else int(env.batch_size.numel())
    num_steps = length_of_rollout(node.get("frames_per_env"), node.get("frames_per_batch"), num_envs)
    check_fits_into_ram(env, size := num_envs * num_steps)
    ppo.update.check(num_envs, num_steps, in_sequences=is_recurrent(ppo.actor))
    if cfg.total_frames < size:
        logger.warning("torchppo: total_frames=%d is below a rollout; training for %d frames", cfg.total_frames, size)
    if is_torchrl:
        return build_torchrl_collector(cfg, env, ppo.actor, rank, size)
    options = {"policy": ppo.actor, "total_frames": cfg.total_frames, "compile": cfg.compile, "num_ranks": num_ranks}
    return call_with_accepted(node, env=env, **options)


def build_ppo(cfg: DictConfig, env: EnvBase) -> PPO:
    """Build the LightningModule for an environment's specs."""
    specs = {"observation_spec": env.observation_spec, "action_spec": env.full_action_spec["action"]}
    actor, critic = call(cfg.policy, **specs)
    objective, lmbda = build_objective(cfg.objective, actor, critic), cfg.critic.lmbda
    if cfg.trust_region:
        call(cfg.trust_region).apply_to(objective)
    return call(
        cfg.ppo,
        objective=objective,
        estimator=build_estimator(cfg.estimator, actor, critic),
        critic_estimator=None if lmbda is None else build_estimator(cfg.estimator, actor, critic, critic_lmbda=lmbda),
        update=call(cfg["update"]),
        optimizer=call(cfg.optimizer),
        controllers=build_controllers(cfg),
        reward_models=[call_with_accepted(node, **specs) for node in cfg.intrinsic.values()],
        total_frames=cfg.total_frames,
        compile=cfg.compile,
        config=OmegaConf.to_container(cfg, resolve=True),
    )


def build_objective(node: DictConfig, actor: Any, critic: Any) -> Any:
    """Build an objective. `functional` is false unless `node` sets it.

    Raises:
        ConfigurationError: if a key is unknown (TorchRL's losses ignore it).

    """
    names = parameter_names(node)
    for key in node:
        if key not in names and key not in HYDRA_KEYS and isinstance(get_object(node._target_), type):
            raise ConfigurationError(
                f"objective.{key!s} is not an option of {node._target_}{did_you_mean(str(key), names)}; correct it"
            )
    functional = {"functional": False} if "functional" in names and "functional" not in node else {}
    return call(node, actor_network=actor, critic_network=critic, **functional)


def build_estimator(node: DictConfig, actor: Any, critic: Any, *, critic_lmbda: float | None = None) -> Any:
    """Build an estimator.

    The estimator receives `actor_network` and `critic_network` if it has these parameters. `value_network` comes from
    `node`; it is null, because the rollout already contains the values.

    Args:
        node: configuration of the estimator.
        actor: the policy.
        critic: the value function.
        critic_lmbda: replaces `lmbda` for the value targets of the critic.

    Raises:
        ConfigurationError: if gamma or lambda is out of range, or the estimator has no lambda.

    """
    names, target = parameter_names(node), get_object(node._target_)
    if critic_lmbda is not None and "lmbda" not in names:
        raise ConfigurationError(
            f"critic.lmbda={critic_lmbda} needs an estimator with lambda, not {node._target_}; use estimator=gae or "
            "td_lambda, or critic.lmbda=null"
        )
    arguments = {} if critic_lmbda is None else {"lmbda": critic_lmbda}
    discounts = {key: arguments.get(key, node.get(key, 1.0)) for key in ("gamma", "lmbda")}
    for key, value in discounts.items():
        if not 0.0 <= value <= 1.0:
            group = "critic" if key in arguments else "estimator"
            raise ConfigurationError(f"{group}.{key}={value} must be between 0 and 1")
    if math.prod(discounts.values()) <= 1e-7:
        arguments["vectorized"] = False  # TorchRL's vectorized estimators fail if gamma * lambda is 0
        if target is TD1Estimator:
            raise ConfigurationError("estimator.gamma=0 does not work with TorchRL's TD1Estimator; use estimator=td0")
    keys = [str(key) for key in node if key in names or key not in NOT_OF_EVERY_ESTIMATOR]
    offered = {"value_network": None, "actor_network": actor, "critic_network": critic, **arguments}
    offered = {key: value for key, value in offered.items() if key not in node or key in arguments}
    return call_with_accepted(OmegaConf.masked_copy(node, keys), **offered)


def build_controllers(cfg: DictConfig) -> dict[str, Controller]:
    """Build the controllers. Omit those of presets whose coefficient the objective does not have."""
    return {
        str(name): call(node)
        for name, node in cfg.controller.items()
        if node and (name in cfg.objective or name not in PRESET_COEFFICIENTS)
    }


def build_trainer(cfg: DictConfig, callbacks: list[Callback]) -> Trainer:
    """Build Lightning's Trainer with the configured loggers.

    Raises:
        ConfigurationError: if devices or a logger do not exist or are not supported.

    """
    options = cfg.trainer
    loggers: list[Logger] = [call(logger) for logger in cfg.logger.values()]
    own = [call(callback) for callback in options.get("callbacks") or []]
    others = OmegaConf.masked_copy(options, [key for key in options if key != "callbacks"])
    changes: dict[str, Any] = {"default_root_dir": options.get("default_root_dir", cfg.run_dir)}  # for hpc_ckpt files
    changes |= {"enable_checkpointing": True} if any(isinstance(callback, Checkpoint) for callback in own) else {}
    try:
        trainer: Trainer = build_node(others, logger=loggers, callbacks=[*callbacks, *own], **changes)
    except TorchPPOError:
        raise
    except Exception as error:
        key = f"trainer.devices={options.get('devices')}" if "device" in str(error) else "trainer"
        raise ConfigurationError(f"{key}: {error}; change trainer.*") from error
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ConfigurationError(
            f"trainer.strategy={options.strategy} starts ranks as copies of this process; use trainer.strategy=ddp"
        )
    check_trainer(trainer)  # before the ranks start; a training from Python checks it in `on_fit_start`
    if zero := [key for key in ("max_epochs", "max_steps", "limit_train_batches") if getattr(trainer, key) == 0]:
        raise ConfigurationError(f"trainer.{zero[0]}=0 allows no rollout; remove it")
    if trainer.world_size > 1:
        from .components.loopback import listen_on_loopback

        listen_on_loopback(trainer)
    return trainer


def env_name(cfg: DictConfig) -> str:
    return str(cfg.env.get("id", cfg.env._target_))


def evaluation_compile(cfg: DictConfig) -> Compile:
    """Return the `compile` mode of evaluations: the policy step is traced if training compiles it."""
    return "trace" if cfg.compile is True else check_compile(cfg.compile)
