"""Writes checkpoints so that a valid one always remains, with a checksum, and metrics so that no row is lost."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from ...errors import CheckpointError
from ..distributed import gathered

MARK = b"sha256:"
COMMENT_SIZE = len(MARK) + 64
PREVIOUS = "previous.ckpt"
"""The `last.ckpt` before the current one."""


def save_checkpoint(trainer: Trainer, path: Path, *, previous: Path | None = None) -> None:
    """Write a checkpoint under a temporary name, add its checksum, and rename it. All ranks must call it.

    Lightning overwrites the file in place, so that a full disk would destroy the previous checkpoint too.

    Args:
        trainer: saves the checkpoint.
        path: name of the file.
        previous: name under which the file that is replaced stays.

    Raises:
        OSError: if the file cannot be written; the error names `path`.

    """
    part = path.with_name(f".{path.name}.part")
    try:
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            add_checksum(part)
            if previous is not None and path.exists():
                keep_as(path, previous)
            part.replace(path)
            sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


class LastCheckpoint:
    """Saves `last.ckpt` and keeps the one before as `previous.ckpt`.

    Args:
        directory: folder of the files.
        every_frames: frames between checkpoints; `None` sets no limit.
        every_seconds: seconds between checkpoints, but at least 100 times those that saving takes; `None` sets no
            limit.

    """

    def __init__(self, directory: Path, every_frames: int | None, every_seconds: float | None) -> None:
        self.path = directory / "last.ckpt"
        self._every_frames = every_frames or math.inf
        self._every_seconds = every_seconds or math.inf
        self._cost = 0.0

    def start(self, frames: int) -> None:
        """Begin to measure the intervals."""
        self._frames, self._time = frames, time.monotonic()

    def is_due(self, frames: int) -> bool:
        """Return whether to save after `frames`, by the clock of rank 0."""
        is_late = time.monotonic() - self._time >= max(self._every_seconds, 100 * self._cost)
        return frames - self._frames >= self._every_frames or gathered([is_late])[0]

    def save(self, trainer: Trainer, frames: int) -> None:
        """Save the training, unless its collector has another time for this (see `FixedResets`)."""
        if not getattr(trainer.train_dataloader, "may_save", True):
            return
        start = time.monotonic()
        save_checkpoint(trainer, self.path, previous=self.path.with_name(PREVIOUS))
        self.start(frames)
        self._cost = time.monotonic() - start

    def update(self, trainer: Trainer) -> None:
        """Save again after an evaluation, but do not keep the checkpoint before it."""
        if getattr(trainer.train_dataloader, "may_save", True):
            save_checkpoint(trainer, self.path)


def add_checksum(path: Path) -> None:
    """Write the SHA-256 of a zip file into its comment, and wait until the file is on the disk."""
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(-2, os.SEEK_END)
        if file.read(2) == bytes(2):  # the length of the comment
            file.seek(-2, os.SEEK_END)
            file.write(COMMENT_SIZE.to_bytes(2, "little") + MARK + digest.encode())
        file.flush()
        os.fsync(file.fileno())


def verify_checksum(path: Path, content: bytes) -> None:
    """Check the content of a checkpoint; one that torchppo has not saved itself has no checksum.

    Raises:
        CheckpointError: if the content has changed.

    """
    payload, comment = content[:-COMMENT_SIZE], content[-COMMENT_SIZE:]
    length = payload[-2:]
    if MARK not in content[-2 * COMMENT_SIZE :] and length != COMMENT_SIZE.to_bytes(2, "little"):
        return
    digest = hashlib.sha256(payload[:-2] + bytes(2)).hexdigest()
    if length != COMMENT_SIZE.to_bytes(2, "little") or comment != MARK + digest.encode():
        raise CheckpointError(f"{path} is damaged (its checksum differs); use another checkpoint")


def keep_as(path: Path, previous: Path) -> None:
    """Give a file a second name, in place of another file."""
    part = previous.with_name(f".{previous.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:  # the file system has no hard links
        shutil.copyfile(path, part)
    part.replace(previous)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Windows cannot open folders."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def protect_rows(logger: CSVLogger) -> None:
    """Replace `metrics.csv` when it gets a new column; Lightning 2.6 overwrites it, and a kill would lose its rows."""
    writer: Any = logger.experiment
    rewrite, path = writer._rewrite_with_new_header, Path(writer.metrics_file_path)
    part = path.with_name(".metrics.csv.part")

    def replace(names: list[str]) -> None:
        shutil.copyfile(path, part)
        writer.metrics_file_path = str(part)
        try:
            rewrite(names)
        finally:
            writer.metrics_file_path = str(path)
        part.replace(path)

    writer._rewrite_with_new_header = replace


def hide_writer_errors() -> None:
    """Do not print the errors of TensorBoard's thread, which raises them again in the main thread."""
    original = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            original(args)

    threading.excepthook = hook
