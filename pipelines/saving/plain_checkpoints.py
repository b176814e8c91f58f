"""Reads checkpoint files, also for the Trainer."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ...errors import CheckpointError
from .existing import require_checkpoint
from .files import PREVIOUS, verify_checksum

ENTRIES: dict[str, type] = {
    **dict.fromkeys(("config", "versions", "environment", "seconds", "update", "coefficients", "metrics"), dict),
    **dict.fromkeys(("frames", "total_frames", "num_rollouts", "num_episodes"), int),
    **{"resume_class": str, "ranks": list, "episodes": list, "episode_infos": dict, "truncated_episodes": dict},
}
"""Entries of `checkpoint["torchppo"]` that are read, and their types; see `state.training_state`."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint. Reading it does not run code from the file.

    Raises:
        CheckpointError: if the file is missing, damaged, or not a complete checkpoint of torchppo.

    """
    require_checkpoint(path)
    content = io.BytesIO(path.read_bytes())
    verify_checksum(path, content.getvalue())
    try:
        with zipfile.ZipFile(content) as archive:
            damaged = archive.testzip()  # `torch.load` does not verify the checksums
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged (in {damaged}); use another checkpoint")
        content.seek(0)
        checkpoint = torch.load(content, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint ({str(error)[:200]}); use a file that torchppo train has written"
        ) from error
    if not isinstance(checkpoint, dict) or "torchppo" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of torchppo; use one that torchppo train has written")
    require_complete(path, checkpoint)
    return checkpoint


def require_complete(path: Path | str, checkpoint: Mapping[str, Any]) -> None:
    """Raise a CheckpointError if an entry that will be read is missing or of another type."""
    state = checkpoint.get("torchppo")
    is_state = isinstance(state, dict) and all(isinstance(state.get(name), kind) for name, kind in ENTRIES.items())
    if not (is_state and isinstance(checkpoint.get("state_dict"), dict)):
        raise CheckpointError(f"{path} is not a complete checkpoint; use one that torchppo train has written")


def newest_checkpoint(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the path and the contents of a checkpoint, or of the last one of a run directory.

    If `last.ckpt` is damaged or missing, print a message and use `previous.ckpt`.

    Raises:
        CheckpointError: if there is no valid checkpoint.

    """
    if path.is_dir():
        path = (path if path.name == "checkpoints" else path / "checkpoints") / "last.ckpt"
    try:
        return path, load_checkpoint(path)
    except CheckpointError as error:
        previous = path.with_name(PREVIOUS)
        if path.name != "last.ckpt" or not previous.is_file():
            raise
        checkpoint = load_checkpoint(previous)
        print(f"torchppo: {error}; continuing from {previous}", file=sys.stderr, flush=True)
        return previous, checkpoint


class PlainCheckpoints(TorchCheckpointIO):
    """Reads only checkpoints of torchppo: local files of plain data whose checksum is correct.

    Lightning reads those of a URL with `weights_only=False`, and others as the caller of `trainer.fit` says.
    """

    def load_checkpoint(
        self, path: Path | str, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(Path(path))
