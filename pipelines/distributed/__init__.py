"""Reductions over the ranks of a distributed run. With a single process, they return their input."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed

from ...errors import TorchPPOError

if TYPE_CHECKING:
    from .shared_memory import SharedSum

T = TypeVar("T")

MAX_SHARED_BYTES = 1 << 26
"""Largest tensor that is summed in shared memory, where each rank has two copies of it."""
_shared_sums: WeakKeyDictionary[Any, SharedSum | None] = WeakKeyDictionary()  # by process group


def num_ranks() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def leave_group() -> None:
    """Destroy the process group. Otherwise, its threads may abort the process while the interpreter shuts down."""
    if num_ranks() > 1:
        gc.collect()  # DDP refers to the group
        distributed.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def summed(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in one all-reduce; every rank gets the same result."""
    if num_ranks() == 1:
        return tensor
    if tensor.device.type == "cpu" and (shared_sum := _shared_sum(tensor.nbytes)) is not None:
        return shared_sum(tensor)
    total = tensor.to(_device_of_group(tensor.device), copy=True)
    distributed.all_reduce(total)
    return total.to(tensor.device)


def stacked(tensor: Tensor) -> Tensor:
    """Return the tensors of all ranks, `[num_ranks, *shape]`, in one all-reduce."""
    if num_ranks() == 1:
        return tensor.unsqueeze(0)
    table = tensor.new_zeros(num_ranks(), *tensor.shape)
    table[rank()] = tensor
    return summed(table)


def averaged(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Average tensors of the same type over all ranks, in one all-reduce; every rank gets the same result."""
    if num_ranks() == 1:
        return [*tensors]
    flat = summed(torch.cat([tensor.reshape(-1) for tensor in tensors])) / num_ranks()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def reduce_at_once(tensor: Tensor, use: Callable[[Tensor], object]) -> None:
    """Call `use` with the tensors of all ranks (see `modules.normalizers.Reduce`)."""
    use(stacked(tensor))


class Exchange:
    """Passes tensors and numbers between ranks at the end of a rollout, in one all-reduce.

    Attributes:
        numbers: functions that return a number of this rank, by name. Callbacks add theirs when the training starts.
        of_ranks: the numbers of all ranks at the end of the last rollout, by name.

    """

    def __init__(self) -> None:
        self.numbers: dict[str, Callable[[], float]] = {}
        self.of_ranks: dict[str, list[float]] = {}
        self._waiting: list[tuple[Tensor, Callable[[Tensor], object]]] = []

    def reduce(self, tensor: Tensor, use: Callable[[Tensor], object]) -> None:
        """Call `use` with the tensors of all ranks in the next `run`, or at once if there is only one rank."""
        if num_ranks() == 1:
            reduce_at_once(tensor, use)
        else:
            self._waiting.append((tensor, use))

    def run(self) -> None:
        """Exchange the tensors, as float64, and the numbers. All ranks must call it."""
        if num_ranks() == 1:
            return
        numbers = torch.tensor([read() for read in self.numbers.values()], dtype=torch.float64)
        waiting, self._waiting = [*self._waiting, (numbers, self._keep)], []
        table = stacked(torch.cat([tensor.detach().reshape(-1).double().cpu() for tensor, _ in waiting]))
        parts = table.split([tensor.numel() for tensor, _ in waiting], dim=1)
        for part, (tensor, use) in zip(parts, waiting, strict=True):
            use(part.reshape(num_ranks(), *tensor.shape).to(tensor))

    def _keep(self, table: Tensor) -> None:
        self.of_ranks = dict(zip(self.numbers, table.T.tolist(), strict=True))


def _device_of_group(device: torch.device) -> torch.device:
    """Return the device for tensors that the ranks exchange; NCCL needs a GPU."""
    is_nccl = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_nccl else device


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
    if summed(torch.tensor(float(failure is not None))) > 0:
        failures = gathered([failure])
        if failure is not None:
            raise failure
        rank, other = next((rank, other) for rank, other in enumerate(failures) if other is not None)
        raise type(other)(f"on rank {rank}: {other}")
    return result


def on_rank_zero(work: Callable[[], T]) -> T:
    """Do `work` on rank 0 and return its result on every rank, or raise its error on every rank."""
    return gathered([raise_on_all_ranks(lambda: work() if rank() == 0 else cast(T, None))])[0]


def normalized(values: Tensor) -> Tensor:
    """Normalize values `[groups, *]` to mean 0 and standard deviation 1 in every group, over all ranks."""
    # In float32 the mean of equal values is not exactly their value, and the division would amplify the difference.
    flat = values.flatten(1).double()
    mean, variance = mean_and_variance(flat)
    return ((flat - mean) / (variance.sqrt() + 1e-8)).to(values.dtype).reshape(values.shape)


def mean_and_variance(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of values `[groups, n]` over all ranks, `[groups, 1]` each, in one all-reduce.

    Source: Chan, Golub and LeVeque 1983 (parallel variance).
    """
    count = values.shape[1]
    mean = values.sum(1, keepdim=True) / count
    deviation = (values - mean).square().sum(1, keepdim=True)
    if num_ranks() == 1:
        return mean, deviation / count
    means, deviations = stacked(torch.stack([mean, deviation])).unbind(1)
    mean = means.mean(0)
    deviation = (deviations + count * (means - mean).square()).sum(0)
    return mean, deviation / (count * num_ranks())
