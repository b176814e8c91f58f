"""The command `torchppo verify-resume`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything
from omegaconf import DictConfig

from ...errors import ConfigurationError
from ..build import build_trainer, build_training
from ..components.instantiate import seed_for_rank
from ..run_files.progress import silence_lightning
from ..saving.files import save_checkpoint
from ..saving.plain_checkpoints import load_checkpoint
from ..saving.state import RESUME_TEXTS, describe_resume
from ..stopping.stop_on_signal import StopOnSignal

NOT_COMPARED = ("seconds", "callbacks", "loops")
"""Parts of a checkpoint that depend on the time, and counters of Lightning that differ after a restart."""
CLOCKS = ("episode_start_time", "time_queue")
"""Attributes of Gymnasium's `RecordEpisodeStatistics` that depend on the time, with the names of `save_state`."""


class SaveAndStop(Callback):
    """Records the metrics of rollouts; saves checkpoints after some of them, and ends the training with the last one.

    Args:
        paths: the files by the number of rollouts.

    """

    def __init__(self, paths: dict[int, Path]) -> None:
        self.paths = paths
        self.metrics: dict[str, dict[str, Any]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        values = {name: value.clone() for name, value in trainer.callback_metrics.items() if name[:5] != "time/"}
        self.metrics[f"{pl_module.frames} frames"] = values
        if pl_module.num_rollouts in self.paths:
            if not getattr(trainer.train_dataloader, "may_save", True) and pl_module.num_rollouts < max(self.paths):
                raise ConfigurationError(
                    f"--rollouts={pl_module.num_rollouts} ends after {pl_module.frames} frames, where no new episodes "
                    "start; choose a multiple of checkpoint.every_frames"
                )
            save_checkpoint(trainer, self.paths[pl_module.num_rollouts])
        trainer.should_stop = pl_module.num_rollouts >= max(self.paths)


def verify_resume(cfg: DictConfig, num_rollouts: int) -> int:
    """Train for twice as many rollouts, and again from a checkpoint in the middle; print what differs.

    There are no evaluations, log files or run directory.

    Returns:
        The exit code: 0 if weights, optimizer, metrics and all other states are bitwise equal, else 1.

    """
    if num_rollouts < 1:
        raise ConfigurationError(f"--rollouts={num_rollouts} must be at least 1")
    silence_lightning()
    torch.set_num_threads(cfg.num_threads)
    cfg.logger = {}
    with StopOnSignal(), tempfile.TemporaryDirectory() as folder:
        whole, half, both = (Path(folder) / f"{name}.ckpt" for name in ("whole", "half", "both"))
        expected = run(cfg, SaveAndStop({num_rollouts: half, 2 * num_rollouts: whole}))
        found = run(cfg, SaveAndStop({2 * num_rollouts: both}), half)
        first, second = (with_collector(load_checkpoint(path)) for path in (whole, both))
    expected = {frames: values for frames, values in expected.items() if frames in found}
    differences = [*different(expected, found, "metrics"), *different(first, second, "checkpoint")]
    print(RESUME_TEXTS[first["torchppo"]["resume_class"]])
    frames = first["torchppo"]["frames"]
    for name in differences[:20]:
        print(f"differs: {name}")
    if len(differences) > 20:
        print(f"and {len(differences) - 20} others")
    print(f"{frames:,} frames without and with an interruption: {'DIFFERENT' if differences else 'equal, bit by bit'}")
    return 1 if differences else 0


def run(cfg: DictConfig, stop: SaveAndStop, checkpoint: Path | None = None) -> dict[str, dict[str, Any]]:
    """Train from the start or from a checkpoint until `stop` ends it; return the metrics."""
    trainer = build_trainer(cfg, [stop])
    if trainer.world_size > 1:
        raise ConfigurationError(
            f"torchppo verify-resume uses one device, not {trainer.world_size}; set trainer.devices=1"
        )
    seed_everything(seed_for_rank(cfg.seed, trainer.global_rank), verbose=False)
    with closing(build_training(cfg, trainer.global_rank)) as training:
        if checkpoint is None:
            describe_resume(training.collector, None, None, cfg)
        trainer.fit(training.ppo, train_dataloaders=training.collector, ckpt_path=checkpoint, weights_only=True)
    if not all(path.exists() for path in stop.paths.values()):
        raise ConfigurationError(
            f"total_frames={cfg.total_frames} ends before {max(stop.paths)} rollouts; increase it or lower --rollouts"
        )
    return stop.metrics


def with_collector(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Move the state of the collector to where it is compared."""
    return {**checkpoint, "collector": checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader")}


def different(first: Any, second: Any, path: str) -> Iterator[str]:
    """Yield the paths of all values that differ in two nested structures."""
    if type(first) is not type(second):
        yield path
    elif isinstance(first, dict):
        for key in {**first, **second}:
            if key not in NOT_COMPARED:
                yield from different(first.get(key, ...), second.get(key, ...), f"{path}/{key}")
    elif isinstance(first, list) and first and isinstance(first[0], str) and first[0] in CLOCKS:
        return
    elif isinstance(first, list | tuple):
        if len(first) != len(second):
            yield path
        for index, (one, other) in enumerate(zip(first, second, strict=False)):
            yield from different(one, other, f"{path}/{index}")
    elif isinstance(first, torch.Tensor):
        same = (first.dtype, first.shape) == (second.dtype, second.shape)
        if not (same and torch.equal(as_bytes(first), as_bytes(second))):
            yield path
    elif repr(first) != repr(second):  # NaN is equal to NaN
        yield path


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
