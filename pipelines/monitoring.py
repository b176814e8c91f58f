"""Collects metrics of a training and passes them to Lightning's loggers and callbacks, with frames on the x-axis."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections import deque
from collections.abc import Mapping
from itertools import repeat
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from tensordict import TensorDictBase
from torch import Tensor

from ..errors import ConfigurationError, NumericalError
from ..modules.normalizers import Reduce, no_reduce
from .advantages import require_entries
from .distributed import gathered, num_ranks
from .distributed.ddp import prepare_ddp
from .metrics.episode_info import add_infos, ended_infos, mean_infos
from .metrics.monitors import (
    EVALUATION_METRICS,
    check_early_stopping,
    check_monitors,
    delayed_metrics,
    has_monitors,
    save_after_rollouts,
    set_step,
    wait_for_metrics,
)
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
        """Move a batch to the device, unless it is there: TensorDict would copy the structure."""
        leaves = batch.values(True, True) if isinstance(batch, TensorDictBase) else [torch.empty(0, device="meta")]
        if all(leaf.device == device for leaf in leaves):
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


class EpisodeStatistics:
    """Returns and lengths of the last 100 training episodes of all ranks.

    Attributes:
        episodes: `(return, length)` of each episode, oldest first.
        infos: the last 100 values of every entry of `info` that episodes reported.
        num_episodes: number of episodes that have ended since training started.

    """

    def __init__(self) -> None:
        self.episodes: deque[tuple[float, int]] = deque(maxlen=100)
        self.infos: dict[str, deque[float]] = {}
        self.num_episodes, self._truncated = 0, dict[str, float]()

    def update(self, rollout: TensorDictBase, reduce: Reduce = no_reduce) -> None:
        """Add the episodes that ended in a rollout `[num_envs, time]` of every rank, in the order of time."""
        require_entries(rollout, ("next", "episode_reward"), ("next", "step_count"))
        data = rollout["next"]
        names = ("done", "terminated", "episode_reward", "step_count")
        done, terminated, rewards, lengths = (data[name].transpose(0, 1) for name in names)
        done = done & (lengths > 0)  # 0: a skipped step
        entries = done.nonzero()[:, 0], rewards[done], lengths[done], ~terminated[done]
        has_infos = "episode_info" in data.keys()  # noqa: SIM118
        infos = ended_infos(data.select("episode_info").transpose(0, 1), done) if has_infos else repeat({})
        ended = [*zip(*(entry.tolist() for entry in entries), infos, strict=False)]
        counts = len(ended), sum(one[3] for one in ended), any(info for *_, info in ended)
        if num_ranks() == 1:
            self._add(ended, *counts[:2])
            return
        newest = [(*counts, 0), *(one[:4] for one in ended[-100:])]  # older episodes have no effect
        table = torch.full((101, 4), math.nan, dtype=torch.float64)
        table[: len(newest)] = torch.tensor(newest, dtype=torch.float64)
        reduce(table, lambda of_ranks: self._add_of_ranks(of_ranks, ended))

    def _add_of_ranks(self, of_ranks: Tensor, own: list[Any]) -> None:
        """Add the episodes of all ranks, `[num_ranks, 101, 4]`, and gather those of all ranks if they have infos."""
        num_ended, num_truncated, has_infos, _ = of_ranks[:, 0].sum(0).tolist()
        rows = of_ranks[:, 1:].flatten(0, 1)
        ended = gathered(own) if has_infos else [(*row, {}) for row in rows[~rows[:, 0].isnan()].tolist()]
        self._add(sorted(ended, key=itemgetter(0)), int(num_ended), int(num_truncated))

    def _add(self, ended: list[Any], num_ended: int, num_truncated: int) -> None:
        """Add the newest episodes `(time, return, length, is_truncated, info)`, and the numbers of all that ended."""
        self.episodes.extend((reward, int(length)) for _, reward, length, *_ in ended)
        self._truncated = {"rollout/truncated": num_truncated / num_ended} if num_ended else {}
        if any(info for *_, info in ended):
            add_infos(self.infos, [info for *_, info in ended], max_length=100)
        self.num_episodes += num_ended

    @property
    def metrics(self) -> dict[str, float]:
        """Mean and standard deviation of the returns, mean length, and means of `infos`; empty without an episode."""
        if not self.episodes:
            return {}
        rewards, lengths = zip(*self.episodes, strict=True)
        return {
            "rollout/ep_rew_mean": sum(rewards) / len(rewards),
            "rollout/ep_rew_std": torch.tensor(rewards, dtype=torch.float64).std(correction=0).item(),
            "rollout/ep_len_mean": sum(lengths) / len(lengths),
            **self._truncated,  # of the episodes that ended in the last rollout
            **(mean_infos("rollout", self.infos) if self.infos else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        infos = {name: list(values) for name, values in self.infos.items()}
        counts = {"num_episodes": self.num_episodes, "truncated_episodes": dict(self._truncated)}
        return {**counts, "episodes": list(self.episodes), "episode_infos": infos}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_episodes, self._truncated = state["num_episodes"], dict(state["truncated_episodes"])
        self.episodes.clear()
        self.episodes.extend(tuple(episode) for episode in state["episodes"])
        self.infos = {name: deque(values, maxlen=100) for name, values in state["episode_infos"].items()}
