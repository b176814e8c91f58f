"""Reductions over the ranks of a distributed run, and a callback that ends training on all ranks after a signal.

With a single process, reductions return their input.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, distributed

from ..errors import TorchPPOError

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOOPBACK = "127.0.0.1"


def num_ranks() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if num_ranks() > 1 else 0


def summed(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks; every rank gets the same result."""
    if num_ranks() > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def mean_over_ranks(value: float) -> float:
    """Return the average of a number over all ranks."""
    return summed(torch.tensor(value, dtype=torch.float64)).item() / num_ranks() if num_ranks() > 1 else value


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


def listen_on_loopback(trainer: Trainer) -> None:
    """Let the ranks of one machine listen on the loopback interface, where PyTorch would listen on all interfaces.

    Addresses and interfaces that environment variables name stay, and so does the store of torchrun. Tested with
    Lightning 2.6 and PyTorch 2.13.
    """
    strategy: Any = trainer.strategy
    is_launched = distributed.is_available() and distributed.is_torchelastic_launched()
    if not isinstance(trainer.strategy, DDPStrategy) or trainer.num_nodes > 1 or is_launched:
        return
    if os.environ.setdefault("MASTER_ADDR", LOOPBACK) != LOOPBACK:
        return
    for name in [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
    from torch.distributed import TCPStore  # type: ignore[attr-defined] # it is in C++

    set_up = strategy.setup_distributed

    def set_up_on_loopback() -> None:
        strategy.set_world_ranks()
        if strategy.global_rank == 0 and not distributed.is_initialized():
            port = strategy.cluster_environment.main_port
            file = socket.create_server((LOOPBACK, port)).detach()
            strategy.store = TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=file)
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # connect to this store
        try:
            set_up()
        finally:
            del os.environ["TORCHELASTIC_USE_AGENT_STORE"]

    strategy.setup_distributed = set_up_on_loopback


class StopOnSignal(Callback):
    """Ends the training on every rank after the current rollout; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_stopping = False  # True after a signal has reached any rank
        self._previous: dict[int, Any] = {}
        self._interrupts = self._prints = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the handlers before Lightning replaces them."""
        self._prints = trainer.is_global_zero
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, which exit with code 0 or 1. Only the main thread can set handlers."""
        for number in self._previous:
            signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop all ranks after the same rollout."""
        self._is_stopping = trainer.strategy.reduce_boolean_decision(self._is_stopping, all=False)
        trainer.should_stop = trainer.should_stop or self._is_stopping

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """Return the result of `work`, or `None` if a signal arrived earlier or interrupts it."""
        self._interrupts = True
        try:
            return None if self._is_stopping else work()
        except _Interrupted:
            return None
        finally:
            self._interrupts = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received, self._is_stopping = number, True
        signal.signal(number, signal.SIG_DFL)
        if self._prints:  # `print` is not safe here: the signal may have interrupted another call of it
            os.write(2, b"\ntorchppo: stopping after this rollout; press again to stop at once\n")
        if self._interrupts:
            raise _Interrupted


class _Interrupted(BaseException):
    """Raised by a signal inside `StopOnSignal.interruptible`."""
