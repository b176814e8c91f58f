"""Actions on their way from the policy to the environments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import NestedKey

from .arrays import leaves
from .spaces import entries

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
        for key, field in leaves(packed, "action").items():
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
