"""Two environments with random observations from any space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
from gymnasium import spaces

from torchppo.envs import VectorEnv
from torchppo.envs.vector.serial import SerialVectorEnv


class RandomObservations(gymnasium.Env[Any, Any]):
    """Random observations in episodes of four steps. Raises for an action outside the space."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.observation_space.seed(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._num_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._num_steps += 1
        return self.observation_space.sample(), 1.0, self._num_steps == 4, False, {}


@pytest.fixture(scope="session")
def random_env() -> Callable[[spaces.Space[Any], spaces.Space[Any]], VectorEnv]:
    """A function that makes two environments with these observations and actions."""
    return lambda observation, action: VectorEnv(SerialVectorEnv([lambda: RandomObservations(observation, action)] * 2))
