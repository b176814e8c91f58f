"""A function runs in a forked process, which ends with a result or a one-line error."""

from __future__ import annotations

import gc
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest

from torchppo.envs.vector.forked_call import GROUP_SIGNALS, run_in_subprocess, shared_zeros, signals_blocked
from torchppo.errors import ConfigurationError, EnvironmentFailure


def fail(error: BaseException) -> None:
    raise error


def test_the_function_runs_in_another_process_that_ends() -> None:
    pid = run_in_subprocess(os.getpid, 20.0)
    assert pid != os.getpid()
    assert not multiprocessing.active_children()


def test_the_result_may_hold_a_lambda() -> None:
    assert run_in_subprocess(lambda: {"mission": lambda: "go"}, 20.0)["mission"]() == "go"


@pytest.mark.usefixtures("garbage_at_fork")
def test_the_garbage_of_the_parent_is_not_collected_in_the_child() -> None:
    def collect() -> bool:
        gc.collect()
        return gc.isenabled()

    assert run_in_subprocess(collect, 20.0)
    assert gc.isenabled()


def test_a_result_that_cannot_be_pickled_raises(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EnvironmentFailure, match="an environment failed: TypeError: "):
        run_in_subprocess(threading.Lock, 20.0)
    assert "Traceback" in capfd.readouterr().err


def test_the_function_may_start_processes() -> None:
    def start_child() -> Any:
        child = multiprocessing.get_context("fork").Process(target=int)
        child.start()
        child.join()
        return child.exitcode

    assert run_in_subprocess(start_child, 20.0) == 0


def test_a_function_that_hangs_raises_and_its_process_ends() -> None:
    with pytest.raises(EnvironmentFailure, match=r"env\.step_timeout=0\.2"):
        run_in_subprocess(threading.Event().wait, 0.2)
    assert not multiprocessing.active_children()


def test_a_running_thread_does_not_keep_the_process() -> None:
    def start_thread() -> str:
        threading.Thread(target=threading.Event().wait).start()
        return "done"

    assert run_in_subprocess(start_thread, 20.0) == "done"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [ValueError("a broken joint"), SystemExit("a broken joint")])
def test_an_exception_becomes_one_line_after_its_traceback(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EnvironmentFailure, match=f"^an environment failed: {type(error).__name__}: a broken joint; "):
        run_in_subprocess(partial(fail, error), 20.0)
    assert "Traceback" in capfd.readouterr().err


def test_an_error_of_torchppo_is_raised_unchanged(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^env.wrappers\[0\]=3 is not callable$"):
        run_in_subprocess(partial(fail, ConfigurationError("env.wrappers[0]=3 is not callable")), 20.0)
    assert capfd.readouterr().err == ""


def test_a_process_that_dies_raises_with_its_exit_code() -> None:
    with pytest.raises(EnvironmentFailure, match="died with exit code 7"):
        run_in_subprocess(partial(os._exit, 7), 20.0)


def test_a_keyboard_interrupt_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(multiprocessing.connection.Connection, "poll", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_in_subprocess(threading.Event().wait, 20.0)
    assert not multiprocessing.active_children()


STRUCTURED = np.dtype([("image", np.uint8, (3, 5)), ("brightness", np.float32)], align=True)


class TestSharedZeros:
    @pytest.mark.parametrize("dtype", [np.bool_, np.float64, STRUCTURED])
    def test_a_write_of_a_forked_process_is_visible(self, dtype: np.dtype) -> None:
        array = shared_zeros((3,), dtype)
        assert array.shape == (3,)
        assert not array.view(np.uint8).any()
        child = os.fork()
        if child == 0:
            array.view(np.uint8)[-1] = 1
            os._exit(0)
        os.waitpid(child, 0)
        assert array.view(np.uint8).sum() == 1

    def test_an_array_may_be_empty(self) -> None:
        assert shared_zeros((0, 3), np.float32).shape == (0, 3)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signals that can be blocked")
class TestSignalsBlocked:
    def test_a_program_that_starts_meanwhile_ignores_signals(self) -> None:
        with signals_blocked():
            child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        time.sleep(0.1)
        for number in GROUP_SIGNALS:
            child.send_signal(number)
        child.communicate(b"\n", timeout=60)
        assert child.returncode == 0

    def test_a_signal_of_this_process_arrives_afterwards(self) -> None:
        received: list[int] = []
        before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
        try:
            with signals_blocked():
                signal.pthread_kill(threading.get_ident(), signal.SIGINT)
                time.sleep(0.05)
                assert not received
        finally:
            signal.signal(signal.SIGINT, before)
        assert received == [signal.SIGINT]
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {*GROUP_SIGNALS}


def test_a_forked_process_ignores_the_signals_of_its_group() -> None:
    def survive() -> str:
        for number in GROUP_SIGNALS:
            signal.raise_signal(number)
        return "alive"

    assert run_in_subprocess(survive, 20.0) == "alive"
