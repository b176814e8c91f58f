"""What an environment's own code raises is its own failure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from torchppo.envs.failures import environment_failure
from torchppo.envs.vector.serial import close
from torchppo.errors import ConfigurationError, EnvironmentFailure


def test_it_is_told_in_one_line_after_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    failure = environment_failure("an environment failed", ValueError("a broken\njoint"))
    assert isinstance(failure, EnvironmentFailure)
    assert str(failure) == "an environment failed: ValueError: a broken joint; its traceback stands above"
    assert capfd.readouterr().err == "ValueError: a broken\njoint\n"


def test_one_line_stays_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    error = ConfigurationError("mass=-1 must be positive")
    assert environment_failure("an environment failed", error) is error
    assert capfd.readouterr().err == ""


def test_one_that_does_not_close_is_told_and_costs_nothing() -> None:
    def fail() -> None:
        raise OSError("no such window")

    env: Any = SimpleNamespace(close=fail)
    with pytest.warns(RuntimeWarning, match="failed to close: OSError: no such window"):
        close(env)
