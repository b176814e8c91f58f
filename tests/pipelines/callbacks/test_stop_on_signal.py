"""Signals reach a training, and none of the compilers that it starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from types import FrameType

import pytest

from torchppo.pipelines.callbacks.stop_on_signal import SIGNALS
from torchppo.pipelines.compiled.inductor import signals_blocked

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signals that can wait")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_child_outlives_what_a_terminal_sends_it(number: signal.Signals) -> None:
    with signals_blocked():
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    time.sleep(0.1)
    child.send_signal(number)
    child.communicate(b"\n", timeout=60)
    assert child.returncode == 0


def test_what_comes_meanwhile_is_answered_afterwards() -> None:
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGINT, receive)
    try:
        with signals_blocked():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            time.sleep(0.05)
            assert not received
        assert received == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {*SIGNALS}
