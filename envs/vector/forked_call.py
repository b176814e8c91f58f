"""A function's result from a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, TypeVar, cast

import cloudpickle
import torch

from ...errors import EnvironmentFailure
from ..failures import environment_failure

Result = TypeVar("Result")


def run_in_subprocess(function: Callable[[], Result], step_timeout: float) -> Result:
    """Call a function of an environment in a forked process that ends with it, within so many seconds.

    An environment made in this process could leave threads, locks, or a graphics driver's context behind, with which
    those of workers forked afterwards would hang.

    Raises:
        EnvironmentFailure: for what the function raised, or if its process dies or does not answer in time.

    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(function, sender))
    start_forked(process)
    sender.close()
    try:
        if not receiver.poll(step_timeout):
            raise EnvironmentFailure(f"an environment was not made within env.step_timeout={step_timeout:g} seconds")
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


def start_forked(process: BaseProcess) -> None:
    """Start a forked process that never collects the garbage of this one.

    A collection in the child would destroy objects of this process. Destructors that join threads, such as that of an
    Atari environment, crash there because threads are not forked. `init_subprocess` turns the collector on again.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        process.start()
    finally:
        if was_enabled:
            gc.enable()


def init_subprocess() -> None:
    """What a process forked for environments does first."""
    gc.freeze()  # excludes the parent's objects from collections in this process
    gc.enable()
    # A terminal, and others, send these to the owner's whole group; they are the owner's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)  # not ignored by programs that an environment starts, and terminates
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)  # the owner's threads were not forked, and a product in an environment would wait for them


def _end_with(owner: int) -> None:
    """End this process when its owner's is gone, if a step keeps it from ending by itself."""
    while os.getppid() == owner:
        time.sleep(1.0)
    time.sleep(5.0)
    os._exit(1)


def _send(function: Callable[[], Any], sender: Any) -> None:
    init_subprocess()
    try:
        told = cloudpickle.dumps((function(), None))  # spaces may hold functions without a name
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an environment raises is its own failure
        told = cloudpickle.dumps((None, environment_failure("an environment failed", error)))
    sender.send_bytes(told)
