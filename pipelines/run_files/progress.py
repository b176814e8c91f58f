"""Progress and wall time of a training: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import math
import threading
import time
import warnings
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from tqdm import tqdm


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


class ProgressLines(Callback):
    """Prints frames, frames per second and return every few seconds, for output that is not a terminal."""

    seconds = 5.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._is_printed, self._printed_at = trainer.is_global_zero, -math.inf
        if self._is_printed:
            print(first_text(pl_module), flush=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        is_due = time.perf_counter() - self._printed_at > self.seconds or pl_module.frames >= pl_module.total_frames
        if self._is_printed and is_due:
            self._printed_at = time.perf_counter()
            print(f"{pl_module.frames:,}/{pl_module.total_frames:,} frames  {progress_text(trainer)}", flush=True)


def progress_text(trainer: Trainer) -> str:
    """Return the frames per second and the newest metrics, in at most 40 characters.

    The KL divergence is that after the update. If it is unknown, it is the mean over the steps of the update.
    """
    metrics = trainer.callback_metrics
    kl = "train/kl" if "train/kl" in metrics else "train/approx_kl"
    shown = {"fps": "time/fps", "return": "rollout/ep_rew_mean", "KL": kl}
    found = {name: float(metrics[key]) for name, key in shown.items() if key in metrics}
    return "  ".join(f"{name} {value:.4g}" if name != "fps" else f"fps {value:.0f}" for name, value in found.items())


def first_text(ppo: Any) -> str:
    """Return the text that is shown before the end of the first rollout."""
    return "compiling" if ppo.compile_mode else "starting"


class Stopwatch(Callback):
    """Measures the wall time of training, including evaluations."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._end: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds since the start of the training, until its end."""
        return 1e-9 if self._start is None else (self._end or time.perf_counter()) - self._start

    def state_dict(self) -> dict[str, float]:
        return {"seconds": 0.0 if self._start is None else self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._start = time.perf_counter() - state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._start is None:
            self._start = time.perf_counter()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end = time.perf_counter()


def silence_lightning() -> None:
    """Silence messages of Lightning and of its progress bar that users cannot act on."""
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, reported as leaked if the process ends at once
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hardware, tips
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")  # by the lock
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning 2.6 on torch 2.13
