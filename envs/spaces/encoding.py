"""One environment whose observations and actions are elements of NumPy arrays, whatever its spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import NestedKey

from ...errors import EnvironmentFailure
from .specs import entries, is_text, leaf_arrays
from .text import tokens

Coder = Callable[[Any], Any]


class Encoded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Encodes observations for `array[index] = observation`, and decodes `action = array[index]`.

    The spaces stay those of the environment.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], encode: Coder, decode: Coder) -> None:
        """Take the environment and what `encoder` and `decoder` make for its spaces."""
        super().__init__(env)
        self._encode, self._decode = encode, decode

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(**kwargs)
        return self._encode(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(self._decode(action))
        return self._encode(observation), reward, terminated, truncated, info


def encoded(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """An environment itself where its spaces are plain, so that these pay nothing; else `Encoded`."""
    encode = encoder(env.observation_space)
    decode = decoder(env.action_space)
    return env if encode is decode is as_it_is else Encoded(env, encode, decode)


def as_it_is(value: Any) -> Any:
    """The value."""
    return value


def encoder(space: spaces.Space[Any]) -> Coder:
    """What makes an observation one element of an array of `step_arrays_for`; `as_it_is` where it is one.

    A Dict or Tuple becomes a tuple in the order of the space, a text its tokens, and numbers count from zero.
    """
    parts = [(key, encoder(one)) for key, one in entries(space)]
    if parts:
        return lambda observation: tuple(encode(observation[key]) for key, encode in parts)
    if is_text(space):
        return tokens
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        start = space.start
        return lambda observation: observation - start
    return as_it_is


def decoder(space: spaces.Space[Any]) -> Coder:
    """What makes an element of an array of actions one of the space; `as_it_is` where it is one."""
    parts = [(key, str(key), decoder(one)) for key, one in entries(space)]
    if isinstance(space, spaces.Tuple):
        return lambda action: tuple(decode(action[name]) for _, name, decode in parts)
    if isinstance(space, spaces.Dict):
        return lambda action: {key: decode(action[name]) for key, name, decode in parts}
    return as_it_is


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


Convert = Callable[[Any], NDArray[Any]]


def action_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """The dtype of one action as the environment takes it, its shape included; structured for a Dict or Tuple."""
    if inner := entries(space):
        return np.dtype([(str(key), action_dtype(one)) for key, one in inner], align=True)
    return np.dtype((space.dtype, space.shape))


def conversion(space: spaces.Space[Any]) -> Convert:
    """What turns the policy's actions into those of the environments, `[rows, *action]`.

    Returns:
        A function of an array `[rows, *action]`; for a Dict or Tuple of a dictionary of such arrays, one for every
        leaf, `("action", "move")`, that returns one structured array `[rows]`.

    """
    if not entries(space):
        return _leaf_conversion(space)
    dtype = action_dtype(space)
    conversions = {key: _leaf_conversion(leaf) for key, leaf in _leaf_spaces(space, ("action",))}

    def convert(actions: dict[NestedKey, NDArray[Any]]) -> NDArray[Any]:
        converted = {key: conversions[key](action) for key, action in actions.items()}
        packed = np.empty(len(next(iter(converted.values()))), dtype)
        for key, field in leaf_arrays(packed, "action").items():
            field[...] = converted[key]
        return packed

    return convert


def _leaf_conversion(space: spaces.Space[Any]) -> Convert:
    """Clip to the bounds of a Box, count from the `start` of discrete spaces, and cast."""
    dtype: Any = space.dtype
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
        return lambda action: action.clip(low, high).astype(dtype, copy=False)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        start = space.start
        return lambda action: (action + start).astype(dtype, copy=False)
    return lambda action: action.astype(dtype)  # a copy: an environment may change it, and the policy's is the data


def _leaf_spaces(space: spaces.Space[Any], path: tuple[str, ...]) -> Iterator[tuple[NestedKey, spaces.Space[Any]]]:
    inner = entries(space)
    if not inner:
        yield path, space
    for key, one in inner:
        yield from _leaf_spaces(one, (*path, str(key)))
