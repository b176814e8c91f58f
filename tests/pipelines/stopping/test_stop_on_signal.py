"""Signals end a training after the rollout, or at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning import Callback, Trainer

from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.stopping.signals import SIGNALS, Stopped
from torchppo.pipelines.stopping.stop_on_signal import StopOnSignal

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


class RaiseSignal(Callback):
    """Raises a signal at the start of the training, before the first rollout is collected."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_start(self, trainer: Trainer, pl_module: object) -> None:
        signal.raise_signal(self.number)


class TestStopOnSignal:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_training_ends_after_the_rollout_and_handlers_are_restored(self, number: int, make: Make, fit: Fit) -> None:
        before = signal.getsignal(number)
        ppo, collector = make(rollouts=3)
        with StopOnSignal() as stop:
            stop.watch()
            fit(ppo, collector, callbacks=[stop, RaiseSignal(number)])
        assert (stop.received, ppo.num_rollouts) == (number, 1)
        assert signal.getsignal(number) is before
        assert signal.set_wakeup_fd(-1) == -1

    def test_without_a_signal_the_training_is_complete(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=2)
        with StopOnSignal() as stop:
            fit(ppo, collector, callbacks=[stop])
            assert stop.interruptible(lambda: "result") == "result"
        assert (stop.received, ppo.num_rollouts) == (None, 2)

    def test_a_signal_interrupts_other_work_and_work_does_not_start_after_it(self) -> None:
        with StopOnSignal() as stop:
            assert stop.interruptible(lambda: signal.raise_signal(signal.SIGTERM)) is None
            assert stop.interruptible(lambda: pytest.fail("the work has started")) is None
        with pytest.raises(Stopped) as stopped, StopOnSignal():
            signal.raise_signal(signal.SIGHUP)
        assert stopped.value.number == signal.SIGHUP

    def test_ranks_of_torchrun_and_srun_tell_each_other_their_signals(self) -> None:
        """The signal of another rank is read while this one is busy; `RankStore` has its own tests."""
        written: list[int] = []

        def wait_for_signal(others: int, own: int) -> None:
            with StopOnSignal() as stop:
                stop.watch()
                stop._store = cast(Any, SimpleNamespace(read_signal=lambda: others, write_signal=written.append))
                assert stop._pipe is not None
                os.write(stop._pipe[1], bytes([0]))  # as `on_train_start` does
                if own:
                    signal.raise_signal(own)
                time.sleep(20)

        for others, own in ((signal.SIGTERM, 0), (0, signal.SIGUSR1)):
            with pytest.raises(Stopped) as stopped:
                wait_for_signal(others, own)
            assert stopped.value.number == (own or others)
        assert written == [signal.SIGTERM, signal.SIGUSR1]

    def test_does_nothing_in_a_thread(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=2)
        before = [signal.getsignal(number) for number in SIGNALS]

        def train() -> None:
            with StopOnSignal() as stop:
                stop.watch()
                fit(ppo, collector, callbacks=[stop])

        thread = threading.Thread(target=train)
        thread.start()
        thread.join(timeout=60)
        assert ppo.num_rollouts == 2
        assert [signal.getsignal(number) for number in SIGNALS] == before

    @pytest.mark.parametrize(
        ("signals", "seconds", "ends_at_once"), [("15 10", 30.0, True), ("15 15", 30.0, False), ("15", 0.5, True)]
    )
    def test_ends_a_process_in_code_that_does_not_return(
        self, signals: str, seconds: float, ends_at_once: bool
    ) -> None:
        """The same signal within 0.2 seconds counts once."""
        command = [sys.executable, "-c", STUCK, str(seconds), *signals.split()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        child, *others = done.stdout.split()
        assert (done.returncode, others) == ((143, ["before_exit", "15"]) if ends_at_once else (0, ["15"])), done.stderr
        with pytest.raises(ProcessLookupError):
            os.kill(int(child), 0)


STUCK = """
import ctypes, os, signal, subprocess, sys, threading, time
from torchppo.pipelines.stopping import stop_on_signal

stop_on_signal.ROLLOUT_SECONDS = float(sys.argv[1])
child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
os.write(1, f"{child.pid} ".encode())
with stop_on_signal.StopOnSignal(lambda number: os.write(1, f"before_exit {number}".encode())) as stop:
    stop._raises = False
    stop.watch()

    def send():
        for number in map(int, sys.argv[2:]):
            time.sleep(0.1)
            os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_on_signal.SIGNALS)  # other threads receive them
    ctypes.CDLL(None).sleep(2)
print(stop.received)
child.kill()
child.wait()
"""
