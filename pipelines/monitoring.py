"""Collects metrics of a training and passes them to Lightning's loggers and callbacks, with frames on the x-axis."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from tensordict import TensorDictBase

from ..errors import ConfigurationError, NumericalError
from .distributed import num_ranks
from .distributed.ddp import prepare_ddp
from .metrics.callbacks import (
    EVALUATION_METRICS,
    check_early_stopping,
    check_monitors,
    delayed_metrics,
    save_after_rollouts,
    wait_for_metrics,
)
from .requirements import check_trainer
from .updates.skipped import SkippedSteps

logger = logging.getLogger("torchppo")

warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")


class MonitoredModule(LightningModule):
    """Base class of the LightningModule: logs, evaluates, and runs callbacks that monitor a metric.

    `EarlyStopping` checks its metric whenever the metric has a new value. Every rollout is logged; the Trainer's
    `log_every_n_steps` has no effect.

    Attributes:
        frames: environment steps of the training so far, summed over all ranks.
        skipped: counts the optimizer steps that were skipped.
        config: the configuration that the components were built from; empty in Python.

    """

    frames: int
    config: dict[str, Any]
    skipped: SkippedSteps
    _has_logged_hyperparameters = False
    _published_at: float  # set when the training starts
    published: dict[str, float]  # the metrics of the last rollout

    def setup(self, stage: str) -> None:
        """Replace how the Trainer reads checkpoints, unless the user has done so."""
        from .saving.plain_checkpoints import PlainCheckpoints

        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = PlainCheckpoints()

    def on_fit_start(self) -> None:
        self._has_logged_hyperparameters = False
        self.trainer.log_every_n_steps = 1  # type: ignore[attr-defined] # Lightning sets it in another class
        check_trainer(self.trainer)
        if has_monitors(self.trainer):
            wait_for_metrics(self.trainer, delayed_metrics(self.trainer))
        if self.trainer.checkpoint_callbacks:
            save_after_rollouts(self.trainer)
        if num_ranks() > 1:
            prepare_ddp(self.trainer.strategy.model)

    def teardown(self, stage: str) -> None:
        """Restore the callbacks that `wait_for_metrics` changed."""
        for callback in (*self.trainer.early_stopping_callbacks, *self.trainer.checkpoint_callbacks):
            for name in ("_should_skip_check", "_should_skip_saving_checkpoint", "on_train_batch_end"):
                vars(callback).pop(name, None)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Set the x-axis, before every step of training, validation and test."""
        set_step(self.trainer, self.frames)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to the device, unless it is already there; TensorDict would copy its structure."""
        if isinstance(batch, TensorDictBase) and all(leaf.device == device for leaf in batch.values(True, True)):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def publish_rollout(self, metrics: dict[str, float], num_frames: int) -> None:
        """Check the metrics of a rollout of `num_frames`, add the speed since the previous rollout, and publish them.

        Metrics that are not finite are left out if optimizer steps were skipped.

        Raises:
            NumericalError: if a metric is not finite.

        """
        if self.skipped.number:
            metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NumericalError(f"{name}={value} after {self.frames} frames; lower optimizer.lr or scale rewards")
        metrics["train/skipped_steps"] = float(self.skipped.number)
        if metrics.get("train/grad_norm") == 0.0:
            logger.warning("torchppo: the gradient was 0 after %d frames; this rollout changed no weights", self.frames)
        now = time.perf_counter()
        metrics["time/fps"] = num_frames / (now - self._published_at)
        self._published_at, self.published = now, metrics
        self.publish(metrics)

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Pass new values to the callbacks and loggers, the hyperparameters first. All ranks must call it."""
        # `self.log` takes half a millisecond per metric.
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        if not self._has_logged_hyperparameters:
            self._has_logged_hyperparameters = True
            if has_monitors(self.trainer):
                check_monitors(self.trainer)
            from .saving.files import hide_writer_errors, protect_rows

            for logger in self.loggers:
                if isinstance(logger, CSVLogger) and self.trainer.is_global_zero:
                    protect_rows(logger)
                # Lightning has saved an empty file, which TensorBoardLogger does not replace.
                if isinstance(logger, TensorBoardLogger) and self.trainer.is_global_zero:
                    Path(logger.log_dir, logger.NAME_HPARAMS_FILE).unlink(missing_ok=True)
                    hide_writer_errors()
                logger.log_hyperparams(hyperparameters(self))
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.frames)
            logger.save()
        set_step(self.trainer, self.frames)
        if has_monitors(self.trainer):
            check_early_stopping(self.trainer, metrics.keys())

    def validation_step(self, evaluation: Any) -> None:
        """Log the `Evaluation` that `EvaluationEpisodes` returns."""
        metrics = getattr(evaluation, "metrics", None)
        if not isinstance(metrics, dict):
            raise ConfigurationError(
                f"the dataloader of an evaluation returned {type(evaluation).__name__}, not an Evaluation; use "
                "torchppo.pipelines.evaluate.EvaluationEpisodes(env, actor)"
            )
        self.log_dict(metrics, batch_size=1, sync_dist=True)

    def test_step(self, evaluation: Any) -> None:
        self.validation_step(evaluation)

    def on_validation_end(self) -> None:
        names = (*EVALUATION_METRICS, *(name for name in self.trainer.callback_metrics if name.startswith("eval/")))
        check_early_stopping(self.trainer, names)


def has_monitors(trainer: Trainer) -> bool:
    """Return whether a callback may monitor a metric."""
    return bool(trainer.early_stopping_callbacks or trainer.checkpoint_callbacks)


def hyperparameters(module: Any) -> dict[str, Any]:
    """Return a module's configuration as `{"optimizer.lr": 0.001}`, or without one, the scalars of its components."""
    if module.config:
        return flattened(module.config)
    from .metrics.component_values import component_values

    return component_values(module)


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dictionaries and lists of dictionaries by dotted key."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(index): item for index, item in enumerate(value)}  # noqa: PLW2901
        flat |= flattened(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return flat


def set_step(trainer: Trainer, frames: int) -> None:
    """Set the x-axis of callbacks such as `LearningRateMonitor` and of `self.log`. Tested with Lightning 2.6."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = frames
