"""Progress bar of training in a terminal."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from .summary import first_text, progress_text


class ProgressBar(Callback):
    """Shows frames, frames per second, return, KL divergence and the remaining time in at most 80 columns."""

    def __init__(self) -> None:
        fixed = Column(no_wrap=True)
        self._progress = Progress(
            BarColumn(8, table_column=fixed),
            MofNCompleteColumn(table_column=fixed),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            TimeRemainingColumn(compact=True, table_column=fixed),
        )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        text = first_text(pl_module)
        self._task = self._progress.add_task("frames", total=pl_module.total_frames, text=text)
        if trainer.is_global_zero:
            self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._progress.update(self._task, completed=pl_module.frames, text=progress_text(trainer))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._progress.stop()  # Lightning does not call `teardown` after an exception
