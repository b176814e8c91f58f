"""A function runs in a process of its own, which leaves nothing but a result or one line."""

from __future__ import annotations

import gc
import multiprocessing.connection
import os
import threading
from functools import partial
from typing import Any

import pytest

from torchppo.envs.vector.forked_call import run_in_subprocess
from torchppo.errors import ConfigurationError, EnvironmentFailure


def fail(error: BaseException) -> None:
    raise error


def test_the_result_is_that_of_another_process_which_is_over() -> None:
    pid = run_in_subprocess(os.getpid, 20.0)
    assert pid != os.getpid()
    assert not multiprocessing.active_children()


def test_the_result_may_hold_functions_without_a_name() -> None:
    assert run_in_subprocess(lambda: {"mission": lambda: "go"}, 20.0)["mission"]() == "go"


@pytest.mark.usefixtures("garbage_at_fork")
def test_the_garbage_of_the_parent_is_not_collected_in_the_child() -> None:
    def collect() -> bool:
        gc.collect()
        return gc.isenabled()

    assert run_in_subprocess(collect, 20.0)
    assert gc.isenabled()


def test_one_that_cannot_be_sent_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EnvironmentFailure, match="an environment failed: TypeError: "):
        run_in_subprocess(threading.Lock, 20.0)
    assert "Traceback" in capfd.readouterr().err


def test_it_may_start_processes_of_its_own() -> None:
    def parent() -> Any:
        child = multiprocessing.get_context("fork").Process(target=int)
        child.start()
        child.join()
        return child.exitcode

    assert run_in_subprocess(parent, 20.0) == 0


def test_one_that_hangs_is_told_and_ended() -> None:
    with pytest.raises(EnvironmentFailure, match=r"not made within env.step_timeout=0.2 seconds"):
        run_in_subprocess(threading.Event().wait, 0.2)
    assert not multiprocessing.active_children()


def test_a_thread_that_it_leaves_does_not_keep_its_process() -> None:
    def start_and_leave() -> str:
        threading.Thread(target=threading.Event().wait).start()
        return "done"

    assert run_in_subprocess(start_and_leave, 20.0) == "done"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [ValueError("a broken joint"), SystemExit("a broken joint")])
def test_what_an_environment_raises_is_told_after_its_traceback(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EnvironmentFailure, match=f"^an environment failed: {type(error).__name__}: a broken joint; "):
        run_in_subprocess(partial(fail, error), 20.0)
    assert "Traceback" in capfd.readouterr().err


def test_what_is_one_line_already_stays_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^env.wrappers\[0\]=3 is no function$"):
        run_in_subprocess(partial(fail, ConfigurationError("env.wrappers[0]=3 is no function")), 20.0)
    assert capfd.readouterr().err == ""


def test_a_process_that_dies_is_told_with_its_exit_code() -> None:
    with pytest.raises(EnvironmentFailure, match="died with exit code 7"):
        run_in_subprocess(partial(os._exit, 7), 20.0)


def test_ctrl_c_here_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(multiprocessing.connection.Connection, "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_in_subprocess(threading.Event().wait, 20.0)
    assert not multiprocessing.active_children()
