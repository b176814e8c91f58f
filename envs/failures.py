"""Failures of an environment's own code."""

from __future__ import annotations

import traceback

from ..errors import EnvironmentFailure, TorchPPOError


def environment_failure(what: str, error: BaseException) -> TorchPPOError:
    """What an environment's own code raised, which its traceback tells best; itself if it is one line already."""
    if isinstance(error, TorchPPOError):
        return error
    traceback.print_exception(error)
    return EnvironmentFailure(f"{what}: {type(error).__name__}: {error}; its traceback stands above")
