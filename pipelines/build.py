"""From a configuration to the objects it names: every `instantiate` of the project stands here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase
from torchrl.envs import Compose, EnvBase, TransformedEnv, VecNorm, VecNormV2
from torchrl.objectives import LossModule

from ..envs import batched
from ..envs.failures import environment_failure
from ..errors import ConfigurationError, EnvironmentFailure, TorchPPOError
from ..modules.features.extractor import memory_keys
from ..modules.heads.value_heads import SquaredErrorValue, ValueHead
from .compiled.flat_adam import why_no_graph
from .ppo import PPO
from .step_factory import Compile

STEPS_TO_TRACE = 300
POLICY_STEPS_TO_COMPILE = 30_000
OPTIMIZER_STEPS_TO_COMPILE = 8_000
"""Steps from which a graph wins back on a CPU what it costs: traced 0.3 s, for 0.5 ms at each of the policy's steps and
2 ms at each of the optimiser's; compiled some 20 s for both, where nothing is yet, for another 0.15 and 2 ms."""

WRONG_KEYS = re.compile(r"unexpected keyword argument|required .*argument")
"""What Python says of keys that a target does not take, or misses."""

OTHER_PRECISIONS = ("64", "64-true", "bf16-true", "16-true")
"""In which Lightning would have all weights: PPO refuses them, but once there is a folder."""

NOT_HERE = {"enable_progress_bar": "torchppo draws a bar of its own", "fast_dev_run": "total_frames=2048 is short too"}
"""Options of Lightning in whose place there is another thing."""

EVALUATION_RANK = 1_000_000
"""A rank that no training has, for the seeds of evaluation and video."""


@dataclass(frozen=True)
class Training:
    """What a training run consists of; the environment is to be closed at its end."""

    env: EnvBase
    ppo: PPO
    collector: Iterable[TensorDictBase]


def build_training(cfg: DictConfig, rank: int) -> Training:
    """Environment, model, objective, estimator, update and collector of one rank.

    Raises:
        TorchPPOError: naming the key, the value and the way out.

    """
    env = build_env(cfg, seed=seed_of(cfg.seed, rank))
    try:
        ppo = build_ppo(cfg, env)
        graph = graph_for(cfg, num_rollouts(cfg, env) * frames_per_env(cfg), POLICY_STEPS_TO_COMPILE)
        collector = call(cfg.collector, env=env, policy=ppo.actor, total_frames=cfg.total_frames, compile=graph)
        in_sequences = bool(memory_keys(ppo.actor))
        ppo.update.check(env.batch_size.numel(), frames_per_env(cfg), in_sequences=in_sequences)
    except Exception:
        env.close()  # its workers would stay
        raise
    return Training(env, ppo, collector)


def build_ppo(cfg: DictConfig, env: EnvBase) -> PPO:
    """The LightningModule for an environment's specs."""
    actor, critic = call(cfg.policy, observation_spec=env.observation_spec, action_spec=env.full_action_spec["action"])
    objective = call(cfg.objective, actor_network=actor, critic_network=critic)
    heads = {type(module) for module in critic.modules() if isinstance(module, ValueHead)} - {SquaredErrorValue}
    if isinstance(objective, LossModule) and heads:
        raise ConfigurationError(
            f"objective={cfg.objective._target_} judges values by an error of its own, not by that of "
            f"{heads.pop().__name__}; choose critic=mse, or objective=clip or kl_penalty"
        )
    update, optimizer = call(cfg["update"]), call(cfg.optimizer)
    num_steps = num_rollouts(cfg, env) * update.num_steps(frames_per_batch(cfg, env))
    has_graph = isinstance(optimizer, partial) and not why_no_graph(optimizer.func, optimizer.keywords)
    # A graph of a memory's whole sequences takes minutes to compile, which is for the user to decide; TorchRL's losses
    # look at the values of entropies.
    if memory_keys(actor) or isinstance(objective, LossModule) or not has_graph:
        num_steps = 0
    return call(
        cfg.ppo,
        objective=objective,
        estimator=estimator_of(cfg.estimator),
        critic_estimator=None if cfg.critic.lmbda is None else estimator_of(cfg.estimator, lmbda=cfg.critic.lmbda),
        update=update,
        optimizer=optimizer,
        schedules=schedules_of(cfg),
        total_frames=cfg.total_frames,
        compile=graph_for(cfg, num_steps, OPTIMIZER_STEPS_TO_COMPILE),
        config=OmegaConf.to_container(cfg, resolve=True),
    )


def estimator_of(node: DictConfig, **changes: float) -> Any:
    """An estimator, some of its keys changed, whose discounts have been looked at."""
    discounts = {key: changes.get(key, node.get(key, 1.0)) for key in ("gamma", "lmbda")}
    for key, value in discounts.items():
        if not 0.0 <= value <= 1.0:
            raise ConfigurationError(
                f"{'critic' if key in changes else 'estimator'}.{key}={value} must lie between 0 and 1"
            )
    if math.prod(discounts.values()) <= 1e-7 and "vectorized" in node:
        changes["vectorized"] = False  # TorchRL's vectorised GAE fails where nothing is left after one step
    return call(node, **changes)


def build_env(cfg: DictConfig, *, seed: int, **changes: Any) -> EnvBase:
    """The batched environment with its transforms; `changes` replace the keys of `cfg.env` that it has."""
    transforms = [call(transform) for transform in cfg.transforms]
    for place, transform in enumerate(transforms):
        if isinstance(transform, VecNorm | VecNormV2):
            raise ConfigurationError(
                f"transforms[{place}] keeps statistics that an evaluation and a checkpoint would not have; set "
                "policy.normalize_observation=true or reward=normalized instead"
            )
    env = batched(environment_of(cfg.env, {key: value for key, value in changes.items() if key in cfg.env}))
    if transforms:
        env = TransformedEnv(env, Compose(*transforms), auto_unwrap=True)
    env.set_seed(seed)
    return env


def environment_of(node: DictConfig, changes: dict[str, Any]) -> EnvBase:
    """The environment that a configuration names, some of its keys changed.

    Raises:
        EnvironmentFailure: for what its own code raises, after the traceback, or if it is none of TorchRL's.

    """
    try:
        env = call(node, **changes)
    except Exception as error:  # noqa: BLE001 - whatever an environment raises is its own failure
        raise environment_failure(f"{node._target_} failed", error) from None
    if not isinstance(env, EnvBase):
        raise EnvironmentFailure(f"{node._target_} is no torchrl.envs.EnvBase, but {type(env).__name__}")
    return env


def build_evaluation_env(cfg: DictConfig, *, seed: int, num_envs: int, **changes: Any) -> EnvBase:
    """The same environment for playing whole episodes, in this process wherever the training's is."""
    return build_env(cfg, seed=seed, num_envs=num_envs, num_workers=0, **changes)


def build_trainer(cfg: DictConfig, callbacks: list[Callback]) -> Trainer:
    """Lightning's Trainer with the configured loggers.

    Raises:
        ConfigurationError: for devices, precision or a logger that are not to be had.

    """
    if str(cfg.trainer.get("precision")) in OTHER_PRECISIONS:
        raise ConfigurationError(
            f"trainer.precision={cfg.trainer.precision} does not go with environments' float32; take 32-true, "
            "bf16-mixed or 16-mixed"
        )
    if "logger" in cfg.trainer:
        raise ConfigurationError("trainer.logger is not read; choose with logger=csv, logger=[csv,wandb] or logger=[]")
    for key, instead in NOT_HERE.items():
        if cfg.trainer.get(key):
            raise ConfigurationError(f"trainer.{key}={cfg.trainer[key]} does not go with this command; {instead}")
    loggers: list[Logger] = [call(logger) for logger in cfg.logger.values()]
    own = [call(callback) for callback in cfg.trainer.get("callbacks") or []]
    others = OmegaConf.masked_copy(cfg.trainer, [key for key in cfg.trainer if key != "callbacks"])  # not made again
    try:
        trainer: Trainer = call(others, logger=loggers, callbacks=[*callbacks, *own])
    except (MisconfigurationException, ValueError) as error:  # Lightning's own refusals
        raise ConfigurationError(f"trainer: {error}") from error
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):  # would fork a training that is made once
        raise ConfigurationError(
            f"trainer.strategy={cfg.trainer.strategy} starts its ranks as copies of one training; take "
            "trainer.strategy=ddp"
        )
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, key) == 0:
            raise ConfigurationError(f"trainer.{key}=0 leaves no rollout to train on; leave it as it is")
    return trainer


def frames_per_batch(cfg: DictConfig, env: EnvBase) -> int:
    """Environment steps in one rollout, at least 1; it is the collector that refuses none."""
    return int(max(1, env.batch_size.numel() * frames_per_env(cfg)))


def frames_per_env(cfg: DictConfig) -> int:
    """Steps of every environment in one rollout, which every collector is to be told."""
    if "frames_per_env" not in cfg.collector:
        raise ConfigurationError(
            "collector.frames_per_env, the length of a rollout, is missing; a collector takes it, and its YAML gives it"
        )
    return int(cfg.collector.frames_per_env)


def num_rollouts(cfg: DictConfig, env: EnvBase) -> float:
    """How many rollouts a rank would make on its own."""
    return float(cfg.total_frames / frames_per_batch(cfg, env))


def schedules_of(cfg: DictConfig) -> dict[str, Callable[[float], float]]:
    """The schedules of the coefficients that the objective has."""
    return {name: call(node) for name, node in cfg.schedule.items() if name == "lr" or name in cfg.objective}


def seed_of(seed: int, rank: int) -> int:
    """A seed for one rank that no other rank, nor another run's rank, shares."""
    if seed < 0:
        raise ConfigurationError(f"seed={seed} must not be negative")
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


def env_name(cfg: DictConfig) -> str:
    """What a person calls the environment."""
    return str(cfg.env.get("id", cfg.env._target_))


def graph_for(cfg: DictConfig, num_steps: float, steps_to_compile: int) -> Compile:
    """What becomes of a step: as `compile` says, or what pays in so many steps."""
    if cfg.compile in (True, False, "trace"):
        choice: Compile = cfg.compile
        return choice
    if cfg.compile != "auto":
        raise ConfigurationError(f"compile={cfg.compile} is none of auto, true, trace and false")
    if num_steps > steps_to_compile:
        return True
    return "trace" if num_steps > STEPS_TO_TRACE else False


def traces_evaluation(cfg: DictConfig) -> bool:
    """Whether evaluations act with a graph of the policy: unless there is to be none at all."""
    return cfg.compile is not False


def call(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate one node with further arguments, and turn a user's mistake into one line.

    Raises:
        TorchPPOError: as the target raised it, or for a target that does not exist or take these keys.

    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigurationError(f"{node!r} is no part: it has no _target_; choose one with group=choice")
    try:
        # Hydra would copy objects passed to `instantiate` into a configuration; a partial takes them as they are.
        part = instantiate(node, _convert_="all", **({"_partial_": True} if arguments else {}))
        if node.get("_partial_"):
            signature(part.func).bind_partial(*part.args, **part.keywords)  # now, not in the middle of a training
        return part(**arguments) if arguments else part
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, TorchPPOError):
            raise cause from None
        for extra in ("wandb", "mlflow"):
            if isinstance(cause, ModuleNotFoundError) and extra in node._target_.lower():
                raise ConfigurationError(f"{node._target_} needs a package: pip install 'torchppo[{extra}]'") from error
        if isinstance(cause, InstantiationException | ImportError) or WRONG_KEYS.search(str(cause)):
            message = str(error).replace(", set env var HYDRA_FULL_ERROR=1 to see chained exception.", "")
            raise ConfigurationError(f"{node._target_}: {message}") from error
        raise cause from None
    except TypeError as error:
        if not WRONG_KEYS.search(str(error)):
            raise  # a bug inside of the part
        raise ConfigurationError(f"{node._target_}: {error}") from error
