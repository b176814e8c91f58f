"""Child processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import Popen


def kill_children() -> None:
    """Kill all processes that this process has started, and those that they have started. Needs `/proc`.

    The resource tracker of `multiprocessing` stays: it releases semaphores and ends when this process has ended.
    """
    found = [os.getpid()]
    for pid in found:
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, path.read_text().split())
    killed = [pid for pid in found[1:] if not _is_resource_tracker(pid)]
    for pid in killed:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 1.0
    for pid in killed:
        with suppress(OSError):  # raised if it is the child of another process
            while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
                time.sleep(0.01)


def _is_resource_tracker(pid: int) -> bool:
    with suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def wait_for(processes: Sequence[Popen[bytes]], seconds: float) -> None:
    """Wait until processes end; kill them after `seconds`."""
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        if process.poll() is None:
            process.returncode = 0  # Lightning would kill this process because of any other code
            with suppress(OSError):
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, 0)
