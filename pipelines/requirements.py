"""Checks of what a training needs: the arguments of `PPO`, the size of a rollout, the collector and the Trainer."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn
from torch.optim import Optimizer
from torchrl.envs import EnvBase
from torchrl.objectives import LossModule
from torchrl.objectives.value import VTrace

from ..errors import ConfigurationError
from ..modules.actor_critic import check_critic_memory, value_heads
from ..modules.heads.value_heads import SquaredErrorValue
from ..modules.normalizers import ObservationNormalizer
from ..modules.objectives.ppo_loss import PPOLoss
from ..modules.symmetry import check_symmetry
from .distributed import gathered, num_ranks

UPDATE_MEMBERS = (
    *("stop_above", "freezes", "setup", "num_steps", "frames_per_sequence", "check"),
    *("state_dict", "load_state_dict"),
)
"""Members of the protocol `Update` that a training reads."""


def check_components(objective: Any, estimator: Any, update: Any, reward_models: Collection[Any]) -> None:
    """Raise a ConfigurationError if components of `PPO` do not have their interfaces, or do not work together."""
    name = type(objective).__name__
    if type(estimator) is VTrace:
        raise ConfigurationError(
            "estimator=VTrace of TorchRL 0.14 uses the probability of a new action, not that of the action taken; use "
            "estimator=vtrace, in Python torchppo.modules.estimators.vtrace.VTrace"
        )
    for member in ("actor_network", "critic_network"):
        if not isinstance(getattr(objective, member, None), nn.Module):
            raise ConfigurationError(f"objective={name} needs an nn.Module as its attribute {member}")
    check_critic_memory(objective.actor_network, objective.critic_network)
    for member in UPDATE_MEMBERS:
        if not (hasattr(type(update), member) or hasattr(update, member)):  # a property may need `setup`
            raise ConfigurationError(
                f"update={type(update).__name__} has no {member}; implement the protocol "
                "torchppo.pipelines.updates.update.Update"
            )
    heads = {type(head) for head in value_heads(objective.critic_network)} - {SquaredErrorValue}
    if isinstance(objective, LossModule) and not isinstance(objective, PPOLoss) and heads:
        raise ConfigurationError(
            f"objective={name} does not use the loss of {heads.pop().__name__}; use critic=mse, or objective=clip or "
            "kl_penalty"
        )
    networks = nn.ModuleList([objective.actor_network, objective.critic_network])
    is_normalized = any(isinstance(module, ObservationNormalizer) for module in networks.modules())
    if getattr(objective, "functional", False) and is_normalized:
        raise ConfigurationError(
            f"objective={name} with functional=True does not update the statistics of the observations; pass "
            "functional=False"
        )
    if len({model.name for model in reward_models}) < len(reward_models):
        raise ConfigurationError("intrinsic: two reward models have the same name; remove or rename one")


def check_options(frames: float, max_norm: float, normalize: str | None, pretraining: int) -> None:
    """Raise a ConfigurationError for an option of `PPO` that is out of range."""
    check_total_frames(frames)
    if not max_norm > 0:
        raise ConfigurationError(f"ppo.max_grad_norm={max_norm} must be positive; inf disables clipping")
    if normalize not in ("rollout", "minibatch", None):
        raise ConfigurationError(f"ppo.normalize_advantage={normalize} must be rollout, minibatch or null")
    if pretraining < 0:
        raise ConfigurationError(f"ppo.value_pretraining={pretraining} must not be negative")


def check_total_frames(frames: float) -> None:
    """Raise a ConfigurationError if `frames` is not a whole number of at least 1."""
    if not (frames >= 1 and float(frames).is_integer()):
        raise ConfigurationError(f"total_frames={frames} must be a whole number of at least 1")


def length_of_rollout(frames_per_env: int | None, frames_per_batch: int | None, num_envs: int) -> int:
    """Return the steps of each environment in a rollout, from either of the two arguments.

    Raises:
        ConfigurationError: if not exactly one is given, it is below 1, or `frames_per_batch` is not a multiple of
            `num_envs`.

    """
    if (frames_per_env is None) == (frames_per_batch is None):
        problem = "is missing" if frames_per_env is None else "and collector.frames_per_batch are both set"
        raise ConfigurationError(f"collector.frames_per_env {problem}; set one of collector.frames_per_{{env,batch}}")
    name = "frames_per_batch" if frames_per_env is None else "frames_per_env"
    value = frames_per_batch if frames_per_env is None else frames_per_env
    assert value is not None
    if value < 1:
        raise ConfigurationError(f"collector.{name}={value} must be at least 1")
    if frames_per_env is not None:
        return frames_per_env
    if value % num_envs:
        below = value // num_envs * num_envs
        nearest = [str(frames) for frames in (below, below + num_envs) if frames > 0]
        raise ConfigurationError(
            f"collector.frames_per_batch={value} is not a multiple of the number of environments ({num_envs}); use "
            f"{' or '.join(nearest)}"
        )
    return value // num_envs


def check_fits_into_ram(env: EnvBase, num_frames: int) -> None:
    """Raise a ConfigurationError if the observations of a rollout do not fit into the memory of this machine."""
    leaves = env.observation_spec.values(include_nested=True, leaves_only=True)
    num_bytes = num_frames * sum(leaf.shape.numel() * leaf.dtype.itemsize for leaf in leaves) // env.batch_size.numel()
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > available:
        raise ConfigurationError(
            f"a rollout of {num_frames} frames needs {num_bytes / 2**30:.0f} GiB, but this machine has "
            f"{available / 2**30:.0f} GiB; lower collector.frames_per_env or env.num_envs"
        )


def check_collector(collector: Any, module: Any, frames: int, total_frames: int, *, may_be_complete: bool) -> bool:
    """Return whether a rollout fits after `frames` trained frames.

    Raises:
        ConfigurationError: if Lightning would prefetch, if the collector acts with another policy than that of
            `module`, if the symmetry does not fit the environment, or if no rollout fits and `may_be_complete` is
            false.

    """
    if not hasattr(collector, "__len__"):
        raise ConfigurationError(
            f"train_dataloaders={type(collector).__name__} has no length, so Lightning would collect the next rollout "
            "with old weights; add __len__, the number of rollouts"
        )
    own = {param.data_ptr() for param in module.parameters()}
    policy = getattr(collector, "policy", None)
    acting = {param.data_ptr() for param in policy.parameters()} if isinstance(policy, nn.Module) else set()
    if acting and not acting & own:
        raise ConfigurationError(
            "the collector acts with another policy than the one that is trained; make it with the actor of the "
            "objective"
        )
    if module.symmetry is not None and (env := getattr(collector, "env", None)) is not None:
        check_symmetry(module.symmetry, module.objective, env)
    next_frames = getattr(collector, "frames_per_batch", 1) * num_ranks()
    fits = not frames or frames + next_frames <= total_frames
    if not (fits or may_be_complete):
        raise ConfigurationError(
            f"total_frames={total_frames} leaves no room for a rollout of {next_frames} after {frames} trained frames; "
            "increase it"
        )
    return fits


def require_optimizer(made: Any) -> Optimizer:
    """Return an optimizer, or raise a TypeError for anything else, such as Lightning's dictionary with a scheduler."""
    if not isinstance(made, Optimizer):
        raise TypeError(f"it returned a {type(made).__name__}, not an Optimizer; pass schedules as controllers")
    return made


def check_trainer(trainer: Trainer) -> None:
    """Raise a ConfigurationError for options of a Trainer that would have no effect, or a wrong one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined] # Lightning sets it in another class
        if isinstance(callback, StochasticWeightAveraging):
            raise ConfigurationError(
                "StochasticWeightAveraging averages after epochs, but a training is one epoch; remove it, or use "
                "EMAWeightAveraging or objective=ppo_ewma"
            )
    if fraction := trainer.overfit_batches:  # type: ignore[attr-defined]
        raise ConfigurationError(f"trainer.overfit_batches={fraction} has no effect on rollouts; remove it")
    if num_ranks() > 1 and len({*gathered([torch.initial_seed()])}) == 1:
        raise ConfigurationError(
            "all ranks have the same random seed and would collect the same data; call seed_everything(seed + rank) "
            "and env.set_seed(seed + rank)"
        )
