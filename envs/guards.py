"""Guards against the code of environments: time limits, a watchdog, closing, and filters of warnings."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from weakref import WeakSet

import gymnasium
from gymnasium.envs.registration import load_env_creator

from .failures import described, is_from_environment

CLOSE_SECONDS = 5.0
"""How long the environments of a process may take to close."""
IDLE = -1
"""Entry of `progress` while no environment is stepped."""
watched: WeakSet[Any] = WeakSet()
"""The vector environments that step in this process, for a `Watchdog`."""


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


def log_mujoco_warnings(id: str = "") -> None:  # noqa: A002
    """Log each warning of MuJoCo once, if MuJoCo has been imported.

    Without this function, MuJoCo prints its warnings for every environment, and writes them to MUJOCO_LOG.TXT in the
    current directory.

    Args:
        id: a registered id. Its module and its entry point are imported first, because they may import MuJoCo.

    """
    module, _, name = id.rpartition(":")
    if module:
        importlib.import_module(module)
    spec = gymnasium.registry.get(name)
    if spec is not None and isinstance(spec.entry_point, str):
        load_env_creator(spec.entry_point)
    if (mujoco := sys.modules.get("mujoco")) is not None:
        mujoco.set_mju_user_warning(lambda message: _log_mujoco_warning(message.partition(" Time = ")[0].strip()))


@lru_cache
def _log_mujoco_warning(message: str) -> None:
    # Gymnasium's models use deprecated attributes, which users cannot change.
    level = logging.DEBUG if "deprecated" in message else logging.WARNING
    logging.getLogger("torchppo").log(level, "torchppo: MuJoCo: %s", message)


class Watchdog:
    """Raises in the main thread if a step or reset of an environment in this process exceeds `step_timeout`.

    Args:
        end: ends the process with a failure that the main thread has not raised within two seconds.

    """

    def __init__(self, end: Callable[[Exception], None]) -> None:
        self._end, self._stopped = end, threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> None:
        self._thread, self._handler = threading.get_ident(), None
        if hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread():
            self._handler = signal.signal(signal.SIGALRM, self._raise)
        threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        if self._handler is not None:
            signal.signal(signal.SIGALRM, self._handler)

    def _watch(self) -> None:
        seen, since, last = None, 0.0, time.monotonic()
        while not self._stopped.wait(0.5):
            busy = [(vector, *vector.progress.tolist()) for vector in list(watched) if vector.progress[0] != IDLE]
            state, now = busy[0] if busy else None, time.monotonic()
            is_same = state is not None and state == seen and now < last + 10  # else the process was suspended
            seen, since, last = state, since if is_same else now, now
            if is_same and state is not None and now - since > state[0].step_timeout:
                self._stop_step(*state)

    def _stop_step(self, vector: Any, *progress: int) -> None:
        frame = sys._current_frames()[self._thread]
        if frame.f_trace is not None:  # a debugger has stopped there
            return
        traceback.print_stack(frame, limit=10)
        self._failure = failure = vector.timeout_failure()
        if self._handler is not None:
            signal.pthread_kill(self._thread, signal.SIGALRM)
        if self._handler is None or (not self._stopped.wait(2.0) and vector.progress.tolist() == [*progress]):
            self._end(failure)

    def _raise(self, *_: Any) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
