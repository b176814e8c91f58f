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
    """Sums an environment's own rewards into `info["raw_episode_reward"]`, whatever outer wrappers make of them."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start a sum."""
        self._total = 0.0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Add a reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._total += float(reward)
        return observation, reward, terminated, truncated, {**info, "raw_episode_reward": self._total}


class ObservationEntries(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Keeps some entries of a Box observation `[entries]`, to hide velocities, say.

    Args:
        env: what to wrap.
        indices: the entries that stay, in their new order.

    Raises:
        ConfigurationError: if the observation is not a Box of one dimension that has these entries.

    """

    def __init__(self, env: gymnasium.Env[Any, Any], indices: Sequence[int]) -> None:
        """Select the bounds."""
        super().__init__(env)
        space = env.observation_space
        self._indices = np.array(list(indices), np.intp)
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not _are_within(self._indices, space.shape[0]):
            raise ConfigurationError(
                f"ObservationEntries.indices={list(indices)} must be entries of a one-dimensional Box, not of {space}"
            )
        low, high = space.low[self._indices], space.high[self._indices]
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """`[entries]` to `[indices]`."""
        return observation[self._indices]


class ChannelsFirst(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Images `[height, width, channels]` as `[channels, height, width]`, which convolutions read.

    Raises:
        ConfigurationError: if the observation is not a Box of three dimensions.

    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Turn the bounds."""
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise ConfigurationError(f"ChannelsFirst needs a Box [height, width, channels], not {space}")
        low, high = self.observation(space.low), self.observation(space.high)
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """`[height, width, channels]` to `[channels, height, width]`."""
        return np.moveaxis(observation, -1, 0)


class ActionMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes `info["action_mask"]` into the observation: `Dict(observation=<as before>, action_mask=MultiBinary)`.

    The mask has one bit for every choice, of a MultiDiscrete one choice after the other, `[sum(nvec)]`: 1 where it
    may be taken. It has to come with every reset and step.

    Raises:
        ConfigurationError: if actions are neither Discrete nor a MultiDiscrete of one dimension.
        EnvironmentFailure: while running, if there is no mask of that size.

    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Extend the observation space."""
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
        """Start an episode."""
        observation, info = self.env.reset(**kwargs)
        return self._masked(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._masked(observation, info), reward, terminated, truncated, info

    def _masked(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        if "action_mask" not in info:
            raise EnvironmentFailure(
                f'{self.unwrapped} gives no info["action_mask"] with a reset or step; '
                "take ActionMask out of env.wrappers"
            )
        mask = np.asarray(info["action_mask"], np.int8)
        if mask.shape != (self._size,):
            raise EnvironmentFailure(
                f'{self.unwrapped} gives an info["action_mask"] of shape {mask.shape}, not ({self._size},)'
            )
        return {"observation": observation, "action_mask": mask}


def _are_within(indices: NDArray[np.intp], size: int) -> bool:
    return bool(len(indices)) and bool(((indices >= 0) & (indices < size)).all())


def random_action(space: spaces.Space[Any], info: dict[str, Any]) -> Any:
    """A random action, one that `info["action_mask"]` allows if there is such a thing as `ActionMask` takes."""
    mask = info.get("action_mask")
    if mask is None:
        return space.sample()
    mask = np.asarray(mask, np.int8)
    if isinstance(space, spaces.MultiDiscrete):
        return space.sample(tuple(np.split(mask, np.cumsum(space.nvec)[:-1])))
    return space.sample(mask)
