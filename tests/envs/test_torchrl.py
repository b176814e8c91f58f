"""Any TorchRL environment gets a batch dimension, episode statistics and float32 data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrl.envs import EnvBase, GymEnv, RewardSum, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchppo.envs import batched, make_env


def pendulum() -> EnvBase:
    env: EnvBase = GymEnv("Pendulum-v1")
    return env


@pytest.mark.parametrize("original", [pendulum(), SerialEnv(2, pendulum), TransformedEnv(pendulum(), RewardSum())])
def test_the_environment_has_one_batch_dimension_and_episode_statistics(original: EnvBase) -> None:
    env = batched(original)
    rollout = env.rollout(5)
    assert len(env.batch_size) == 1
    np.testing.assert_allclose(rollout["next", "episode_reward"], rollout["next", "reward"].cumsum(1), rtol=1e-6)
    assert (rollout["next", "step_count"] == torch.arange(1, 6).reshape(1, 5, 1)).all()
    check_env_specs(env, seed=0)


def test_float64_becomes_float32() -> None:
    double = GymEnv("HalfCheetah-v5")
    assert double.observation_spec["observation"].dtype == torch.float64
    env = batched(double)
    assert env.observation_spec["observation"].dtype == torch.float32
    assert env.rollout(3)["next", "observation"].dtype == torch.float32


def test_an_environment_that_needs_nothing_is_returned_unchanged() -> None:
    env = make_env("CartPole-v1", 2)
    assert batched(env) is env
    transformed = batched(pendulum())
    assert batched(transformed) is transformed
