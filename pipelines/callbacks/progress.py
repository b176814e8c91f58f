"""Progress bar and wall time."""

from __future__ import annotations

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from ..collectors.collector import seconds_of


class ProgressBar(Callback):
    """Frames, frames per second, return, KL and the time left, on the terminal."""

    def __init__(self) -> None:
        """Nothing is drawn before the training starts."""
        whole = Column(no_wrap=True)
        self._progress = Progress(
            BarColumn(10, table_column=whole),
            MofNCompleteColumn(table_column=whole),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=False)),
            TimeRemainingColumn(table_column=whole),
        )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw the bar on the first rank."""
        self._start = time.perf_counter()
        self._task = self._progress.add_task("frames", total=pl_module.total_frames, text="")
        if trainer.is_global_zero:
            self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the bar."""
        metrics = trainer.callback_metrics
        shown = {"frames/s": "time/fps", "return": "rollout/ep_rew_mean", "KL": "train/approx_kl"}
        text = "  ".join(f"{name} {float(metrics[key]):.4g}" for name, key in shown.items() if key in metrics)
        text += "".join(f"  {name} {share:.0%}" for name, share in self._shares(trainer, pl_module).items())
        self._progress.update(self._task, completed=pl_module.frames, text=text)

    def _shares(self, trainer: Trainer, ppo: Any) -> dict[str, float]:
        """What the time since the start went into; the environment is a part of collect."""
        total = time.perf_counter() - self._start
        parts = {**seconds_of(trainer.train_dataloader), **ppo.seconds}
        return {name: parts[name] / total for name in ("collect", "environment", "update") if name in parts}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the last state of the bar on the terminal."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back, which Lightning does not see to after a failure."""
        self._progress.stop()


class Stopwatch(Callback):
    """Wall time of the training, its evaluations included."""

    def __init__(self) -> None:
        """Not started."""
        self.seconds = 0.0
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self._start = time.perf_counter()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._start
