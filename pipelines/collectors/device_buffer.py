"""Observations of a rollout for a policy on an accelerator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import NestedKey
from torch import Tensor

from ...envs import ALL_ENVS, leaf_arrays


class DeviceObservations:
    """The observations of a rollout, each copied to the device once; see `HostObservations`.

    Environments write into pinned memory. The observations of a step are copied from there asynchronously.

    Args:
        shape: `[time, num_envs, *observation]`.
        dtype: dtype of the observations, structured if they are nested.
        device: device of the policy.

    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device) -> None:
        num_bytes = math.prod(shape[2:]) * dtype.itemsize
        self._host = torch.zeros(*shape[:2], num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.empty(self._host.shape, dtype=torch.uint8, device=device)
        self.array: NDArray[Any] = self._host.numpy().reshape(-1).view(dtype).reshape(shape)
        self._leaves = {key: self._on_device(torch.from_numpy(leaf)) for key, leaf in leaf_arrays(self.array).items()}

    def _on_device(self, leaf: Tensor) -> Tensor:
        """Return the view of the device's bytes with the same offset and strides as `leaf` in the host's."""
        offset = (leaf.data_ptr() - self._host.data_ptr()) // leaf.itemsize
        return self._device.view(-1).view(leaf.dtype).as_strided(leaf.shape, leaf.stride(), offset)

    def read(self, step: int, env_slice: slice = ALL_ENVS) -> dict[NestedKey, Tensor]:
        """Copy the observations of a step to the device and return them."""
        self._device[step, env_slice].copy_(self._host[step, env_slice], non_blocking=True)
        return {key: tensor[step, env_slice] for key, tensor in self._leaves.items()}

    def observations(self) -> dict[NestedKey, Tensor]:
        """Return the observations that the policy has read, on the device."""
        return {key: tensor[:-1] for key, tensor in self._leaves.items()}

    def next_observations(self, final: Sequence[tuple[int, NDArray[np.intp], NDArray[Any]]]) -> dict[NestedKey, Tensor]:
        """Return the next observations on the device; copies those of the last step and the `FinalObservations`."""
        self.read(-1)
        next_obs = {key: tensor[1:].clone() if final else tensor[1:] for key, tensor in self._leaves.items()}
        for step, envs, observation in final:
            for key, last in leaf_arrays(observation).items():
                next_obs[key][step, torch.from_numpy(envs)] = torch.from_numpy(last).to(next_obs[key].device)
        return next_obs
