"""Observations of a rollout for a policy on a device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import NestedKey
from torch import Tensor

from ...envs import ALL_ENVS, leaf_arrays


class Ends(NamedTuple):
    """The last observations of episodes that ended at one step."""

    step: int
    envs: NDArray[np.intp]
    observation: NDArray[Any]


class DeviceStorage:
    """The same for a policy on a device, to which every observation goes once, and stays.

    Environments leave theirs in pinned memory, from which a step's bytes are sent at once and without waiting.

    Args:
        shape: `[time, num_envs, *observation]`.
        dtype: theirs, structured where they are nested.
        device: the policy's.

    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device) -> None:
        """Make room on both sides."""
        row = math.prod(shape[2:]) * dtype.itemsize
        self._here = torch.zeros(*shape[:2], row, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._there = torch.empty(self._here.shape, dtype=torch.uint8, device=device)
        self.arrays: NDArray[Any] = self._here.numpy().reshape(-1).view(dtype).reshape(shape)
        self._leaves = {key: self._placed(tensor) for key, tensor in tensors(leaf_arrays(self.arrays)).items()}

    def _placed(self, here: Tensor) -> Tensor:
        """The same leaf on the device: as it lies among the bytes here, so it does there."""
        offset = (here.data_ptr() - self._here.data_ptr()) // here.itemsize
        return self._there.view(-1).view(here.dtype).as_strided(here.shape, here.stride(), offset)

    def given(self, step: int, rows: slice = ALL_ENVS) -> dict[NestedKey, Tensor]:
        """What a policy reads at a step, sent from `arrays`; to be asked for once."""
        self._there[step, rows].copy_(self._here[step, rows], non_blocking=True)
        return {key: tensor[step, rows] for key, tensor in self._leaves.items()}

    def observed(self) -> dict[NestedKey, Tensor]:
        """What has been sent, on the device."""
        return {key: tensor[:-1] for key, tensor in self._leaves.items()}

    def following(self, ends: Sequence[Ends]) -> dict[NestedKey, Tensor]:
        """The same on the device, of what has been sent, the last step, and the ends."""
        self.given(-1)
        following = {key: tensor[1:].clone() if ends else tensor[1:] for key, tensor in self._leaves.items()}
        for step, envs, observation in ends:
            for key, last in tensors(leaf_arrays(observation)).items():
                following[key][step, torch.from_numpy(envs)] = last.to(following[key].device)
        return following


def tensors(arrays: Mapping[NestedKey, NDArray[Any]]) -> dict[NestedKey, Tensor]:
    """The same memory as tensors."""
    return {key: torch.from_numpy(array) for key, array in arrays.items()}
