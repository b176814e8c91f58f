"""Evaluations run on time, save the best and the last checkpoint, and end a training that is good enough."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from torchppo.pipelines.callbacks.evaluation import EvaluateAndSave
from torchppo.pipelines.callbacks.stop_on_signal import StopOnSignal
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.episodes import Evaluation
from torchppo.pipelines.ppo import PPO

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]
FRAMES = 32
"""Frames of one rollout of the training that `make` returns."""


class FixedEvaluations:
    """Returns evaluations with given means, and records the weights of the evaluated policies."""

    def __init__(self, means: Sequence[float]) -> None:
        self.means: Iterator[float] = iter(means)
        self.policies: list[list[torch.Tensor]] = []

    def __call__(self, actor: Any) -> Evaluation:
        self.policies.append([param.detach().clone() for param in actor.parameters()])
        return Evaluation([next(self.means)], [1])


def make_callback(means: Sequence[float], folder: Path, **options: Any) -> EvaluateAndSave:
    every_frames, stop_at = options.get("every_frames", FRAMES), options.get("stop_at")
    return EvaluateAndSave(FixedEvaluations(means), folder, every_frames, stop_at, StopOnSignal())


def frames_of(checkpoint: Path) -> int:
    frames: int = torch.load(checkpoint, weights_only=True)["torchppo"]["frames"]
    return frames


class TestEvaluation:
    @pytest.mark.parametrize(
        ("every_frames", "num"), [(FRAMES, 4), (FRAMES + 1, 2), (2 * FRAMES, 2), (3 * FRAMES, 2), (None, 1)]
    )
    def test_runs_every_so_many_frames_and_at_the_end(
        self, every_frames: int | None, num: int, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        callback = make_callback(range(num), tmp_path, every_frames=every_frames)
        fit(*make(rollouts=4), callbacks=[callback])
        assert callback.last is not None
        assert callback.last.mean == num - 1
        assert frames_of(tmp_path / "last.ckpt") == 4 * FRAMES

    def test_uses_the_current_policy(self, make: Make, fit: Fit, tmp_path: Path) -> None:
        callback = make_callback([0.0, 0.0], tmp_path)
        ppo, collector = make(rollouts=2)
        fit(ppo, collector, callbacks=[callback])
        first, last = callback.run_evaluation.policies  # type: ignore[attr-defined]
        assert all(torch.equal(one, other) for one, other in zip(last, ppo.actor.parameters(), strict=True))
        assert not any(torch.equal(one, other) for one, other in zip(first, last, strict=True))


class TestBestCheckpoint:
    def test_is_the_first_with_the_highest_mean(self, make: Make, fit: Fit, tmp_path: Path) -> None:
        fit(*make(rollouts=4), callbacks=[make_callback([1.0, 5.0, 5.0, 3.0], tmp_path)])
        assert frames_of(tmp_path / "best.ckpt") == 2 * FRAMES
        assert frames_of(tmp_path / "last.ckpt") == 4 * FRAMES

    @pytest.mark.parametrize("means", [(5.0, 0.0), (0.0, 5.0)])
    @pytest.mark.parametrize(("mean", "is_better"), [(4.0, False), (6.0, True)])
    def test_is_compared_with_the_best_before_resuming(
        self, means: tuple[float, float], mean: float, is_better: bool, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        fit(*make(rollouts=2), callbacks=[make_callback(means, tmp_path)])
        best = frames_of(tmp_path / "best.ckpt")
        ppo, collector = make(rollouts=1)
        ppo.total_frames = 3 * FRAMES
        options: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = Trainer(max_epochs=-1, accelerator="cpu", callbacks=[make_callback([mean], tmp_path)], **options)
        trainer.fit(ppo, train_dataloaders=collector, ckpt_path=tmp_path / "last.ckpt")
        assert frames_of(tmp_path / "best.ckpt") == (3 * FRAMES if is_better else best)


def test_a_full_disk_does_not_destroy_the_previous_checkpoint(
    make: Make, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, paths = Trainer.save_checkpoint, []

    def save_on_full_disk(trainer: Trainer, path: Path) -> None:
        paths.append(path)
        if len(paths) > 3:
            path.write_bytes(b"first half")
            raise OSError(errno.ENOSPC, "No space left on device", "elsewhere")
        save(trainer, path)

    monkeypatch.setattr(Trainer, "save_checkpoint", save_on_full_disk)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "last.ckpt"))):
        fit(*make(rollouts=2), callbacks=[make_callback([0.0, 0.0], tmp_path)])
    assert frames_of(tmp_path / "last.ckpt") == FRAMES
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "best.ckpt"}


class TestStopAt:
    @pytest.mark.parametrize(("stop_at", "rollouts"), [(2.0, 2), (1.5, 2), (3.0, 3), (3.1, 4), (None, 4)], ids=str)
    def test_ends_the_training_at_the_first_evaluation_that_reaches_it(
        self, stop_at: float | None, rollouts: int, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        ppo, collector = make(rollouts=4)
        callback = make_callback([1.0, 2.0, 3.0, 0.0], tmp_path, stop_at=stop_at)
        fit(ppo, collector, callbacks=[callback])
        assert ppo.frames == rollouts * FRAMES
        assert len(callback.run_evaluation.policies) == rollouts  # type: ignore[attr-defined]
