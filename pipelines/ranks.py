"""Sums over the processes of a distributed training; over one process they cost nothing."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def num_ranks() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, the same on each."""
    if num_ranks() > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def normalized(values: Tensor) -> Tensor:
    """Values with mean 0 and standard deviation 1 over all entries and all ranks."""
    count, total = summed(torch.stack([values.new_tensor(float(values.numel())), values.sum()]))
    centered = values - total / count
    return centered / ((summed(centered.square().sum()) / count).sqrt() + 1e-8)
