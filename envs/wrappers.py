"""Gymnasium wrappers for `env.wrappers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..errors import ConfigurationError, EnvironmentFailure


class RawEpisodeReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes the return of the current episode so far to `info["raw_episode_reward"]`.

    `make_gymnasium_env` applies it before all other wrappers, so that the return does not depend on reward wrappers.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._episode_reward = 0.0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._episode_reward += float(reward)
        return observation, reward, terminated, truncated, {**info, "raw_episode_reward": self._episode_reward}


class ObservationEntries(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Selects entries of a one-dimensional Box observation, for example to hide velocities.

    Args:
        env: the environment to wrap.
        indices: indices of the entries to keep, in the order of the new observation.

    Raises:
        ConfigurationError: if the observation space is not a one-dimensional Box, or an index is out of range.

    """

    def __init__(self, env: gymnasium.Env[Any, Any], indices: Sequence[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        self._indices = np.array(list(indices), np.intp)
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ConfigurationError(f"ObservationEntries needs a one-dimensional Box observation, not {space}")
        is_in_range = (self._indices >= 0) & (self._indices < space.shape[0])
        if not len(self._indices) or not is_in_range.all():
            raise ConfigurationError(
                f"ObservationEntries.indices={list(indices)} must be one or more of 0 to {space.shape[0] - 1}"
            )
        low, high = space.low[self._indices], space.high[self._indices]
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        return observation[self._indices]


class ChannelsFirst(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Converts images `[height, width, channels]` to `[channels, height, width]`, the layout of PyTorch's convolutions.

    Raises:
        ConfigurationError: if the observation space is not a three-dimensional Box.

    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise ConfigurationError(f"ChannelsFirst needs a Box [height, width, channels], not {space}")
        low, high = self.observation(space.low), self.observation(space.high)
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(observation, -1, 0)


class ActionMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds `info["action_mask"]` to the observation: `Dict(observation=<the original>, action_mask=MultiBinary)`.

    The environment must return a mask with every reset and step. It has one entry per action value, 1 where the value
    is allowed: `[n]` for Discrete, `[sum(nvec)]` for MultiDiscrete (the masks of all dimensions, concatenated).

    Raises:
        ConfigurationError: if the action space is neither Discrete nor one-dimensional MultiDiscrete.
        EnvironmentFailure: at a reset or step without a mask of that size.

    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        match env.action_space:
            case spaces.Discrete(n=n):
                self._size = int(n)
            case spaces.MultiDiscrete(nvec=nvec) if nvec.ndim == 1:
                self._size = int(nvec.sum())
            case _:
                raise ConfigurationError(f"ActionMask needs Discrete or MultiDiscrete actions, not {env.action_space}")
        self.observation_space = spaces.Dict(
            observation=env.observation_space, action_mask=spaces.MultiBinary(self._size)
        )

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self._with_mask(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation, info), reward, terminated, truncated, info

    def _with_mask(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        if "action_mask" not in info:
            raise EnvironmentFailure(
                f'{self.unwrapped} returned no info["action_mask"]; add it, or remove ActionMask from env.wrappers'
            )
        mask = np.asarray(info["action_mask"], np.int8)
        if mask.shape != (self._size,):
            raise EnvironmentFailure(
                f'{self.unwrapped} returned an info["action_mask"] of shape {mask.shape}; expected ({self._size},)'
            )
        return {"observation": observation, "action_mask": mask}


def random_action(space: spaces.Space[Any], info: dict[str, Any]) -> Any:
    """Sample an action, only among those that `info["action_mask"]` allows (see `ActionMask`) if it is given."""
    mask = info.get("action_mask")
    if mask is None:
        return space.sample()
    mask = np.asarray(mask, np.int8)
    if isinstance(space, spaces.MultiDiscrete):
        return space.sample(tuple(np.split(mask, np.cumsum(space.nvec)[:-1])))
    return space.sample(mask)
