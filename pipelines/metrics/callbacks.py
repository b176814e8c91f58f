"""Makes Lightning's `EarlyStopping` and `ModelCheckpoint` act after rollouts and evaluations."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Collection
from functools import partial
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ...errors import ConfigurationError, did_you_mean
from .episode_statistics import NAMES

logger = logging.getLogger("torchppo")

EVALUATION_METRICS = ("eval/mean_reward", "eval/std_reward", "eval/mean_ep_len")
SAMPLED_METRICS = ("train/kl", "train/max_kl", "train/std", "train/surrogate_improvement", "train/improvement_bound")
DELAYED_METRICS = (
    *("rollout/ep_rew_mean", "rollout/ep_rew_std", "rollout/ep_len_mean", "rollout/truncated"),
    *SAMPLED_METRICS,
    *EVALUATION_METRICS,
)
"""Metrics that have no value before an episode has ended, before the first evaluation, or without a sample."""

OWN_METRICS = ("rollout/", "train/", "eval/", "time/")


def delayed_metrics(trainer: Trainer) -> list[str]:
    """Return the metrics that may have no value yet, including those from the environment's `info`."""
    env = getattr(trainer.train_dataloader, "env", None)
    names = dict.fromkeys(NAMES.get(key, key) for key in getattr(env, "info_keys", ()))
    return [*DELAYED_METRICS, *(f"{group}/{name}" for group in ("rollout", "eval") for name in names)]


def check_early_stopping(trainer: Trainer, names: Collection[str]) -> None:
    """Make every `EarlyStopping` that monitors one of `names` check its metric. Tested with Lightning 2.6."""
    wait_for_metrics(trainer, names)
    for callback in trainer.early_stopping_callbacks:
        if callback.monitor in names and not EarlyStopping._should_skip_check(callback, trainer):
            callback._run_early_stopping_check(trainer)


def check_monitors(trainer: Trainer) -> None:
    """Raise a ConfigurationError if a callback monitors a torchppo metric that does not exist.

    Warn about the name of a metric without its group, which a callback of the user may still log.
    """
    names = {*trainer.callback_metrics, *delayed_metrics(trainer)}
    for callback in (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks):
        kind, monitor = type(callback).__name__, getattr(callback, "monitor", None) or ""
        if monitor.startswith(OWN_METRICS) and monitor not in names:
            raise ConfigurationError(
                f"{kind} monitors {monitor}, which does not exist{did_you_mean(monitor, names)}; use one of "
                f"{', '.join(sorted(names))}"
            )
        full = sorted(name for name in names if name.endswith(f"/{monitor}"))
        if monitor and full and monitor not in names:
            logger.warning("torchppo: %s monitors %s; the metric of torchppo is %s", kind, monitor, " or ".join(full))


def wait_for_metrics(trainer: Trainer, names: Collection[str]) -> None:
    """Change the times at which callbacks that monitor one of `names` act. Tested with Lightning 2.6.

    In Lightning, `EarlyStopping` checks after epochs or validations. In torchppo, an epoch is the whole training, so
    `check_early_stopping` runs the check. `ModelCheckpoint` saves as in Lightning, but not before the metric exists.
    If it monitors a metric of evaluations, it saves only after an evaluation.
    """
    for callback in (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks):
        if getattr(callback, "monitor", None) not in names:
            continue
        if isinstance(callback, EarlyStopping):
            vars(callback)["_should_skip_check"] = always
        elif isinstance(callback, ModelCheckpoint):
            vars(callback)["_should_skip_saving_checkpoint"] = partial(skips_saving, callback)
            if str(callback.monitor).startswith("eval/"):
                callback._save_on_train_epoch_end = False


def always(_: Trainer) -> bool:
    """Return True, so that `EarlyStopping` skips Lightning's own checks."""
    return True


def skips_saving(callback: ModelCheckpoint, trainer: Trainer) -> bool:
    """Return whether a `ModelCheckpoint` skips saving. Tested with Lightning 2.6."""
    is_missing = callback.monitor not in trainer.callback_metrics
    return is_missing or ModelCheckpoint._should_skip_saving_checkpoint(callback, trainer)


def save_after_rollouts(trainer: Trainer) -> None:
    """Make every `ModelCheckpoint` save after the rollout in which a save is due. Tested with Lightning 2.6.

    Lightning saves if the number of optimizer steps is a multiple of `every_n_train_steps`. A rollout takes many steps
    at once and may skip these multiples. With manual optimization, Lightning ignores `train_time_interval`.
    """
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            vars(callback)["on_train_batch_end"] = partial(save_if_due, callback)


def save_if_due(callback: ModelCheckpoint, trainer: Trainer, *arguments: Any) -> None:
    """Call Lightning's hook of a `ModelCheckpoint` if a save is due."""
    steps, interval, last = trainer.global_step, callback._train_time_interval, callback._last_time_checked
    num_steps = callback._every_n_train_steps
    if interval is not None:
        is_late = last is not None and time.monotonic() - last >= interval.total_seconds()
        is_due = trainer.strategy.broadcast(is_late)
    else:
        is_due = num_steps > 0 and steps // num_steps > callback._last_global_step_saved // num_steps
    if is_due:
        callback._every_n_train_steps = max(1, steps)  # Lightning saves at multiples of it
        try:
            type(callback).on_train_batch_end(callback, trainer, *arguments)
        finally:
            callback._every_n_train_steps = num_steps
