"""Checks of the options of `PPO` and of its metrics."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import nn

from ..errors import ConfigurationError


def check_options(objective: Any, frames: int, max_norm: float, normalize: str | None, pretraining: int) -> None:
    """Raise a ConfigurationError for an option of `PPO` that cannot work."""
    for name in ("actor_network", "critic_network"):
        if not isinstance(getattr(objective, name, None), nn.Module):
            raise ConfigurationError(f"objective={type(objective).__name__} needs an nn.Module in its attribute {name}")
    if frames < 1:
        raise ConfigurationError(f"total_frames={frames} must be at least 1")
    if not max_norm > 0:
        raise ConfigurationError(f"ppo.max_grad_norm={max_norm} must be positive; use inf for no limit")
    if normalize not in ("rollout", "minibatch", None):
        raise ConfigurationError(f"ppo.normalize_advantage={normalize} must be rollout, minibatch or null")
    if pretraining < 0:
        raise ConfigurationError(f"ppo.value_pretraining={pretraining} must not be negative")


def check_frames_left(frames: int, total_frames: int, next_frames: int) -> None:
    """Raise a ConfigurationError if a resumed training has no frames left for a rollout of `next_frames`."""
    if frames and frames + next_frames > total_frames:
        raise ConfigurationError(
            f"total_frames={total_frames} leaves no room for a rollout of {next_frames} after {frames} trained frames; "
            "increase it"
        )


def check_dtypes(ppo: Any) -> None:
    """Raise a ConfigurationError if a trainable weight has another type than the environments' float32."""
    others = {param.dtype for param in ppo.parameters() if param.requires_grad} - {torch.float32}
    if others:
        raise ConfigurationError(
            f"trainer.precision={ppo.trainer.precision} makes the weights {others.pop()}, but environments return "
            "float32; use 32-true, bf16-mixed or 16-mixed"
        )


WRITTEN_BY: dict[NestedKey, str] = {
    "is_init": "InitTracker",
    ("next", "episode_reward"): "RewardSum",
    ("next", "step_count"): "StepCounter",
}
"""Transforms of TorchRL that write the entries which another collector may lack."""


def require_entries(rollout: TensorDictBase, *keys: NestedKey) -> TensorDictBase:
    """Return the rollout if it has the entries, else raise a ConfigurationError that names their transform."""
    for key in keys:
        if key not in rollout.keys(include_nested=True):
            name = key if isinstance(key, str) else key[-1]
            raise ConfigurationError(
                f"the rollout has no {name}; add the transform torchrl.envs.{WRITTEN_BY[key]} to the environment"
            )
    return rollout
