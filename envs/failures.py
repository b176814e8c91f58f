"""Turns an exception raised by an environment's own code into a one-line error."""

from __future__ import annotations

import signal
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnvironmentFailure, TorchPPOError

MAX_MESSAGE, MAX_ACTION = 1_000, 100
"""Numbers of characters of an exception's message and of an action that an error quotes."""
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
    return EnvironmentFailure(f"{message}: {described(error)}{hint}; see the traceback above")


def described(error: BaseException) -> str:
    """Return the class and the message of an exception. The message may be missing, long, or raise itself."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the exception is the environment's own code
        text = "a message that cannot be printed"
    text = text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def step_failure(place: str, error: BaseException) -> TorchPPOError:
    """Return the error for an exception in a step or reset.

    Args:
        place: the environment and step (see `place_of`).
        error: the exception. The message of an EnvironmentFailure is extended by `place`.

    """
    if isinstance(error, EnvironmentFailure):
        return error if place in str(error) else EnvironmentFailure(f"{error} ({place})")
    return environment_failure(f"{place} failed", error)


def place_of(env: int, step: int, seed: Any, action: Any) -> str:
    """Return `environment 3 at step 40 (seed 7, action 1)`. Step 0 is a reset, which has no action.

    Args:
        env: index of the environment.
        step: number of steps since its seed was set.
        seed: the last seed; `None` if it is unknown.
        action: the last action.

    """
    if action is None:
        return f"environment {env} in a reset after {step} steps (seed {seed})"
    return f"environment {env} at step {step} ({cause_of(seed, action)})"


def cause_of(seed: Any, action: Any) -> str:
    """Return `seed 7, action 1`, with the beginning of a long action."""
    text = " ".join(np.array2string(np.asarray(action), threshold=20, precision=9).split())
    text = text if len(text) <= MAX_ACTION else f"{text[:MAX_ACTION]}..."
    return f"seed {seed}, action {text}"


def is_from_environment(error: BaseException) -> bool:
    """Return whether an exception that passes through an environment's code is the environment's own.

    It is not if it was raised by a handler of a signal: our handlers raise classes of this package, and Python's raises
    KeyboardInterrupt.
    """
    if isinstance(error, KeyboardInterrupt):
        return signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    is_ours = type(error).__module__.startswith(f"{__package__.partition('.')[0]}.")
    return isinstance(error, Exception | SystemExit) or not is_ours


def is_raised_by_package(error: BaseException) -> bool:
    """Return whether the code of torchppo or of an installed package has raised an error, not the user's own code."""
    path = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    packages = [ROOT / name for name in ("envs", "modules", "pipelines")]
    return bool({"site-packages", "dist-packages"} & {*path.parts}) or any(map(path.is_relative_to, packages))
