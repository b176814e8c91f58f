"""Progress bar and wall time."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from ..collectors.collector import seconds_of


class ProgressBar(Callback):
    """Shows frames, frames per second, return, KL divergence, shares of the time, and the remaining time."""

    def __init__(self) -> None:
        fixed = Column(no_wrap=True)
        self._progress = Progress(
            BarColumn(10, table_column=fixed),
            MofNCompleteColumn(table_column=fixed),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=False)),
            TimeRemainingColumn(table_column=fixed),
        )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._start = time.perf_counter()
        self._task = self._progress.add_task("frames", total=pl_module.total_frames, text="")
        if trainer.is_global_zero:
            self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = trainer.callback_metrics
        shown = {"frames/s": "time/fps", "return": "rollout/ep_rew_mean", "KL": "train/approx_kl"}
        text = "  ".join(f"{name} {float(metrics[key]):.4g}" for name, key in shown.items() if key in metrics)
        text += "".join(f"  {name} {share:.0%}" for name, share in self._time_shares(trainer, pl_module).items())
        self._progress.update(self._task, completed=pl_module.frames, text=text)

    def _time_shares(self, trainer: Trainer, ppo: Any) -> dict[str, float]:
        """Return the shares of the time since the start; the environment is a part of `collect`."""
        total = time.perf_counter() - self._start
        seconds = {**seconds_of(trainer.train_dataloader), **ppo.seconds}
        return {name: seconds[name] / total for name in ("collect", "environment", "update") if name in seconds}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._progress.stop()  # Lightning does not call `teardown` after an exception


class Stopwatch(Callback):
    """Measures the wall time of training, including evaluations."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.seconds = time.perf_counter() - self._start
