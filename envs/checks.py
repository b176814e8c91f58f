"""Observations that do not fit their space, which an array would take as something else without a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..errors import EnvironmentFailure
from .spaces import entries, is_text


def checked(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The same environment, whose observations are looked at up to those of the first step, and no later ones.

    The methods that look stand before the environment's own until then, so that later steps pay nothing; none does
    while the environment resets, which may copy itself.

    Raises:
        EnvironmentFailure: at that reset or step, if one does not fit `observation_space`.

    """
    own: dict[str, Any] = {}

    def look(**methods: Any) -> None:
        own.update({name: vars(env)[name] for name in methods if name in vars(env)})
        vars(env).update(methods)

    def look_away() -> None:
        for name, method in (("reset", reset), ("step", step)):
            if vars(env).get(name) is method:
                del vars(env)[name]
                vars(env).update({name: own[name]} if name in own else {})
        own.clear()

    def reset(**kwargs: Any) -> tuple[Any, dict[str, Any]]:
        look_away()
        observation, info = env.reset(**kwargs)
        refuse_misfit(env, observation)
        look(reset=reset, step=step)
        return observation, info

    def step(action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        look_away()
        observation, reward, terminated, truncated, info = env.step(action)
        refuse_misfit(env, observation)
        return observation, reward, terminated, truncated, info

    look(reset=reset)
    return env


def refuse_misfit(env: gymnasium.Env[Any, Any], observation: Any) -> None:
    """Raise an EnvironmentFailure for an observation that does not fit its space."""
    problem = misfit(env.observation_space, observation)
    if problem:
        raise EnvironmentFailure(f"{problem}; mend the environment, or its observation_space")


def misfit(space: spaces.Space[Any], value: Any, path: str = "observation") -> str:
    """What is wrong with an observation; nothing if an array for `space` holds what it says.

    Bounds of floats are not looked at: many environments overstep theirs a little.
    """
    inner = entries(space)
    if inner:
        given = list(value) if isinstance(value, Mapping) else list(range(len(value))) if has_length(value) else []
        missing = [key for key, _ in inner if key not in given]
        if missing:
            return f"{path} has no entry {missing[0]!r}"
        return next(filter(None, (misfit(one, value[key], f"{path}/{key}") for key, one in inner)), "")
    if is_text(space):
        return "" if isinstance(value, str) else f"{path} is a {type(value).__name__}, not a text"
    array = np.asarray(value)
    if array.shape != space.shape:
        return f"{path} has the shape {array.shape}, not {space.shape}"
    if isinstance(space, spaces.Box):
        if np.issubdtype(space.dtype, np.floating) or array.size == 0:
            return ""
        low, high = (0, 1) if space.dtype == np.bool_ else (np.iinfo(space.dtype).min, np.iinfo(space.dtype).max)
    else:
        low, high = lowest(space), lowest(space) + number(space) - 1
    if not np.issubdtype(array.dtype, np.integer) and array.dtype != np.bool_:
        return f"{path} is of {array.dtype}, in a space of {space.dtype}"
    outside = array[(array < low) | (array > high)]
    return f"{path} holds {outside.flat[0]}, which is outside of {space}" if outside.size else ""


def has_length(value: Any) -> bool:
    """Whether it is a sequence of some kind."""
    return hasattr(value, "__len__") and not isinstance(value, str)


def lowest(space: spaces.Space[Any]) -> Any:
    """The smallest number of a space of choices, `[*shape]`."""
    return getattr(space, "start", 0)


def number(space: spaces.Space[Any]) -> Any:
    """How many numbers a space of choices has, `[*shape]`."""
    match space:
        case spaces.Discrete():
            return space.n
        case spaces.MultiDiscrete():
            return space.nvec
    return 2
