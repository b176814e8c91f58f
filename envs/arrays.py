"""What one step of a batch of environments leaves behind, as arrays that a process can share."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array
from numpy.typing import NDArray


class StepArrays(NamedTuple):
    """Arrays `[num_envs, ...]` that every step overwrites.

    `raw_episode_reward` is NaN where no wrapper reports it.
    """

    observation: Any
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    raw_episode_reward: NDArray[np.float64]

    def rows(self, rows: slice) -> StepArrays:
        """Views of the environments in `rows`."""
        return StepArrays._make(array[rows] for array in self)


Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]


def step_arrays_for(space: spaces.Space[Any], num_envs: int, allocate: Allocate = np.zeros) -> StepArrays:
    """Arrays for `num_envs` environments with observations in `space`."""
    observation: Any
    if isinstance(space, spaces.Box):
        # float64, as MuJoCo's, would only be converted again at every use.
        dtype = np.dtype(np.float32 if space.dtype == np.float64 else space.dtype)
        observation = allocate((num_envs, *space.shape), dtype)
    else:
        observation = create_empty_array(space, num_envs)
    arrays = StepArrays(
        observation,
        allocate((num_envs,), np.float64),
        allocate((num_envs,), np.bool_),
        allocate((num_envs,), np.bool_),
        allocate((num_envs,), np.float64),
    )
    arrays.raw_episode_reward[:] = np.nan
    return arrays


def shared(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros in memory that this process shares with those it forks."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8, size).view(dtype).reshape(shape)
