"""The directory of a run, its checkpoints and its metrics: a valid checkpoint always remains, and no row is lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from ...errors import CheckpointError, ConfigurationError, RunLockedError

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


@contextmanager
def locked(run_dir: Path, *, is_used: bool) -> Iterator[None]:
    """Create a run directory, or with `is_used` take that of a run that continues, and lock it for this process.

    Raises:
        RunLockedError: if another process trains in it.
        ConfigurationError: if it already holds a run.

    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        advice = "wait for its end or stop it" if is_used else "choose another run_dir"
        raise RunLockedError(f"run_dir={run_dir} is in use by another training; {advice}") from None
    with lock:
        if not is_used and (run_dir / "config.yaml").exists():
            raise ConfigurationError(
                f"run_dir={run_dir} already holds a run; choose another run_dir, delete this folder, or continue the "
                f"run with torchppo resume {run_dir} or resume=auto"
            )
        yield


def save_configuration(trainer: Trainer, cfg: DictConfig, overrides: list[str]) -> None:
    """Write `config.yaml` and `overrides.yaml` before the first rollout.

    They are not written earlier, because a directory with a configuration counts as a run and is not used again. Only
    rank 0 writes them, because the `run_dir` of other ranks may contain a later time.
    """
    path = Path(cfg.run_dir) / "config.yaml"
    if trainer.is_global_zero and (trainer.ckpt_path is not None or not path.exists()):
        part = path.with_name(".config.yaml.part")
        path.with_name("overrides.yaml").write_text(yaml.safe_dump(overrides))
        OmegaConf.save(cfg, part, resolve=True)
        part.replace(path)


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
