"""A training that is told to stop."""

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
    """Ctrl-C and SIGTERM end the training after the rollout at work, on every rank; a second one at once."""

    def __init__(self) -> None:
        """No signal has come."""
        self.received: int | None = None
        self._is_stopping = False  # because it came to this rank, or to another
        self._previous: dict[int, Any] = {}
        self._interrupts = self._speaks = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remember who has the signals, before Lightning takes them."""
        self._speaks = trainer.is_global_zero
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which would exit with 0 or 1."""
        for number in self._previous:
            signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let all ranks stop together."""
        self._is_stopping = trainer.strategy.reduce_boolean_decision(self._is_stopping, all=False)
        trainer.should_stop = trainer.should_stop or self._is_stopping

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """What `work` returns, or none where a signal has come or ends it."""
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
        if self._speaks:  # past Python's own output, which may be at work
            os.write(2, b"\ntorchppo: stopping after this rollout; once more to stop at once\n")
        if self._interrupts:
            raise _Interrupted


class _Interrupted(BaseException):
    """A signal has come."""
