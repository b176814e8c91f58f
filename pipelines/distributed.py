"""Reductions over the ranks of a distributed run, and what ends a training on all ranks after a signal.

With a single process, reductions return their input.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TypeVar, cast

import torch
from lightning import Callback, Trainer
from torch import Tensor, distributed

from ..errors import TorchPPOError
from .stopping.processes import kill_children
from .stopping.signals import SIGNALS, Stopped, exit_code

T = TypeVar("T")

LAUNCHER = "TORCHPPO_LAUNCHER"
"""Environment variable with the process that launches the other ranks on this machine."""
FORWARDED = getattr(signal, "SIGRTMIN", 0)
"""Added to a signal with which another rank tells rank 0 that it has received it."""
ROLLOUT_SECONDS, SAVE_SECONDS = 5.0, 30.0
"""Time after a signal in which the rollout must end, and the results must be saved."""
REPEAT_SECONDS = 0.2
"""`timeout` and sweeps send a signal twice, to the process and to its group. Within this time it counts once."""

if hasattr(os, "register_at_fork"):  # forked processes have copies of the pipe of `StopOnSignal`
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


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


class StopOnSignal(Callback):
    """Lets `SIGNALS` end the process, as a context of the main thread. In other threads, it does nothing.

    A signal raises `Stopped`. While Lightning trains, it ends the training of all ranks after the rollout instead. A
    thread ends the process at once after a second signal, or if the rollout takes more than `ROLLOUT_SECONDS`.

    Attributes:
        received: the first signal, or `None`.
        before_exit: function that is called before the process ends at once; receives the signal.

    """

    def __init__(self, before_exit: Callable[[int], object] = lambda _: None) -> None:
        self.received: int | None = None
        self.before_exit = before_exit
        self._raises = True
        self._seconds = ROLLOUT_SECONDS
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}
        self._launcher: int | None = None  # the process of rank 0, if it has launched this one
        self._pipe: tuple[int, int] | None = None

    @property
    def is_launched(self) -> bool:
        """Whether rank 0 has started this process."""
        return self._launcher is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._launcher = os.getppid() if os.environ.get(LAUNCHER) == str(os.getppid()) else None
            os.environ[LAUNCHER] = str(os.getpid())
            for number in {*SIGNALS, *(number + FORWARDED for number in SIGNALS)}:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            os.environ.pop(LAUNCHER, None)
        self._previous = {}
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._pipe[1])  # ends the thread
            self._pipe = None

    def watch(self) -> None:
        """Start the thread. Processes that are forked before do not inherit it."""
        if self._previous and self._pipe is None and os.name == "posix":
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True).start()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Finish rollouts from now on. Replace Lightning's handlers, which exit with code 0 or 1."""
        self._raises = False
        for number in self._previous:
            signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop all ranks after the same rollout."""
        number = self.received or 0
        if num_ranks() > 1:
            numbers = torch.tensor(number, device=trainer.strategy.root_device)
            distributed.all_reduce(numbers, op=distributed.ReduceOp.MAX)
            number = int(numbers)
        if number:
            self.received, self._seconds, trainer.should_stop = number, SAVE_SECONDS, True

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._raises = True

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """Return the result of `work`, or `None` if a signal arrived earlier or interrupts it."""
        before, self._raises = self._raises, True
        try:
            return None if self.received is not None else work()
        except Stopped:
            self._seconds = SAVE_SECONDS
            return None
        finally:
            self._raises = before

    def _receive(self, number: int, _: object) -> None:
        """Handle a signal in the main thread."""
        if os.getpid() != self._pid:  # an environment has forked a process; only SIGTERM ends it
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if self.received is not None:
            return
        self.received = number if number in SIGNALS else number - FORWARDED
        if self._pipe is None:
            self.watch()
            if self._pipe is not None:
                os.write(self._pipe[1], bytes([number]))
        if rank() == 0:  # `print` is not safe here, because the signal may have interrupted it
            when = b"" if self._raises else b" after this rollout"
            os.write(2, b"\ntorchppo: stopping%b; press again to stop at once\n" % when)
        if self._raises:
            raise Stopped(self.received)

    def _watch(self, pipe: int) -> None:
        """Read the signals that arrive, also while the main thread executes C code; end the process when it is due."""
        first, start = 0, 0.0
        with os.fdopen(pipe, "rb", buffering=0) as file:
            while not first or time.monotonic() - start <= self._seconds:
                if select.select([file], [], [], 0.05 if first else None)[0]:
                    content = file.read(1)
                    if not content:
                        return
                    number, is_direct = content[0], content[0] in SIGNALS
                    if not first and (is_direct or number - FORWARDED in SIGNALS):
                        first, start = number if is_direct else number - FORWARDED, time.monotonic()
                        if self._launcher is not None:
                            with suppress(OSError):
                                os.kill(self._launcher, first + FORWARDED)
                    elif is_direct and (number != first or time.monotonic() - start > REPEAT_SECONDS):
                        break
        self._end(first)

    def _end(self, number: int) -> None:
        """End this process and its children. A rank that rank 0 has launched leaves this to rank 0."""
        end = time.monotonic() + SAVE_SECONDS
        while os.getppid() == self._launcher and time.monotonic() < end:
            time.sleep(0.05)
        os.write(2, b"\ntorchppo: stopping at once; the last checkpoint is the state before the last rollout\n")
        with suppress(Exception):
            self.before_exit(number)
        kill_children()
        os._exit(exit_code(number))
