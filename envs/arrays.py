"""What one step of a batch of environments leaves behind, as arrays that a process can share."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import NestedKey
from torchrl.data import Composite, TensorSpec

from .spaces import observation_spec

ALL = slice(None)


class StepArrays(NamedTuple):
    """Arrays `[num_envs, ...]` that every step overwrites.

    `observation` has a structured dtype where the space is a Dict or Tuple. `raw_episode_reward` is NaN where no
    wrapper reports it.
    """

    observation: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    raw_episode_reward: NDArray[np.float64]

    def rows(self, rows: slice) -> StepArrays:
        """Views of the environments in `rows`."""
        if rows is ALL:
            return self
        return StepArrays._make(array[rows] for array in self)


Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]


def step_arrays_for(space: spaces.Space[Any], num_envs: int, allocate: Allocate = np.zeros) -> StepArrays:
    """Arrays for `num_envs` environments with observations in `space`.

    Raises:
        EnvironmentFailure: if the space has no spec.

    """
    arrays = StepArrays(
        allocate((num_envs,), observation_dtype(observation_spec(space))),
        allocate((num_envs,), np.float64),
        allocate((num_envs,), np.bool_),
        allocate((num_envs,), np.bool_),
        allocate((num_envs,), np.float64),
    )
    arrays.raw_episode_reward[:] = np.nan
    return arrays


def observation_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """The dtype of one observation, its shape included; structured, and nested as it is, for a Composite.

    float64, as MuJoCo's, is float32 in a spec: it would only be converted again at every use.
    """
    if isinstance(spec, Composite):
        # Aligned: PyTorch's views need strides that are multiples of the item's size.
        return np.dtype([(name, observation_dtype(one)) for name, one in spec.items()], align=True)
    return np.dtype((torch.empty(0, dtype=spec.dtype).numpy().dtype, tuple(spec.shape)))


def leaves(array: NDArray[Any], root: str = "observation") -> dict[NestedKey, NDArray[Any]]:
    """Views of all leaves of a structured array `[*]`, as `("observation", "image"): [*, *image]`.

    A plain array is its own and only leaf, `"observation"`.
    """
    return {root: array} if array.dtype.names is None else dict(_fields(array, (root,)))


def _fields(array: NDArray[Any], path: tuple[str, ...]) -> Iterator[tuple[NestedKey, NDArray[Any]]]:
    if array.dtype.names is None:
        yield path, array
    for name in array.dtype.names or ():
        yield from _fields(array[name], (*path, name))


def shared(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros in memory that this process shares with those it forks."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, mmap.mmap(-1, max(size, 1)))
