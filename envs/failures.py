"""Failures of an environment's own code."""

from __future__ import annotations

import traceback
import warnings
from typing import Any

import gymnasium

from ..errors import EnvironmentFailure, TorchPPOError


def environment_failure(what: str, error: BaseException) -> TorchPPOError:
    """What an environment's own code raised, which its traceback tells best; itself if it is one line already."""
    if isinstance(error, TorchPPOError):
        return error
    traceback.print_exception(error)
    return EnvironmentFailure(f"{what}: {type(error).__name__}: {error}; its traceback stands above")


def close(env: gymnasium.Env[Any, Any]) -> None:
    """Close an environment; one that fails at it must not cost a training that is over, nor keep others open."""
    try:
        env.close()
    except Exception as error:  # noqa: BLE001 - whatever an environment raises is told
        warnings.warn(f"{env} failed to close: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
