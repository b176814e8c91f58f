"""Prepares any TorchRL environment for collectors and evaluation."""

from __future__ import annotations

import torch
from torchrl.envs import (
    Compose,
    DoubleToFloat,
    EnvBase,
    ObservationNorm,
    RewardSum,
    SerialEnv,
    StepCounter,
    Transform,
    TransformedEnv,
)

from ..errors import ConfigurationError
from .vector_env import VectorEnv

EPISODE_KEYS = ("episode_reward", "step_count")
"""Keys of the undiscounted return and the length of the current episode so far."""


def batched(env: EnvBase) -> EnvBase:
    """Give an environment a batch dimension, episode statistics and float32 data.

    A `VectorEnv` has all of these and is returned unchanged. Only the transforms that are missing are added:
    `RewardSum`, `StepCounter` and, where a spec is float64 (as in MuJoCo), `DoubleToFloat`.

    Args:
        env: any TorchRL environment. An environment without a batch size becomes a batch of one.

    Returns:
        An environment with batch size `[num_envs]` that writes `episode_reward` and `step_count`.

    Raises:
        ConfigurationError: if an `ObservationNorm` of the environment has no statistics.

    """
    check_transforms(env)
    if isinstance(env, VectorEnv):
        return env
    if not env.batch_size:
        single = env
        env = SerialEnv(1, lambda: single)
    keys = env.observation_spec.keys(include_nested=True)
    transforms: list[Transform] = [
        transform() for key, transform in zip(EPISODE_KEYS, (RewardSum, StepCounter), strict=True) if key not in keys
    ]
    specs = [spec for composite in (env.input_spec, env.output_spec) for spec in composite.values(True, True)]
    if any(spec.dtype == torch.float64 for spec in specs):
        transforms.append(DoubleToFloat())
    return TransformedEnv(env, Compose(*transforms), auto_unwrap=True) if transforms else env


def check_transforms(env: EnvBase) -> None:
    """Raise a ConfigurationError if an `ObservationNorm` of an environment has no statistics."""
    while isinstance(env, TransformedEnv):
        for module in env.transform.modules():
            if isinstance(module, ObservationNorm) and not module.initialized:
                raise ConfigurationError(
                    "ObservationNorm has no loc and scale; set them, call its init_stats from Python, or use "
                    "policy.normalize_observation=true"
                )
        env = env.base_env
