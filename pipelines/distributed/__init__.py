"""Reductions over the ranks of a distributed run. With a single process, they return their input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from torch import Tensor, distributed

from ...errors import TorchPPOError

if TYPE_CHECKING:
    from .shared_memory import SharedSum

T = TypeVar("T")

MAX_SHARED_BYTES = 1 << 26
"""Largest tensor in shared memory, which has two copies per rank. The latency of larger sums does not matter."""
_shared_sums: dict[Any, SharedSum | None] = {}  # of the process group


def num_ranks() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def summed(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in one all-reduce; every rank gets the same result."""
    if num_ranks() == 1:
        return tensor
    if tensor.device.type == "cpu" and (shared_sum := _shared_sum(tensor.nbytes)) is not None:
        return shared_sum(tensor)
    tensor = tensor.clone()
    distributed.all_reduce(tensor)
    return tensor


def _shared_sum(num_bytes: int) -> SharedSum | None:
    """Return the sum in shared memory; `None` for large tensors, several machines, and other backends than gloo."""
    group = distributed.group.WORLD
    found = _shared_sums.get(group)
    if num_bytes > MAX_SHARED_BYTES or (found is None and group in _shared_sums):
        return None
    if found is None or num_bytes > found.capacity:
        from .shared_memory import connect

        if found is not None:
            found.close()
        is_gloo = distributed.get_backend() == "gloo"
        _shared_sums[group] = connect(num_bytes, rank(), num_ranks(), lambda own: gathered([own])) if is_gloo else None
    return _shared_sums[group]


def gathered(items: list[T]) -> list[T]:
    """Concatenate the lists of all ranks in rank order; every rank gets the same result."""
    if num_ranks() == 1:
        return items
    lists: list[list[T]] = [[] for _ in range(num_ranks())]
    distributed.all_gather_object(lists, items)
    return [item for one in lists for item in one]


def raise_on_all_ranks(work: Callable[[], T]) -> T:
    """Return the result of `work`, or raise on every rank if it failed on any of them.

    Without this, the other ranks would wait in their next collective until the connection times out.

    Raises:
        TorchPPOError: the error of this rank, or the first error of another rank, with the number of that rank.

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


def on_rank_zero(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and return its result on every rank, or raise its error on every rank."""
    return gathered([raise_on_all_ranks(lambda: work() if rank() == 0 else cast(T, None))])[0]


def normalized(values: Tensor) -> Tensor:
    """Normalize values `[groups, *]` to mean 0 and standard deviation 1 in every group, over all ranks."""
    # In float32 the mean of equal values is not exactly their value, and the division would amplify the difference.
    flat = values.flatten(1).double()
    count = flat.shape[1] * num_ranks()
    centered = flat - summed(flat.sum(1, keepdim=True)) / count
    deviation = (summed(centered.square().sum(1, keepdim=True)) / count).sqrt()
    return (centered / (deviation + 1e-8)).to(values.dtype).reshape(values.shape)
