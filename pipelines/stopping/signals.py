"""Signals that end a command, and their exit codes."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, the end of a job, the request to save and be started again, and a closed terminal (`nohup` ignores it)."""
if sys.platform != "win32":
    SIGNALS += (signal.SIGUSR1,)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        SIGNALS += (signal.SIGHUP,)

REQUEUE = 75
"""Exit code after SIGUSR1: the same command continues the run."""


class Stopped(BaseException):
    """Raised in the main thread by a signal while no rollout is running.

    Attributes:
        number: the signal.

    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(number: int) -> int:
    """Return the exit code of a command that a signal has ended."""
    return REQUEUE if exit_name(number) == "requeue" else 128 + number


def exit_name(number: int) -> str:
    """Return the value of `exit` in `summary.json` for a signal."""
    return "requeue" if number == getattr(signal, "SIGUSR1", None) else signal.Signals(number).name


def exit_at_once(number: int, _: object = None) -> None:
    """Handle a signal before there is anything to save. An exception could leave imports incomplete."""
    os._exit(exit_code(number))


def write_or_skip(fd: int, text: str) -> None:
    """Write a message to stdout (1) or stderr (2). Skip it if the pipe is full, or if the output is closed.

    `print` is not safe here: the signal may have interrupted another `print`, or the main thread may block it.
    """
    with suppress(OSError):
        if select.select([], [fd], [], 0)[1]:
            os.write(fd, text.encode())


def discard_closed_output() -> None:
    """Discard all further output if the terminal is closed, or if the process that reads the pipe has ended.

    Ctrl-C ends `torchppo train 2>&1 | tee log` together with `tee`. A later `print` would fail.
    """
    if hasattr(select, "poll"):
        poll = select.poll()
        for fd in (1, 2):
            poll.register(fd, 0)  # errors only
        for fd, _ in poll.poll(0):
            with Path(os.devnull).open("w") as null:
                os.dup2(null.fileno(), fd)


@contextmanager
def handle_signals(handler: Callable[[int, Any], object], *numbers: int) -> Iterator[None]:
    """Set a handler for some signals and restore the previous ones at the end. In other threads, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, previous in zip(numbers, before, strict=True):
            signal.signal(number, previous)
