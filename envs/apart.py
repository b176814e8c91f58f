"""A function's result from a process of its own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from typing import Any, TypeVar, cast

from ..errors import EnvironmentFailure
from .failures import environment_failure

Result = TypeVar("Result")


def apart(function: Callable[[], Result]) -> Result:
    """Call a function of an environment in a forked process that ends with it.

    An environment made in this process could leave threads, locks, or a graphics driver's context behind, with which
    those of workers forked afterwards would hang.

    Raises:
        EnvironmentFailure: for what the function raised, or if its process dies.

    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, sender), daemon=True)
    process.start()
    sender.close()
    try:
        result, failure = receiver.recv()
    except EOFError:
        process.join()
        raise EnvironmentFailure(f"an environment died with exit code {process.exitcode}") from None
    finally:
        process.kill()  # it has told, or is not waited for any longer
        process.join()
        receiver.close()
    if failure is not None:
        raise failure
    return cast(Result, result)


def _send(function: Callable[[], Any], sender: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        told: tuple[Any, Exception | None] = function(), None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an environment raises is its own failure
        told = None, environment_failure("an environment failed", error)
    sender.send(told)
