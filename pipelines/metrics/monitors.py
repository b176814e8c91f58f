"""Callbacks that monitor a metric, such as `EarlyStopping` and `ModelCheckpoint`: when they act."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ...errors import ConfigurationError, did_you_mean
from .episode_info import NAMES

EVALUATION_METRICS = ("eval/mean_reward", "eval/std_reward", "eval/mean_ep_len")
DELAYED_METRICS = ("rollout/ep_rew_mean", "rollout/ep_len_mean", "train/kl", *EVALUATION_METRICS)
"""Metrics that have no value before an episode has ended, or before the first evaluation."""

OWN_METRICS = ("rollout/", "train/", "eval/", "time/")


def delayed_metrics(trainer: Trainer) -> list[str]:
    """Return the metrics that may have no value yet, with those of the environment's `info`."""
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
    """Raise a ConfigurationError if a callback monitors a torchppo metric that does not exist."""
    names = {*trainer.callback_metrics, *delayed_metrics(trainer)}
    for callback in (*trainer.early_stopping_callbacks, *trainer.checkpoint_callbacks):
        monitor = getattr(callback, "monitor", None) or ""
        if monitor.startswith(OWN_METRICS) and monitor not in names:
            raise ConfigurationError(
                f"{type(callback).__name__} monitors {monitor}, which does not exist{did_you_mean(monitor, names)}; "
                f"use one of {', '.join(sorted(names))}"
            )


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
