"""Exceptions of an environment's own code become one-line errors."""

from __future__ import annotations

import pytest

from torchppo.envs.failures import environment_failure
from torchppo.errors import ConfigurationError, EnvironmentFailure


def test_an_exception_becomes_one_line_after_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    failure = environment_failure("an environment failed", ValueError("a broken\njoint"))
    assert isinstance(failure, EnvironmentFailure)
    assert str(failure) == "an environment failed: ValueError: a broken joint; see the traceback above"
    assert capfd.readouterr().err == "ValueError: a broken\njoint\n"


def test_an_error_of_torchppo_is_returned_unchanged(capfd: pytest.CaptureFixture[str]) -> None:
    error = ConfigurationError("mass=-1 must be positive")
    assert environment_failure("an environment failed", error) is error
    assert capfd.readouterr().err == ""
