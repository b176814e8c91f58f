"""The progress bar shows the newest metrics in 80 columns."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer

from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.run_files.progress_bar import ProgressBar

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


class Fail(Callback):
    """Raises after the first rollout."""

    def on_train_batch_end(self, *_: object) -> None:
        raise ZeroDivisionError


class TestProgressBar:
    def test_shows_frames_and_metrics(self, make: Make, fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
        fit(*make(rollouts=2), callbacks=[ProgressBar()])
        shown = " ".join(capsys.readouterr().out.split())
        assert "64/64" in shown
        for pattern in (r"fps \d", r"KL \S*\d"):
            assert re.search(pattern, shown), pattern

    def test_stops_after_an_exception(self, make: Make, fit: Fit) -> None:
        bar = ProgressBar()
        with pytest.raises(ZeroDivisionError):
            fit(*make(rollouts=2), callbacks=[bar, Fail()])
        assert bar._progress.live.is_started is False

    def test_fits_in_80_columns(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        values = {"time/fps": 123456.7, "rollout/ep_rew_mean": -1234.56, "train/approx_kl": 0.0123456}
        metrics = {name: torch.tensor(value) for name, value in values.items()}
        bar, ppo = ProgressBar(), SimpleNamespace(total_frames=100_000_000, frames=99_999_744, compile_mode="auto")
        trainer = SimpleNamespace(callback_metrics=metrics, is_global_zero=False)
        bar.on_train_start(trainer, ppo)  # type: ignore[arg-type]
        assert bar._progress.tasks[0].fields["text"] == "compiling"
        bar.on_train_batch_end(trainer, ppo, None, None, 0)  # type: ignore[arg-type]
        bar._progress.console.print(bar._progress.get_renderable())
        (line,) = capsys.readouterr().out.splitlines()
        assert len(line) <= 80
        assert "99999744/100000000 fps 123457  return -1235  KL 0.01235 --:--" in line
