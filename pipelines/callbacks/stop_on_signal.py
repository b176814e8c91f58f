"""Stops training on Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from lightning import Callback, LightningModule, Trainer

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """Ends the training on every rank after the current rollout; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_stopping = False  # True after a signal has reached any rank
        self._previous: dict[int, Any] = {}
        self._interrupts = self._prints = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember the handlers before Lightning replaces them."""
        self._prints = trainer.is_global_zero
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, which would exit with code 0 or 1."""
        for number in self._previous:
            signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop all ranks after the same rollout."""
        self._is_stopping = trainer.strategy.reduce_boolean_decision(self._is_stopping, all=False)
        trainer.should_stop = trainer.should_stop or self._is_stopping

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """Return the result of `work`, or `None` if a signal arrived earlier or interrupts it."""
        self._interrupts = True
        try:
            return None if self._is_stopping else work()
        except _Interrupted:
            return None
        finally:
            self._interrupts = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received, self._is_stopping = number, True
        signal.signal(number, signal.SIG_DFL)
        if self._prints:  # not with `print`, which the signal may have interrupted
            os.write(2, b"\ntorchppo: stopping after this rollout; press again to stop at once\n")
        if self._interrupts:
            raise _Interrupted


class _Interrupted(BaseException):
    """Raised by a signal inside `StopOnSignal.interruptible`."""
