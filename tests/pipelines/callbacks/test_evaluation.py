"""What happens around a training: it is evaluated in time, the best is kept, and one that is good enough ends it."""

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
"""In one rollout of the training that `make` makes."""


class Returns:
    """Evaluations with means that are known beforehand, and when they were asked for."""

    def __init__(self, means: Sequence[float]) -> None:
        self.means: Iterator[float] = iter(means)
        self.policies: list[list[torch.Tensor]] = []

    def __call__(self, actor: Any) -> Evaluation:
        self.policies.append([param.detach().clone() for param in actor.parameters()])
        return Evaluation([next(self.means)], [1])


def evaluating(means: Sequence[float], folder: Path, **options: Any) -> EvaluateAndSave:
    every_frames, stop_at = options.get("every_frames", FRAMES), options.get("stop_at")
    return EvaluateAndSave(Returns(means), folder, every_frames, stop_at, StopOnSignal())


def frames_of(checkpoint: Path) -> int:
    frames: int = torch.load(checkpoint, weights_only=True)["torchppo"]["frames"]
    return frames


class TestEvaluations:
    @pytest.mark.parametrize(
        ("every_frames", "num"), [(FRAMES, 4), (FRAMES + 1, 2), (2 * FRAMES, 2), (3 * FRAMES, 2), (None, 1)]
    )
    def test_come_after_so_many_frames_and_at_the_end(
        self, every_frames: int | None, num: int, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        callback = evaluating(range(num), tmp_path, every_frames=every_frames)
        fit(*make(rollouts=4), callbacks=[callback])
        assert callback.last is not None
        assert callback.last.mean == num - 1
        assert frames_of(tmp_path / "last.ckpt") == 4 * FRAMES

    def test_see_the_policy_as_it_is_then(self, make: Make, fit: Fit, tmp_path: Path) -> None:
        callback = evaluating([0.0, 0.0], tmp_path)
        ppo, collector = make(rollouts=2)
        fit(ppo, collector, callbacks=[callback])
        first, last = callback.run_evaluation.policies  # type: ignore[attr-defined]
        assert all(torch.equal(one, other) for one, other in zip(last, ppo.actor.parameters(), strict=True))
        assert not any(torch.equal(one, other) for one, other in zip(first, last, strict=True))


class TestTheBest:
    def test_is_that_of_the_highest_mean_and_of_equal_ones_the_first(
        self, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        fit(*make(rollouts=4), callbacks=[evaluating([1.0, 5.0, 5.0, 3.0], tmp_path)])
        assert frames_of(tmp_path / "best.ckpt") == 2 * FRAMES
        assert frames_of(tmp_path / "last.ckpt") == 4 * FRAMES

    @pytest.mark.parametrize("means", [(5.0, 0.0), (0.0, 5.0)])
    @pytest.mark.parametrize(("mean", "is_better"), [(4.0, False), (6.0, True)])
    def test_is_kept_when_a_training_goes_on(
        self, means: tuple[float, float], mean: float, is_better: bool, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        fit(*make(rollouts=2), callbacks=[evaluating(means, tmp_path)])
        best = frames_of(tmp_path / "best.ckpt")
        ppo, collector = make(rollouts=1)
        ppo.total_frames = 3 * FRAMES
        options: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = Trainer(max_epochs=-1, accelerator="cpu", callbacks=[evaluating([mean], tmp_path)], **options)
        trainer.fit(ppo, train_dataloaders=collector, ckpt_path=tmp_path / "last.ckpt")
        assert frames_of(tmp_path / "best.ckpt") == (3 * FRAMES if is_better else best)


def test_a_full_disk_costs_no_checkpoint_and_is_told_of_the_file_that_was_to_be(
    make: Make, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, paths = Trainer.save_checkpoint, []

    def full(trainer: Trainer, path: Path) -> None:
        paths.append(path)
        if len(paths) > 3:
            path.write_bytes(b"the first half")
            raise OSError(errno.ENOSPC, "No space left on device", "elsewhere")
        save(trainer, path)

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path / 'last.ckpt'}'")):
        fit(*make(rollouts=2), callbacks=[evaluating([0.0, 0.0], tmp_path)])
    assert frames_of(tmp_path / "last.ckpt") == FRAMES
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "best.ckpt"}


class TestStopAt:
    @pytest.mark.parametrize(("stop_at", "rollouts"), [(2.0, 2), (1.5, 2), (3.0, 3), (3.1, 4), (None, 4)], ids=str)
    def test_ends_the_training_at_the_first_evaluation_that_reaches_it(
        self, stop_at: float | None, rollouts: int, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        ppo, collector = make(rollouts=4)
        callback = evaluating([1.0, 2.0, 3.0, 0.0], tmp_path, stop_at=stop_at)
        fit(ppo, collector, callbacks=[callback])
        assert ppo.frames == rollouts * FRAMES
        assert len(callback.run_evaluation.policies) == rollouts  # type: ignore[attr-defined]
