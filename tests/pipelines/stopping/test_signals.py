"""Signals also end a command whose output nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from torchppo.pipelines.stopping.signals import write_or_skip

STOPPED = """
import signal, sys
from torchppo.pipelines.stopping.stop_on_signal import StopOnSignal

with StopOnSignal() as stop:
    stop.interruptible(lambda: signal.raise_signal(signal.SIGINT))
print("results", flush=True)
sys.exit(128 + stop.received)
"""


@pytest.mark.parametrize("is_read", [True, False])
def test_a_message_to_a_pipe_that_is_full_or_closed_is_skipped(is_read: bool) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    if not is_read:
        os.close(reader)
    write_or_skip(writer, "text")
    os.close(writer)
    if is_read:
        os.close(reader)


def test_a_signal_that_also_ends_the_reader_of_the_output_has_its_exit_code() -> None:
    """Ctrl-C ends `torchppo train 2>&1 | tee log` together with `tee`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", STOPPED], stdout=writer, stderr=writer, timeout=60, check=False)
    os.close(writer)
    assert done.returncode == 130
