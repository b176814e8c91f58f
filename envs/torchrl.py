"""Any TorchRL environment as rollouts need it."""

from __future__ import annotations

import torch
from torchrl.envs import Compose, DoubleToFloat, EnvBase, RewardSum, SerialEnv, StepCounter, Transform, TransformedEnv

from .vector_env import VectorEnv

EPISODE_KEYS = ("episode_reward", "step_count")
"""What says how an episode has gone so far."""


def batched(env: EnvBase) -> EnvBase:
    """The same environment in a batch, that counts its episodes, in float32; a `VectorEnv` is that already.

    Args:
        env: any TorchRL environment; one without a batch becomes a batch of one.

    Returns:
        An environment `[num_envs]` that writes `episode_reward` and `step_count`, and whose numbers of double
        precision, such as MuJoCo's, are single, as networks are.

    """
    if isinstance(env, VectorEnv):
        return env
    if not env.batch_size:
        single = env
        env = SerialEnv(1, lambda: single)
    known = env.observation_spec.keys(include_nested=True)
    transforms: list[Transform] = [
        transform() for key, transform in zip(EPISODE_KEYS, (RewardSum, StepCounter), strict=True) if key not in known
    ]
    specs = [spec for one in (env.input_spec, env.output_spec) for spec in one.values(True, True)]
    if any(spec.dtype == torch.float64 for spec in specs):
        transforms.append(DoubleToFloat())
    return TransformedEnv(env, Compose(*transforms), auto_unwrap=True) if transforms else env
