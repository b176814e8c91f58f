"""Turns an exception raised by an environment's own code into a one-line error."""

from __future__ import annotations

import traceback

from ..errors import EnvironmentFailure, TorchPPOError


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
