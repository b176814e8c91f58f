"""Log files of a run that continues: they lose what was written after the checkpoint."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ..saving.plain_checkpoints import load_checkpoint
from ..saving.state import raise_on_misfit

LOGGED_AT_START = ("hp_metric", "_hparams_")
"""Entries of TensorBoard that Lightning writes again when a run continues."""


def continue_logs(trainer: Trainer, ppo: Any, collector: Any, checkpoint: Path) -> tuple[str, int]:
    """Remove the later entries of `metrics.csv` and of TensorBoard's events, and let the loggers append to the rest.

    An evaluation that the checkpoint does not contain is repeated, so it is removed too. Tested with Lightning 2.6 and
    TensorBoard 2.20.

    Args:
        trainer: has the loggers.
        ppo: the LightningModule.
        collector: collects the rollouts.
        checkpoint: the checkpoint that the training continues from.

    Returns:
        The `resume_class` and the number of frames of the checkpoint.

    Raises:
        CheckpointError: if the checkpoint does not fit. Nothing has changed then.

    """
    content = load_checkpoint(checkpoint)
    raise_on_misfit(ppo, collector, content, checkpoint)
    frames = content["torchppo"]["frames"]
    evaluated_at = content["callbacks"].get("EvaluateAndSave", {}).get("evaluated_at", frames)

    def is_kept(step: int, names: Iterable[str]) -> bool:
        if any(name.startswith(LOGGED_AT_START) for name in names):
            return False
        is_evaluation = any(name.startswith("eval/") for name in names)
        return bool(step <= (evaluated_at if is_evaluation else frames))

    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, CSVLogger):
            continue_csv(logger, is_kept)
        elif isinstance(logger, TensorBoardLogger):
            for path in sorted(Path(logger.log_dir).glob("events.out.tfevents.*")):
                continue_events(path, is_kept)
    return str(content["torchppo"]["resume_class"]), int(frames)


def continue_csv(logger: Any, is_kept: Any) -> None:
    """Keep the first rows of a `metrics.csv`. Lightning deletes the file when `logger.experiment` is first read."""
    path = Path(logger.log_dir) / "metrics.csv"
    part = path.with_name(".metrics.csv.part")  # exists if an earlier restart was interrupted here
    source = path if path.exists() else part
    if not source.exists():
        return
    text = source.read_text(errors="replace").replace("\0", "")  # after a power failure, blocks may be zero or random
    reader = csv.DictReader(StringIO(text))
    rows = [row for row in reader if is_complete(row) and is_kept(int(row["step"]), filled(row))]
    names = list(reader.fieldnames or ())
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    logger.experiment.metrics_keys = names
    part.replace(path)


def is_complete(row: Mapping[Any, Any]) -> bool:
    """Return whether a row has numbers in all columns; the last one may be cut off."""
    return None not in row and all(map(is_number_or_empty, row.values())) and str(row.get("step")).isdigit()


def is_number_or_empty(text: str | None) -> bool:
    try:
        return text == "" or float(text or "none") is not None
    except ValueError:
        return False


def filled(row: Mapping[str, str]) -> list[str]:
    return [name for name, value in row.items() if value]


def continue_events(path: Path, is_kept: Any) -> None:
    """Keep the first events of a file of TensorBoard."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.summary.writer.record_writer import RecordWriter

    events = list(LegacyEventFileLoader(str(path)).Load())
    kept = [one for one in events if is_kept(one.step, [value.tag for value in one.summary.value])]
    if len(kept) < len(events):
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            writer = RecordWriter(file)
            for event in kept:
                writer.write(event.SerializeToString())
            writer.flush()
        part.replace(path)
