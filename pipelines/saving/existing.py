"""Checks that checkpoints and runs exist. Importing this file does not import PyTorch."""

from __future__ import annotations

from pathlib import Path

from ...errors import CheckpointError


def require_checkpoint(path: Path) -> None:
    """Raise a CheckpointError if a path is not a file; for the directory of a run, the message names its files."""
    if path.is_file():
        return
    folder = path if path.name == "checkpoints" else path / "checkpoints"
    if files := sorted(folder.glob("*.ckpt"), key=lambda file: (file.name != "best.ckpt", file.name)):
        raise CheckpointError(f"{path} is a folder; use one of its checkpoints: {', '.join(map(str, files))}")
    raise CheckpointError(f"{path} is not a file; checkpoints are runs/<name>/<run>/checkpoints/*.ckpt")


def require_run(path: Path) -> None:
    """Raise a CheckpointError if there is neither a directory nor a file."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; pass a run directory or a checkpoint")
