"""A function runs in a process of its own, which leaves nothing but a result or one line."""

from __future__ import annotations

import multiprocessing.connection
import os
import threading
from functools import partial

import pytest

from torchppo.envs.apart import apart
from torchppo.errors import ConfigurationError, EnvironmentFailure


def fail(error: BaseException) -> None:
    raise error


def test_the_result_is_that_of_another_process_which_is_over() -> None:
    pid = apart(os.getpid)
    assert pid != os.getpid()
    assert not multiprocessing.active_children()


def test_a_thread_that_it_leaves_does_not_keep_its_process() -> None:
    def start_and_leave() -> str:
        threading.Thread(target=threading.Event().wait).start()
        return "done"

    assert apart(start_and_leave) == "done"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [ValueError("a broken joint"), SystemExit("a broken joint")])
def test_what_an_environment_raises_is_told_after_its_traceback(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EnvironmentFailure, match=f"^an environment failed: {type(error).__name__}: a broken joint; "):
        apart(partial(fail, error))
    assert "Traceback" in capfd.readouterr().err


def test_what_is_one_line_already_stays_it(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^env.wrappers\[0\]=3 is no function$"):
        apart(partial(fail, ConfigurationError("env.wrappers[0]=3 is no function")))
    assert capfd.readouterr().err == ""


def test_a_process_that_dies_is_told_with_its_exit_code() -> None:
    with pytest.raises(EnvironmentFailure, match="died with exit code 7"):
        apart(partial(os._exit, 7))


def test_ctrl_c_here_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(multiprocessing.connection.Connection, "recv", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apart(threading.Event().wait)
    assert not multiprocessing.active_children()
