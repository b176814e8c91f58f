"""What vector environments that step runs of their environments have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .arrays import ALL, StepArrays
from .spaces import action_spec, observation_spec


class RowsVectorEnv(VectorEnv[Any, Any, Any]):
    """Steps the environments in `rows` when it is sent their actions, and resets those it is told to."""

    @abstractmethod
    def send(self, actions: Any, rows: slice = ALL) -> None:
        """Let the environments in `rows` take a step."""

    @abstractmethod
    def receive(self, rows: slice = ALL) -> StepArrays:
        """What the steps in `rows` left behind; an observation is the true one also where an episode ended."""

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment and wait."""
        self.send(actions)
        observation, reward, terminated, truncated, raw = self.receive()
        return observation, reward, terminated, truncated, {"raw_episode_reward": raw}

    def halves(self) -> list[slice]:
        """Two runs of environments that can be stepped apart, or nothing where they cannot."""
        return []


class Description(NamedTuple):
    """What a vector environment says of its environments."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    render_mode: str | None
    metadata: dict[str, Any]


def description_of(env: gymnasium.Env[Any, Any]) -> Description:
    """What one environment says of itself."""
    return Description(env.observation_space, env.action_space, env.render_mode, env.metadata)


def describe(vector: VectorEnv[Any, Any, Any], single: Description, num_envs: int) -> None:
    """Give a vector environment the spaces and facts of one of its environments, if there is a spec for them."""
    observation_spec(single.observation_space)  # refuses a space that has none, as does the next
    action_spec(single.action_space)
    vector.num_envs = num_envs
    vector.single_observation_space = single.observation_space
    vector.single_action_space = single.action_space
    vector.observation_space = batch_space(single.observation_space, num_envs)
    vector.action_space = batch_space(single.action_space, num_envs)
    vector.render_mode = single.render_mode
    vector.metadata = {**single.metadata, "autoreset_mode": AutoresetMode.DISABLED}


def seeds_of(seed: int | Sequence[int | None] | None, num_envs: int) -> Sequence[int | None]:
    """A seed for every environment: consecutive ones from a number, or none at all."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int):
        return [seed + index for index in range(num_envs)]
    return [None if one is None else int(one) for one in seed]


def reset_indices(options: dict[str, Any] | None, num_envs: int) -> Sequence[int]:
    """Which environments a reset is for."""
    mask = (options or {}).get("reset_mask")
    return range(num_envs) if mask is None else np.flatnonzero(mask).tolist()
