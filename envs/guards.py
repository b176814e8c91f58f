"""Guards against the code of environments: time limits, closing, and filters of warnings."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium

from .failures import described, is_from_environment

CLOSE_SECONDS = 5.0
"""How long the environments of a process may take to close."""


def close(env: gymnasium.Env[Any, Any], seconds: float = CLOSE_SECONDS) -> None:
    """Close an environment within a time limit. Its exceptions become warnings, so that all others are closed too."""
    try:
        with time_limit(seconds):
            env.close()
    except BaseException as error:
        if not is_from_environment(error):
            raise
        warnings.warn(f"{env} failed to close: {described(error)}", RuntimeWarning, stacklevel=2)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError after some seconds: in the main thread, on systems with SIGALRM, before Python exits."""
    is_main = threading.current_thread() is threading.main_thread()
    if not (hasattr(signal, "setitimer") and is_main) or sys.is_finalizing():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end within {seconds:g} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)


@contextmanager
def error_filters_removed() -> Iterator[None]:
    """Remove warning filters with the action `error` that the code of an environment adds.

    Some packages call `warnings.filterwarnings("error")` when they are imported. This turns the warnings of all other
    libraries into errors. Filters with other actions are kept.
    """
    before = warnings.filters[:]
    try:
        yield
    finally:
        if warnings.filters != before:
            kept = [one for one in warnings.filters if one[0] != "error" or one in before]
            if kept != warnings.filters:
                warnings.resetwarnings()  # also forgets the cached decisions
                warnings.filters.extend(kept)  # type: ignore[attr-defined] # a list
