"""What the processes of a distributed training have together; over one process it costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, distributed

from ..errors import TorchPPOError

Item = TypeVar("Item")


def num_ranks() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def summed(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, the same on each."""
    if num_ranks() > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def gathered(items: list[Item]) -> list[Item]:
    """What all ranks have, in their order, the same on each."""
    if num_ranks() == 1:
        return items
    lists: list[list[Item]] = [[] for _ in range(num_ranks())]
    distributed.all_gather_object(lists, items)
    return [item for one in lists for item in one]


def together(work: Callable[[], Item]) -> Item:
    """What `work` returns on this rank, once it has ended well on all of them.

    Raises:
        TorchPPOError: of this rank, or else of the first on which it failed, which is named; else the others would
            wait for that rank until their connection breaks.

    """
    if num_ranks() == 1:
        return work()
    failure = None
    try:
        result = work()
    except TorchPPOError as error:
        failure = error
    failures = gathered([failure])
    if failure is not None:
        raise failure
    for rank, other in enumerate(failures):
        if other is not None:
            raise type(other)(f"on rank {rank}: {other}")
    return result


def normalized(values: Tensor) -> Tensor:
    """Values `[groups, *]` with mean 0 and standard deviation 1 in every group, over all ranks."""
    flat = values.flatten(1).double()  # in float32 the mean of equal numbers is not theirs, and what is left is all
    count = flat.shape[1] * num_ranks()
    centered = flat - summed(flat.sum(1, keepdim=True)) / count
    deviation = (summed(centered.square().sum(1, keepdim=True)) / count).sqrt()
    return (centered / (deviation + 1e-8)).to(values.dtype).reshape(values.shape)
