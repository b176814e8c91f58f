"""How the Trainer reads checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO


class PlainCheckpoints(TorchCheckpointIO):
    """Reads only checkpoints of torchppo: local files of plain data whose checksum is correct.

    Lightning reads those of a URL with `weights_only=False`, and others as the caller of `trainer.fit` says.
    """

    def load_checkpoint(
        self, path: Path | str, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        from ..checkpoint import load_checkpoint

        return load_checkpoint(Path(path))
