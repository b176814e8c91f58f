"""Forked processes for environments: how they start, share memory, wait and end."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, TypeVar, cast

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import ConfigurationError, EnvironmentFailure
from ..failures import environment_failure

Result = TypeVar("Result")

CRASH_HINT = "-9 often means too little memory, -11 a crash of the environment; try env.num_workers=0"
SPIN_SECONDS = 1e-3
"""How long a waiting process yields its core before it sleeps. Waking up takes 50 us and may need another core."""


GROUP_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
if sys.platform != "win32":
    GROUP_SIGNALS += (signal.SIGHUP, signal.SIGUSR1)
"""Signals that a terminal or a scheduler sends to all processes of a command. The first process handles them."""


def can_fork() -> bool:
    """Return whether processes can be forked, which Windows does not support."""
    return "fork" in multiprocessing.get_all_start_methods()


def require_fork(num_workers: int) -> None:
    """Raise a ConfigurationError if worker processes do not work on this system."""
    if not can_fork():
        raise ConfigurationError(
            f"env.num_workers={num_workers} needs fork, which {sys.platform} does not support; set env.num_workers=0"
        )


def run_in_subprocess(function: Callable[[], Result], step_timeout: float) -> Result:
    """Call a function in a forked process, end the process, and return the function's result.

    An environment made in this process could leave threads, locks or a graphics context behind, and workers that are
    forked later would hang because of them.

    Args:
        function: makes and uses an environment. Its result is pickled.
        step_timeout: seconds to wait for the result.

    Raises:
        EnvironmentFailure: if the function raises, or its process dies or does not answer in time.

    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(function, sender))
    try:
        start_forked(process)
        sender.close()
        if not receiver.poll(step_timeout):
            raise EnvironmentFailure(
                f"an environment was not made within env.step_timeout={step_timeout:g} seconds; increase it"
            )
        result, failure = receiver.recv()
    except EOFError:
        process.join()
        raise EnvironmentFailure(f"an environment died with exit code {process.exitcode}; {CRASH_HINT}") from None
    finally:
        if process.pid is not None:  # a signal may have interrupted its start
            process.kill()  # it has sent its result or exceeded the timeout
            process.join()
        receiver.close()
    if failure is not None:
        raise failure
    return cast(Result, result)


def _send_result(function: Callable[[], Any], sender: Any) -> None:
    init_subprocess()
    try:
        message = cloudpickle.dumps((function(), None))  # pickle cannot send the lambdas that some spaces hold
    except BaseException as error:  # noqa: BLE001 - the environment's own code may raise anything
        message = cloudpickle.dumps((None, environment_failure("an environment failed", error)))
    sender.send_bytes(message)


def start_forked(process: BaseProcess) -> None:
    """Start a forked process that never collects the garbage of this one.

    A collection in the child would destroy objects of this process. Destructors that join threads, such as that of an
    Atari environment, crash there because threads are not forked. `init_subprocess` turns the collector on again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        process.start()
    finally:
        if was_enabled:
            gc.enable()


def init_subprocess() -> None:
    """Prepare a process started by `start_forked`. The process must call this function first."""
    gc.freeze()  # excludes the parent's objects from collections in this process
    gc.enable()
    # The parent handles signals. SIGTERM has a handler because programs that an environment starts would inherit an
    # ignored signal and could not be terminated.
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN if number != signal.SIGTERM else lambda *_: None)
    Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    # PyTorch's threads are not forked; an operation that uses them would hang.
    torch.set_num_threads(1)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block `GROUP_SIGNALS` for programs that start meanwhile: a terminal sends Ctrl-C to all processes of a command.

    This process receives the signals afterwards.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_with_parent(parent_pid: int) -> None:
    """End this process after its parent, even if a step of an environment does not return."""
    while os.getppid() == parent_pid:
        time.sleep(1.0)
    time.sleep(5.0)
    os._exit(1)


def shared_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return an array of zeros in memory that this process shares with the processes it forks."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, mmap.mmap(-1, max(size, 1)))


def acquire(semaphore: Any, timeout: float) -> bool:
    """Acquire a semaphore within `timeout` seconds: spin for `SPIN_SECONDS`, then sleep."""
    spin_until = time.perf_counter() + SPIN_SECONDS
    while time.perf_counter() < spin_until:
        if semaphore.acquire(False):
            return True
        _yield_core()
    return bool(semaphore.acquire(timeout=timeout))


def _sleep_briefly() -> None:
    time.sleep(0)


_yield_core = getattr(os, "sched_yield", _sleep_briefly)


def exit_text(process: Any) -> str:
    """Return the exit code of a process, with the name of the signal that killed it."""
    code = process.exitcode
    with suppress(ValueError, TypeError):
        return f"{code} ({signal.Signals(-code).name})"
    return str(code)
