"""Turns an exception raised by an environment's own code into a one-line error."""

from __future__ import annotations

import traceback
from pathlib import Path

from ..errors import EnvironmentFailure, TorchPPOError

ROOT = Path(__file__).parents[1]


def environment_failure(message: str, error: BaseException, hint: str = "") -> TorchPPOError:
    """Return the error to raise for an exception of an environment's own code.

    Prints the traceback of `error`. A `TorchPPOError` is returned unchanged and without a traceback, because its
    message already says what to do.

    Args:
        message: what failed, for example `an environment failed`.
        error: the exception that the environment raised.
        hint: what to do, appended to the message.

    """
    if isinstance(error, TorchPPOError):
        return error
    traceback.print_exception(error)
    return EnvironmentFailure(f"{message}: {type(error).__name__}: {error}{hint}; see the traceback above")


def is_raised_by_package(error: BaseException) -> bool:
    """Return whether the code of torchppo or of an installed package has raised an error, not the user's own code."""
    path = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    packages = [ROOT / name for name in ("envs", "modules", "pipelines")]
    return bool({"site-packages", "dist-packages"} & {*path.parts}) or any(map(path.is_relative_to, packages))
