"""Converts observations and actions between an environment's spaces and NumPy arrays, and checks observations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import NestedKey

from ...errors import EnvironmentFailure
from .box_actions import box_converter
from .specs import is_empty, is_text, leaf_arrays, subspaces
from .text import tokenize

Converter = Callable[[Any], Any]
ActionConverter = Callable[[Any], NDArray[Any]]


class EncodeSpaces(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Encodes observations for `array[index] = observation` and decodes actions from `action = array[index]`.

    `observation_space` and `action_space` remain those of the environment. Observations are checked before.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], encode: Converter, decode: Converter) -> None:
        super().__init__(env)
        self._encode, self._decode = encode, decode
        self._fits = fits(env.observation_space)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return self._encode(self._checked(observation)), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(self._decode(action))
        return self._encode(self._checked(observation)), reward, terminated, truncated, info

    def _checked(self, observation: Any) -> Any:
        if not self._fits(observation):
            raise_on_mismatch(self.env, observation)
        return observation


def encode_spaces(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Apply `EncodeSpaces` if a space needs it; else return the environment itself, at no cost per step."""
    encode = encoder(env.observation_space)
    decode = decoder(env.action_space)
    return env if encode is decode is identity else EncodeSpaces(env, encode, decode)


def identity(value: Any) -> Any:
    return value


def encoder(space: spaces.Space[Any]) -> Converter:
    """Return the function that converts an observation to an element of `StepArrays.observation`.

    A Dict or Tuple becomes a tuple in the order of the space, a text its tokens, and discrete values start at zero.
    Returns `identity` if nothing has to be converted.
    """
    encoders = [(key, encoder(subspace)) for key, subspace in subspaces(space)]
    if encoders:
        return lambda observation: tuple(encode(observation[key]) for key, encode in encoders)
    if is_text(space):
        return tokenize
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        start = space.start
        return lambda observation: observation - start
    return identity


def decoder(space: spaces.Space[Any]) -> Converter:
    """Return the function that converts an element of an array of actions to an element of `space`.

    Returns `identity` if nothing has to be converted.
    """
    if is_empty(space):
        element = space.sample()
        if isinstance(element, np.ndarray):  # `action` is an action or a batch of them
            return lambda action: np.broadcast_to(element, np.shape(action) + element.shape)
        return lambda _: element
    if isinstance(space, spaces.Tuple):
        items = [(_field(key, one), decoder(one)) for key, one in enumerate(space.spaces)]
        return lambda action: tuple(decode(field(action)) for field, decode in items)
    if isinstance(space, spaces.Dict):
        entries = [(key, _field(key, one), decoder(one)) for key, one in space.spaces.items()]
        return lambda action: {key: decode(field(action)) for key, field, decode in entries}
    if space.shape == () and isinstance(space, spaces.Box):
        return np.asarray  # an element of an array `[envs]` is a scalar, not an array
    return identity


def _field(key: Any, space: spaces.Space[Any]) -> Converter:
    """Return the function that reads a part of a nested action. Parts without elements are not in the array."""
    return identity if is_empty(space) else itemgetter(str(key))


def action_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """Return the NumPy dtype of one action of the environment, including its shape; structured for a Dict or Tuple."""
    if items := subspaces(space):
        return np.dtype([(str(key), action_dtype(subspace)) for key, subspace in items], align=True)
    return np.dtype((space.dtype, space.shape))


def action_converter(space: spaces.Space[Any]) -> ActionConverter:
    """Return the function that converts a batch of the policy's actions to those of the environments.

    It clips actions to the bounds of a Box, adds the `start` of discrete spaces and casts to the dtype of the space.

    Returns:
        A function from `[envs, *action]` to `[envs, *action]`. For a Dict or Tuple, its argument has one such array
        for every leaf, `{("action", "move"): ...}`, and its result is one structured array `[envs]`.

    """
    if not subspaces(space):
        return _leaf_converter(space)
    dtype = action_dtype(space)
    converters = {key: _leaf_converter(leaf) for key, leaf in _leaf_spaces(space, ("action",))}

    def convert(actions: dict[NestedKey, NDArray[Any]]) -> NDArray[Any]:
        converted = {key: converters[key](action) for key, action in actions.items()}
        packed = np.empty(len(next(iter(converted.values()))), dtype)
        for key, field in leaf_arrays(packed, "action").items():
            field[...] = converted[key]
        return packed

    return convert


def lacks_mask(observation: spaces.Space[Any], action: spaces.Space[Any]) -> bool:
    """Return whether actions could have a mask, but the observation contains none."""
    names = {path[-1] for path, _ in _leaf_spaces(observation, ("observation",))}
    return isinstance(action, spaces.Discrete | spaces.MultiDiscrete) and "action_mask" not in names


def _leaf_converter(space: spaces.Space[Any]) -> ActionConverter:
    dtype: Any = space.dtype
    if isinstance(space, spaces.Box) and dtype != np.bool_:
        return box_converter(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        start = space.start
        return lambda action: (action + start).astype(dtype, copy=False)
    return lambda action: action.astype(dtype)  # copies, because an environment may modify its action in place


def _leaf_spaces(space: spaces.Space[Any], path: tuple[str, ...]) -> Iterator[tuple[NestedKey, spaces.Space[Any]]]:
    items = subspaces(space)
    if not items:
        yield path, space
    for key, subspace in items:
        yield from _leaf_spaces(subspace, (*path, str(key)))


def fits(space: spaces.Space[Any]) -> Callable[[Any], bool]:
    """Return a fast function that is true only for observations that fit a space; see `find_mismatch` for the others.

    It does not look at the elements of an array of a Box or MultiBinary, which have a fixed dtype.
    """
    if items := subspaces(space):
        checks = [(key, fits(one)) for key, one in items]
        if isinstance(space, spaces.Dict):
            return lambda value: (
                isinstance(value, dict) and all(key in value and fit(value[key]) for key, fit in checks)
            )
        size = 1 + max(key for key, _ in checks)
        return lambda value: (
            isinstance(value, list | tuple) and len(value) >= size and all(fit(value[key]) for key, fit in checks)
        )
    if is_text(space):
        return lambda value: isinstance(value, str)
    if isinstance(space, spaces.Discrete):
        first, end = int(space.start), int(space.start + space.n)
        return lambda value: isinstance(value, int | np.integer) and first <= int(value) < end
    dtype, shape = space.dtype, space.shape
    if not isinstance(space, spaces.Box | spaces.MultiBinary):
        return lambda _: False
    kinds = "f" if isinstance(space, spaces.Box) and np.issubdtype(dtype, np.floating) else ""
    return lambda value: (
        isinstance(value, np.ndarray) and value.shape == shape and (value.dtype == dtype or value.dtype.kind in kinds)
    )


def raise_on_mismatch(env: gymnasium.Env[Any, Any], observation: Any) -> None:
    """Raise an `EnvironmentFailure` if an observation does not fit the environment's `observation_space`."""
    mismatch = find_mismatch(env.observation_space, observation)
    if mismatch:
        raise EnvironmentFailure(f"{mismatch}; fix the environment or its observation_space")


def find_mismatch(space: spaces.Space[Any], value: Any, path: str = "observation") -> str:
    """Describe why an observation cannot be stored in an array for `space`; empty if it can.

    The bounds of float Boxes are not checked, because many environments exceed theirs slightly.
    """
    if items := subspaces(space):
        keys = list(value) if isinstance(value, Mapping) else list(range(len(value))) if _is_sequence(value) else []
        missing = [key for key, _ in items if key not in keys]
        if missing:
            return f"{path} has no entry {missing[0]!r}"
        return next(filter(None, (find_mismatch(one, value[key], f"{path}/{key}") for key, one in items)), "")
    if is_text(space):
        return "" if isinstance(value, str) else f"{path} has type {type(value).__name__}; expected str"
    if value is None:
        return f"{path} is None"
    array = np.asarray(value)
    if array.shape != space.shape:
        return f"{path} has shape {array.shape}; expected {space.shape}"
    if isinstance(space, spaces.Box):
        if array.size == 0:
            return ""
        if np.issubdtype(space.dtype, np.floating):
            is_number = array.dtype.kind in "biuf"
            return "" if is_number else f"{path} has dtype {array.dtype}; expected {space.dtype}"
        low, high = (0, 1) if space.dtype == np.bool_ else (np.iinfo(space.dtype).min, np.iinfo(space.dtype).max)
    else:
        low = getattr(space, "start", 0)
        high = low + _num_values(space) - 1
    if not np.issubdtype(array.dtype, np.integer) and array.dtype != np.bool_:
        return f"{path} has dtype {array.dtype}; expected {space.dtype}"
    outside = array[(array < low) | (array > high)]
    return f"{path} has the value {outside.flat[0]}, which is not in {space}" if outside.size else ""


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, str)


def _num_values(space: spaces.Space[Any]) -> Any:
    """Return the number of values of each element of a discrete space, `[*shape]`."""
    match space:
        case spaces.Discrete():
            return space.n
        case spaces.MultiDiscrete():
            return space.nvec
    return 2
