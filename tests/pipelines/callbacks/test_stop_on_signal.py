"""Signals stop a training on request, and do not reach the compilers that it starts."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType

import pytest
from lightning import Callback, Trainer

from torchppo.pipelines.callbacks.stop_on_signal import SIGNALS, StopOnSignal
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]
Blocked = Callable[[], AbstractContextManager[None]]


class RaiseSignal(Callback):
    """Raises a signal at the start of the training, before the first rollout is collected."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_start(self, trainer: Trainer, pl_module: object) -> None:
        signal.raise_signal(self.number)


@pytest.fixture(autouse=True)
def restore_handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


class TestStopOnSignal:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_training_ends_after_the_rollout_and_handlers_are_restored(
        self, number: signal.Signals, make: Make, fit: Fit
    ) -> None:
        before = signal.getsignal(number)
        stop = StopOnSignal()
        ppo, collector = make(rollouts=3)
        fit(ppo, collector, callbacks=[stop, RaiseSignal(number)])
        assert (stop.received, ppo.num_rollouts) == (number, 1)
        assert signal.getsignal(number) is before

    def test_without_a_signal_the_training_is_complete(self, make: Make, fit: Fit) -> None:
        stop = StopOnSignal()
        ppo, collector = make(rollouts=2)
        fit(ppo, collector, callbacks=[stop])
        assert (stop.received, ppo.num_rollouts) == (None, 2)
        assert stop.interruptible(lambda: "result") == "result"

    def test_work_does_not_start_after_a_signal(self, make: Make, fit: Fit) -> None:
        stop = StopOnSignal()
        fit(*make(rollouts=2), callbacks=[stop, RaiseSignal(signal.SIGINT)])
        assert stop.interruptible(lambda: pytest.fail("the work has started")) is None


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signals that can be blocked")
class TestCompilerProcesses:
    @pytest.fixture
    def signals_blocked(self) -> Blocked:
        blocked: Blocked = pytest.importorskip("torchppo.pipelines.compiled.inductor").signals_blocked
        return blocked

    @pytest.mark.parametrize("number", SIGNALS)
    def test_child_process_ignores_signals(self, number: signal.Signals, signals_blocked: Blocked) -> None:
        with signals_blocked():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        time.sleep(0.1)
        child.send_signal(number)
        child.communicate(b"\n", timeout=60)
        assert child.returncode == 0

    def test_blocked_signal_arrives_afterwards(self, signals_blocked: Blocked) -> None:
        received: list[int] = []

        def receive(number: int, frame: FrameType | None) -> None:
            received.append(number)

        signal.signal(signal.SIGINT, receive)
        with signals_blocked():
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            time.sleep(0.05)
            assert not received
        assert received == [signal.SIGINT]
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {*SIGNALS}
