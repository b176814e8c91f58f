"""Saves `last.ckpt` in time, and keeps newer states in memory."""

from __future__ import annotations

import math
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from ..distributed import Exchange, num_ranks
from .files import PREVIOUS, add_checksum, keep_as, save_checkpoint, sync_folder


class LastCheckpoint:
    """Saves `last.ckpt` and keeps the one before as `previous.ckpt`.

    Between the saves, it copies the state to memory, at intervals that take at most 0.25 % of the time.

    Args:
        directory: folder of the files.
        every_frames: frames between checkpoints; `None` sets no limit.
        every_seconds: seconds between checkpoints, but at least 100 times those that saving takes; `None` sets no
            limit.

    Attributes:
        frames: the frames of the training at the last save, or at its start.

    """

    def __init__(self, directory: Path, every_frames: int | None, every_seconds: float | None) -> None:
        self.path = directory / "last.ckpt"
        self._every_frames = every_frames or math.inf
        self._every_seconds = every_seconds or math.inf
        self._cost = self._cost_in_memory = 0.0
        self._in_memory: tuple[int, bytes] | None = None
        self.frames = 0

    def start(self, trainer: Trainer, frames: int) -> None:
        """Begin to measure the intervals. Save a training that has not started yet, in case it stops soon."""
        self._begin(frames)
        if num_ranks() > 1:
            exchange_of(trainer).numbers["late"] = self.late
        if frames == 0:
            self.save(trainer, frames)

    def _begin(self, frames: int) -> None:
        self.frames, self._time = frames, time.monotonic()
        self._time_in_memory = self._time
        self._in_memory = None

    def late(self) -> int:
        """Return 1 if the copy in memory is due, plus 2 if the file is due, by the clock of this rank."""
        now = time.monotonic()
        is_file_late = now - self._time >= max(self._every_seconds, 100 * self._cost)
        return 2 * is_file_late + (now - self._time_in_memory >= 400 * self._cost_in_memory)

    def save_if_due(self, trainer: Trainer, frames: int) -> None:
        """Save the state after a rollout to the file or in memory, if it is time and the collector allows it."""
        if not may_save(trainer):
            return
        now = time.monotonic()
        # All ranks use the clock of rank 0.
        late = self.late() if num_ranks() == 1 else int(exchange_of(trainer).of_ranks["late"][0])
        if frames - self.frames >= self._every_frames or late >= 2:
            self.save(trainer, frames)
        elif late:
            content = dump(trainer)
            self._in_memory = None if content is None else (frames, content)
            self._time_in_memory = time.monotonic()
            self._cost_in_memory = self._time_in_memory - now

    def save(self, trainer: Trainer, frames: int) -> None:
        """Save the training if the collector allows it."""
        if not may_save(trainer):
            return
        start = time.monotonic()
        save_checkpoint(trainer, self.path, previous=self.path.with_name(PREVIOUS))
        self._begin(frames)
        self._cost = time.monotonic() - start

    def update(self, trainer: Trainer) -> None:
        """Save again after an evaluation, but do not keep the checkpoint before it."""
        if may_save(trainer):
            save_checkpoint(trainer, self.path)

    def save_from_memory(self) -> None:
        """Save the newest state that is in memory. Another thread calls this, because the training is stuck."""
        if self._in_memory is not None:
            frames, content = self._in_memory
            part = self.path.with_name(".memory.ckpt.part")
            part.write_bytes(content)
            add_checksum(part)
            if self.path.exists():
                keep_as(self.path, self.path.with_name(PREVIOUS))
            part.replace(self.path)
            sync_folder(self.path.parent)
            self.frames = frames


def exchange_of(trainer: Trainer) -> Exchange:
    """Return the exchange of the LightningModule between ranks."""
    module: Any = trainer.lightning_module
    exchange: Exchange = module.exchange
    return exchange


def may_save(trainer: Trainer) -> bool:
    """Return whether the collector allows to save now; see `FixedResets`."""
    return getattr(trainer.train_dataloader, "may_save", True)


def dump(trainer: Trainer) -> bytes | None:
    """Return the content of a checkpoint on rank 0. All ranks must call it. Tested with Lightning 2.6."""
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    if not trainer.is_global_zero:
        return None
    buffer = BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()
