"""Checkpoint files are complete or recognized as damaged."""

from __future__ import annotations

import csv
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from torchppo.errors import CheckpointError
from torchppo.pipelines.saving.files import add_checksum, protect_rows, verify_checksum
from torchppo.pipelines.saving.last_checkpoint import LastCheckpoint
from torchppo.pipelines.saving.plain_checkpoints import ENTRIES, load_checkpoint, newest_checkpoint


class SavingTrainer:
    is_global_zero = True
    train_dataloader = None

    def __init__(self) -> None:
        self.num_saves = 0

    def save_checkpoint(self, path: Path) -> None:
        self.num_saves += 1
        state = {name: kind() for name, kind in ENTRIES.items()} | {"frames": self.num_saves}
        torch.save({"torchppo": state, "state_dict": {"weights": torch.arange(100)}}, path)


def make_file(path: Path) -> Path:
    SavingTrainer().save_checkpoint(path)
    add_checksum(path)
    return path


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = make_file(tmp_path / "last.ckpt")
    content = path.read_bytes()
    verify_checksum(path, content)
    generator = random.Random(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        with pytest.raises(CheckpointError, match="damaged"):
            verify_checksum(path, bytes(damaged))


def test_a_file_that_is_cut_off_is_refused_or_has_the_same_content(tmp_path: Path) -> None:
    path = make_file(tmp_path / "last.ckpt")
    content = path.read_bytes()
    for size in (
        0,
        1,
        10,
        len(content) // 2,
        len(content) - 94,
        len(content) - 72,
        len(content) - 71,
        len(content) - 1,
    ):
        path.write_bytes(content[:size])
        try:
            loaded = load_checkpoint(path)
        except CheckpointError:
            continue
        assert torch.equal(loaded["state_dict"]["weights"], torch.arange(100))


def test_the_last_two_checkpoints_are_kept_and_the_newest_valid_one_is_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trainer: Any = SavingTrainer()
    saver = LastCheckpoint(tmp_path, None, None)
    for frames in range(3):
        saver.save(trainer, frames)
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert newest_checkpoint(tmp_path / "last.ckpt")[1]["torchppo"]["frames"] == 3
    (tmp_path / "last.ckpt").write_bytes(b"damaged")
    assert newest_checkpoint(tmp_path / "last.ckpt")[1]["torchppo"]["frames"] == 2
    assert "previous.ckpt" in capsys.readouterr().err
    (tmp_path / "previous.ckpt").unlink()
    with pytest.raises(CheckpointError):
        newest_checkpoint(tmp_path / "last.ckpt")


def test_a_valid_checkpoint_remains_after_every_call_of_a_save(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer: Any = SavingTrainer()
    saver = LastCheckpoint(tmp_path, None, None)
    saver.save(trainer, 0)
    saver.save(trainer, 1)
    for number in range(20):
        remaining = number

        def counted(call: Any) -> Any:
            def counting(*args: Any, **kwargs: Any) -> Any:
                nonlocal remaining
                result = call(*args, **kwargs)
                remaining -= 1
                if remaining < 0:
                    raise KeyboardInterrupt
                return result

            return counting

        before = newest_checkpoint(tmp_path / "last.ckpt")[1]["torchppo"]["frames"]
        with monkeypatch.context() as patch:
            for name in ("replace", "link", "unlink", "fsync", "open"):
                patch.setattr(os, name, counted(getattr(os, name)))
            try:
                saver.save(trainer, 2)
            except KeyboardInterrupt:
                assert newest_checkpoint(tmp_path / "last.ckpt")[1]["torchppo"]["frames"] in (before, trainer.num_saves)
                continue
        break
    assert number > 5


def test_a_checkpoint_is_due_after_frames_or_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    trainer: Any = SavingTrainer()
    saver = LastCheckpoint(tmp_path, 100, 60.0)
    saver.start(trainer, 0)
    assert saver.path.exists(), "a run can continue from its start"
    saver._cost_in_memory = 1.0
    for frames in (99, 100):
        saver.save_if_due(trainer, frames)
    assert (saver.frames, trainer.num_saves) == (100, 2)
    now = 60.0
    assert saver.late() == 2
    saver._cost = 1.0  # saving may take 1 % of the time
    assert saver.late() == 0
    now = 100.0
    assert saver.late() == 2


def test_a_kill_while_a_column_is_added_loses_no_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    protect_rows(logger)
    logger.log_metrics({"first": 1.0}, step=1)
    logger.save()
    before = (tmp_path / "metrics.csv").read_text()
    logger.log_metrics({"second": 2.0}, step=2)
    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writeheader", raise_interrupt)
        with pytest.raises(KeyboardInterrupt):
            logger.save()
    assert (tmp_path / "metrics.csv").read_text() == before
    logger.experiment._rewrite_with_new_header(["first", "second", "step"])
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["first,second,step", "1.0,,1"]


def raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_state_in_memory_is_saved_on_request_and_renewed_for_a_fraction_of_the_time(
    make: Callable[..., Any], fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saver, now, costs = LastCheckpoint(tmp_path, None, None), 0.0, 0.5
    monkeypatch.setattr(time, "monotonic", lambda: now)

    class Save(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            saver.start(trainer, 0)

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            nonlocal now
            now += 1.0
            saver.save_if_due(trainer, pl_module.frames)
            saver._cost_in_memory = costs  # the next one is due after 200 seconds
            saved.append(saver._in_memory)

    saved: list[Any] = []
    ppo, collector = make(rollouts=3)
    fit(ppo, collector, callbacks=[Save()])
    assert [frames for frames, _ in saved] == [32, 32, 32]
    assert load_checkpoint(saver.path)["torchppo"]["frames"] == 0
    saver.save_from_memory()
    assert load_checkpoint(saver.path)["torchppo"]["frames"] == saver.frames == 32
    assert load_checkpoint(tmp_path / "previous.ckpt")["torchppo"]["frames"] == 0
