"""Builds objects from a configuration. No other file calls Hydra's `instantiate`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from omegaconf import DictConfig, ListConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.envs import Compose, EnvBase, TransformedEnv, VecNorm, VecNormV2
from torchrl.objectives import LossModule

from ..envs import VectorEnv, batched
from ..envs.failures import environment_failure
from ..errors import ConfigurationError, EnvironmentFailure
from ..modules.controllers import Controller
from ..modules.features.extractor import memory_keys
from ..modules.heads.value_heads import SquaredErrorValue, ValueHead
from ..modules.objectives.ppo_loss import PPOLoss
from .ppo import PPO
from .step_factory import Compile, check_compile

REPLACED_TRAINER_OPTIONS = {
    "enable_progress_bar": "torchppo has its own progress bar",
    "fast_dev_run": "total_frames=2048 makes a short run",
}
"""Options of Lightning's Trainer that do not work with this command, and what to use instead."""
logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # `call` reports its errors in one line
HYDRA_KEYS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
EVALUATION_RANK = 1_000_000
"""The rank from which seeds of evaluations and videos are derived. No training process has it."""


@dataclass(frozen=True)
class Training:
    """The components of a training run. The caller must close the environment."""

    env: EnvBase
    ppo: PPO
    collector: Iterable[TensorDictBase]


def build_training(cfg: DictConfig, rank: int) -> Training:
    """Build environment, LightningModule and collector of one rank.

    Raises:
        TorchPPOError: if a setting cannot work; the message names the key, the value and what to do.

    """
    if "frames_per_env" not in cfg.collector:
        raise ConfigurationError("collector.frames_per_env is missing; set it to the length of a rollout")
    env = build_env(cfg, seed=seed_for_rank(cfg.seed, rank))
    try:
        ppo = build_ppo(cfg, env)
        collector = call(cfg.collector, env=env, policy=ppo.actor, total_frames=cfg.total_frames, compile=cfg.compile)
        is_recurrent = bool(memory_keys(ppo.actor))
        ppo.update.check(env.batch_size.numel(), cfg.collector.frames_per_env, in_sequences=is_recurrent)
    except Exception:
        env.close()  # ends its worker processes
        raise
    return Training(env, ppo, collector)


def build_ppo(cfg: DictConfig, env: EnvBase) -> PPO:
    """Build the LightningModule for an environment's specs."""
    actor, critic = call(cfg.policy, observation_spec=env.observation_spec, action_spec=env.full_action_spec["action"])
    objective = call(cfg.objective, actor_network=actor, critic_network=critic)
    heads = {type(module) for module in critic.modules() if isinstance(module, ValueHead)} - {SquaredErrorValue}
    if isinstance(objective, LossModule) and not isinstance(objective, PPOLoss) and heads:
        raise ConfigurationError(
            f"objective={cfg.objective._target_} does not use the loss of {heads.pop().__name__}; use critic=mse, or "
            "objective=clip or kl_penalty"
        )
    return call(
        cfg.ppo,
        objective=objective,
        estimator=build_estimator(cfg.estimator),
        critic_estimator=None if cfg.critic.lmbda is None else build_estimator(cfg.estimator, lmbda=cfg.critic.lmbda),
        update=call(cfg["update"]),
        optimizer=call(cfg.optimizer),
        controllers=build_controllers(cfg),
        reward_models=[call(node, observation_spec=env.observation_spec) for node in cfg.intrinsic.values()],
        total_frames=cfg.total_frames,
        compile=cfg.compile,
        config=OmegaConf.to_container(cfg, resolve=True),
    )


def build_estimator(node: DictConfig, **changes: float) -> Any:
    """Build an estimator with some of its keys changed, after checking gamma and lambda."""
    discounts = {key: changes.get(key, node.get(key, 1.0)) for key in ("gamma", "lmbda")}
    for key, value in discounts.items():
        if not 0.0 <= value <= 1.0:
            raise ConfigurationError(f"{'critic' if key in changes else 'estimator'}.{key}={value} must be in [0, 1]")
    if math.prod(discounts.values()) <= 1e-7 and "vectorized" in node:
        changes["vectorized"] = False  # TorchRL's vectorized GAE fails if gamma * lambda is 0
    return call(node, **changes)


def build_controllers(cfg: DictConfig) -> dict[str, Controller]:
    """Build the controllers of the learning rate and of those coefficients that the objective has."""
    return {
        str(name): call(node)
        for name, node in cfg.controller.items()
        if node and (name == "lr" or name in cfg.objective)
    }


def build_env(cfg: DictConfig, *, seed: int, **changes: Any) -> EnvBase:
    """Build the batched environment with its transforms; `changes` replace keys that `cfg.env` has."""
    transforms = [call(transform) for transform in cfg.transforms]
    for place, transform in enumerate(transforms):
        if isinstance(transform, VecNorm | VecNormV2):
            raise ConfigurationError(
                f"transforms[{place}]={type(transform).__name__} keeps statistics that evaluations and checkpoints "
                "would lack; use policy.normalize_observation=true or reward=normalized"
            )
    env = make_environment(cfg.env, {key: value for key, value in changes.items() if key in cfg.env})
    if not isinstance(env, VectorEnv):
        env = batched(env)
    if transforms:
        env = TransformedEnv(env, Compose(*transforms), auto_unwrap=True)
    env.set_seed(seed)
    return env


def make_environment(node: DictConfig, changes: dict[str, Any]) -> EnvBase:
    """Make the environment of a configuration with some of its keys changed.

    Raises:
        EnvironmentFailure: if its code raises an error, or if it is not a TorchRL environment.

    """
    try:
        env = call(node, **changes)
    except Exception as error:  # noqa: BLE001 - an environment may raise anything
        raise environment_failure(f"{node._target_} failed", error) from None
    if not isinstance(env, EnvBase):
        raise EnvironmentFailure(f"{node._target_} returned {type(env).__name__}, not an EnvBase; fix env._target_")
    return env


def build_evaluation_env(cfg: DictConfig, *, seed: int, num_envs: int, **changes: Any) -> EnvBase:
    """Build the training environment for an evaluation, without worker processes."""
    return build_env(cfg, seed=seed, num_envs=num_envs, num_workers=0, **changes)


def build_trainer(cfg: DictConfig, callbacks: list[Callback]) -> Trainer:
    """Build Lightning's Trainer with the configured loggers.

    Raises:
        ConfigurationError: if devices or a logger do not exist or are not supported.

    """
    options = cfg.trainer
    if "logger" in options:
        raise ConfigurationError("trainer.logger is not used; set logger=csv, logger=[csv,wandb] or logger=[]")
    for key, instead in REPLACED_TRAINER_OPTIONS.items():
        if options.get(key):
            raise ConfigurationError(f"trainer.{key}={options[key]} does not work with torchppo train; {instead}")
    loggers: list[Logger] = [call(logger) for logger in cfg.logger.values()]
    own = [call(callback) for callback in options.get("callbacks") or []]
    others = OmegaConf.masked_copy(options, [key for key in options if key != "callbacks"])
    saves = {"enable_checkpointing": True} if any(isinstance(callback, Checkpoint) for callback in own) else {}
    try:
        trainer: Trainer = call(others, logger=loggers, callbacks=[*callbacks, *own], **saves)
    except (MisconfigurationException, ValueError) as error:
        raise ConfigurationError(f"trainer: {error}; change trainer.*") from error
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ConfigurationError(
            f"trainer.strategy={options.strategy} starts ranks as copies of this process; use trainer.strategy=ddp"
        )
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, key) == 0:
            raise ConfigurationError(f"trainer.{key}=0 allows no rollout; remove it")
    return trainer


def seed_for_rank(seed: int, rank: int) -> int:
    """Return a seed that no other rank of this or another run uses."""
    if seed < 0:
        raise ConfigurationError(f"seed={seed} must not be negative")
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


def env_name(cfg: DictConfig) -> str:
    return str(cfg.env.get("id", cfg.env._target_))


def evaluation_compile(cfg: DictConfig) -> Compile:
    """Return the `compile` mode of evaluations: the policy step is traced if training compiles it."""
    return "trace" if cfg.compile is True else check_compile(cfg.compile)


def call(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate a node with further arguments.

    Raises:
        TorchPPOError: if the target raises one, does not exist, or does not accept the keys.

    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigurationError(f"{node!r} has no _target_; choose a component with group=choice")
    check_targets(node, arguments)
    try:
        # Hydra would copy objects passed to `instantiate` into a configuration; a partial takes them as they are.
        component = instantiate(node, _convert_="all", **({"_partial_": True} if arguments else {}))
        return component(**arguments) if arguments else component
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        is_wrong_key = isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause)
        for package in ("wandb", "mlflow"):
            if isinstance(cause, ModuleNotFoundError) and package in node._target_.lower():
                raise ConfigurationError(f"{node._target_} needs pip install 'torchppo[{package}]'") from error
        if cause is error or isinstance(cause, ImportError) or is_wrong_key:
            raise ConfigurationError(f"{node._target_}: {error}; fix its keys") from error
        raise cause from None


def check_targets(node: Any, arguments: dict[str, Any]) -> None:
    """Raise a ConfigurationError if a `_target_` does not exist, or does not accept its keys and `arguments`."""
    if isinstance(node, ListConfig):
        for child in node:
            check_targets(child, {})
    if not isinstance(node, DictConfig):
        return
    keys = [key for key in node if key not in HYDRA_KEYS]
    for key in keys if node.get("_recursive_", True) else ():
        check_targets(node[key], {})
    if "_target_" not in node:
        return
    try:
        target = get_object(node._target_)
        parameters = signature(target)
    except ImportError as error:
        raise ConfigurationError(f"_target_={node._target_} cannot be imported; fix it ({error})") from error
    except (TypeError, ValueError):  # it has no signature
        return
    try:
        bind = parameters.bind_partial if node.get("_partial_", False) and not arguments else parameters.bind
        bind(*node.get("_args_", []), **{**dict.fromkeys(map(str, keys)), **arguments})
    except TypeError as error:
        raise ConfigurationError(f"{node._target_}: {error}; fix its keys") from error
