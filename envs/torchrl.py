"""Prepares any TorchRL environment for collectors and evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torchrl.data import Bounded, Categorical, MultiCategorical, OneHot
from torchrl.envs import (
    Compose,
    DoubleToFloat,
    EnvBase,
    ObservationNorm,
    RenameTransform,
    RewardSum,
    SerialEnv,
    StepCounter,
    Transform,
    TransformedEnv,
)

from ..errors import ConfigurationError, EnvironmentFailure
from .vector_env import VectorEnv

EPISODE_KEYS = ("episode_reward", "step_count")
"""Keys of the undiscounted return and the length of the current episode so far."""


def batched(env: EnvBase) -> EnvBase:
    """Give an environment a batch dimension, episode statistics and float32 data.

    A `VectorEnv` has all of these and is returned unchanged. Only the transforms that are missing are added:
    `RewardSum`, `StepCounter` and, where a spec is float64 (as in MuJoCo), `DoubleToFloat`. Continuous actions are
    clipped to their bounds before they reach the environment; the data contain the actions of the policy.

    If the environment has an entry `episode_reward` or `step_count` whose shape or dtype differs from that of these
    transforms, the entry is renamed to `env_episode_reward` or `env_step_count`. An entry `mask` with one flag per
    action is copied to `action_mask`, which policies read.

    Args:
        env: any TorchRL environment. An environment without a batch size becomes a batch of one.

    Returns:
        An environment with batch size `[num_envs]` that writes `episode_reward` and `step_count`.

    Raises:
        ConfigurationError: if an `ObservationNorm` of the environment has no statistics.
        EnvironmentFailure: if the environment has several agents.

    """
    check_transforms(env)
    raise_on_several_agents(env)
    if isinstance(env, VectorEnv):
        return env
    if not env.batch_size:
        single = env
        env = SerialEnv(1, lambda: single)
    own = [key for key in EPISODE_KEYS if is_own_entry(env, key)]
    keys = set(env.observation_spec.keys()) - {*own}
    transforms: list[Transform] = [RenameTransform([key], [f"env_{key}"]) for key in own]
    transforms += [
        transform() for key, transform in zip(EPISODE_KEYS, (RewardSum, StepCounter), strict=True) if key not in keys
    ]
    if has_root_mask(env):
        transforms.append(RenameTransform(["mask"], ["action_mask"], create_copy=True))
    action = env.full_action_spec.get("action", None)
    if isinstance(action, Bounded) and action.dtype.is_floating_point and not clips_actions(env):
        transforms.append(ClipAction(action.space.low, action.space.high))
    specs = [spec for composite in (env.input_spec, env.output_spec) for spec in composite.values(True, True)]
    if any(spec.dtype == torch.float64 for spec in specs):
        transforms.append(DoubleToFloat())
    return TransformedEnv(env, Compose(*transforms), auto_unwrap=True) if transforms else env


class ClipAction(Transform):
    """Clips actions to their bounds. TorchRL's `ClipTransform` has one bound for all elements.

    Args:
        low: lower bounds, of the shape of the actions.
        high: upper bounds, of the shape of the actions.

    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__(in_keys_inv=["action"], out_keys_inv=["action"])
        self.low, self.high = low, high

    def _inv_apply_transform(self, action: Tensor) -> Tensor:
        return action.clamp(self.low, self.high)


def clips_actions(env: EnvBase) -> bool:
    """Return whether `ClipAction` is one of the transforms of an environment."""
    return any(isinstance(transform, ClipAction) for transform in transforms_of(env))


def is_own_entry(env: EnvBase, key: str) -> bool:
    """Return whether the entry `key` exists and differs in shape or dtype from that of `RewardSum` or `StepCounter`."""
    if key not in env.observation_spec.keys():  # noqa: SIM118 - Composite does not implement `in`
        return False
    spec = env.observation_spec[key]
    is_integer = not spec.dtype.is_floating_point
    return spec.shape != (*env.batch_size, 1) or (spec.dtype != torch.int64 if key == "step_count" else is_integer)


def has_root_mask(env: EnvBase) -> bool:
    """Return whether the environment has an entry `mask` with one flag per action, and no `action_mask`."""
    spec = env.observation_spec
    if "mask" not in spec.keys() or "action_mask" in spec.keys():  # noqa: SIM118
        return False
    action = env.full_action_spec.get("action", None)
    num_choices = action.space.n if isinstance(action, Categorical | OneHot) else None
    if isinstance(action, MultiCategorical):
        num_choices = int(action.nvec.reshape(-1, action.nvec.shape[-1])[0].sum())
    return bool(spec["mask"].shape == (*env.batch_size, num_choices))


def raise_on_several_agents(env: EnvBase) -> None:
    """Raise an EnvironmentFailure unless an environment has exactly one action and one reward."""
    actions = [key for key in env.action_keys if key != "action" and key[0] != "action"]
    others = [*actions, *(key for key in env.reward_keys if key != "reward")]
    if others:
        names = ", ".join("/".join(key) if isinstance(key, tuple) else key for key in others)
        raise EnvironmentFailure(
            f"{base_name(env)} has the entries {names} instead of one action and one reward; several agents are not "
            "supported, so use an environment with one agent"
        )
    shape = env.full_reward_spec["reward"].shape
    if shape != (*env.batch_size, 1):
        raise EnvironmentFailure(
            f"{base_name(env)} has rewards of shape {tuple(shape)} for the batch size {tuple(env.batch_size)}; one "
            "reward per environment is supported, so sum them with a transform"
        )


def base_name(env: EnvBase) -> str:
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return type(env).__name__


def check_transforms(env: EnvBase) -> None:
    """Raise a ConfigurationError if an `ObservationNorm` of an environment has no statistics."""
    for transform in transforms_of(env):
        if isinstance(transform, ObservationNorm) and not transform.initialized:
            raise ConfigurationError(
                "ObservationNorm has no loc and scale; set them, call its init_stats from Python, or use "
                "policy.normalize_observation=true"
            )


def transforms_of(env: EnvBase) -> Iterator[nn.Module]:
    """Iterate over the transforms of an environment, including those inside a `Compose`."""
    while isinstance(env, TransformedEnv):
        yield from env.transform.modules()
        env = env.base_env
