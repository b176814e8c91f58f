"""Gymnasium wrappers for `env.wrappers`."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import NormalizeObservation
from numpy.typing import NDArray

from ..errors import ConfigurationError, EnvironmentFailure
from .entry_points import construction_failure
from .resume.plain_data import layers_of
from .spaces.conversion import as_number

Wrapper = Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]
OTHER_SOURCES = ("gymnasium.core", "gymnasium.wrappers", __package__)
"""Modules whose code contains `action_mask`, but whose environments have no mask."""


class RawEpisodeReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes the return of the current episode so far to `info["raw_episode_reward"]`.

    `make_gymnasium_env` applies it before all other wrappers, so that the return does not depend on reward wrappers.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self._episode_reward = 0.0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._episode_reward += as_number(reward)
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
            raise ConfigurationError(
                f"ObservationEntries needs a one-dimensional Box observation, not {space}; apply "
                "gymnasium.wrappers.FlattenObservation first"
            )
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
            raise ConfigurationError(
                f"ChannelsFirst needs a Box [height, width, channels], not {space}; remove the wrapper"
            )
        low, high = self.observation(space.low), self.observation(space.high)
        self.observation_space = spaces.Box(low, high, dtype=space.dtype.type)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(observation, -1, 0)


class ActionMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds the mask of valid actions to the observation: `Dict(observation=<the original>, action_mask=MultiBinary)`.

    The mask is `action_masks`, a method or property of the environment or of a wrapper. Without it, the mask is
    `info["action_mask"]` of every reset and step. It has one entry per action value, 1 where the value is allowed:
    `[n]` for Discrete, `[sum(nvec)]` for MultiDiscrete (the masks of all dimensions, concatenated or as a tuple). If
    the `info` of the last step of an episode has no mask, all actions are valid.

    `make_gymnasium_env` applies this wrapper automatically if an environment with these actions reports a mask.

    Raises:
        ConfigurationError: if the action space is neither Discrete nor MultiDiscrete.
        EnvironmentFailure: at a reset or step without a mask of that size.

    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        match env.action_space:
            case spaces.Discrete(n=n):
                self._size = int(n)
            case spaces.MultiDiscrete(nvec=nvec):
                self._size = int(nvec.sum())
            case _:
                raise ConfigurationError(
                    f"ActionMask needs Discrete or MultiDiscrete actions, not {env.action_space}; remove the mask"
                )
        self._method = mask_method(env)
        self.observation_space = spaces.Dict(
            observation=env.observation_space, action_mask=spaces.MultiBinary(self._size)
        )

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self._with_mask(observation, info, is_last=False)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, info = self._with_mask(observation, info, is_last=bool(terminated) or bool(truncated))
        return observation, reward, terminated, truncated, info

    def _with_mask(
        self, observation: Any, info: dict[str, Any], *, is_last: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the observation and `info`, both with the mask."""
        if self._method is not None:
            source, mask = "action_masks()", self._method()
        else:
            default = np.ones(self._size) if is_last else None
            source, mask = 'info["action_mask"]', info.get("action_mask", default)
        if mask is None:
            raise EnvironmentFailure(
                f'{self.unwrapped} returned no info["action_mask"]; add it to every reset and step, or remove it '
                "everywhere"
            )
        flat = flat_mask(mask)
        if flat.shape != (self._size,):
            raise EnvironmentFailure(
                f"{self.unwrapped} returned {source} of shape {flat.shape}; expected ({self._size},)"
            )
        return {"observation": observation, "action_mask": flat}, {**info, "action_mask": flat}


def mask_method(env: gymnasium.Env[Any, Any]) -> Callable[[], Any] | None:
    """Return a function that reads `action_masks`, as in sb3-contrib, or `None` if there is no such attribute.

    It may be a method or a property of the environment or of one of its wrappers.
    """
    if not env.has_wrapper_attr("action_masks"):
        return None
    method = env.get_wrapper_attr("action_masks")
    return method if callable(method) else lambda: env.get_wrapper_attr("action_masks")


def flat_mask(mask: Any) -> NDArray[np.int8]:
    """Return a mask as an array `[num_choices]`. A tuple of masks, one per dimension, is concatenated."""
    parts = mask if isinstance(mask, list | tuple) and any(np.ndim(part) for part in mask) else [mask]
    return np.concatenate([np.asarray(part).astype(np.int8).reshape(-1) for part in parts])


def with_action_mask(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Apply `ActionMask` to an environment with discrete actions if it reports a mask of the right size.

    If the environment has no method `action_masks`, it is reset to check for a mask in `info`.
    """
    masked = ActionMask(env)
    if mask_method(env) is not None:
        return masked
    try:
        masked.reset()
    except EnvironmentFailure as error:
        if 'no info["action_mask"]' not in str(error):
            warnings.warn(f"the action mask is not used: {error}", RuntimeWarning, stacklevel=2)
        return env
    except Exception:  # noqa: BLE001 - the first reset of the training reports it
        return env
    return masked


def random_action(space: spaces.Space[Any], info: dict[str, Any]) -> Any:
    """Sample an action, only among those that `info["action_mask"]` allows (see `ActionMask`) if it is given."""
    mask = info.get("action_mask")
    if mask is None:
        return space.sample()
    mask = flat_mask(mask)
    if isinstance(space, spaces.MultiDiscrete):
        return space.sample(tuple(np.split(mask, np.cumsum(space.nvec)[:-1])))
    return space.sample(mask)


def wrapped(env: gymnasium.Env[Any, Any], wrapper: Wrapper, key: str, name: str) -> gymnasium.Env[Any, Any]:
    """Apply one wrapper; `key` and `name` name the wrapper and the environment in errors."""
    if not callable(wrapper):
        raise ConfigurationError(
            f"{key}={wrapper} is not callable; write {{_target_: gymnasium.wrappers.ClipAction, _partial_: true}}"
        )
    try:
        env = wrapper(env)
    except Exception as error:  # noqa: BLE001 - a wrapper may raise anything
        raise construction_failure(f"{key} failed for environment {name}", error) from None
    if isinstance(env, NormalizeObservation):
        raise ConfigurationError(
            f"{key} keeps statistics that evaluation and checkpoints do not have; use policy.normalize_observation=true"
        )
    return env


def may_report_mask(env: gymnasium.Env[Any, Any]) -> bool:
    """Return whether an environment may report an action mask.

    The actions are discrete, and the environment or a wrapper has a method `action_masks` or contains `action_mask` in
    the source code of its module.
    """
    observation = env.observation_space
    has_mask = isinstance(observation, spaces.Dict) and "action_mask" in observation.spaces
    if has_mask or not isinstance(env.action_space, spaces.Discrete | spaces.MultiDiscrete):
        return False
    names = {base.__module__ for layer in layers_of(env) for base in type(layer).__mro__}
    return env.has_wrapper_attr("action_masks") or any(
        "action_mask" in _source(name) for name in names if not name.startswith(OTHER_SOURCES)
    )


def _source(module: str) -> str:
    """Return the source code of a module, or an empty string if it has none."""
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return ""
