"""The progress bar and the lines of progress show the newest metrics in 80 columns."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer

from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.run_files.progress import ProgressBar, ProgressLines, Stopwatch, first_text

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
        values = {
            "time/fps": 123456.7,
            "rollout/ep_rew_mean": -1234.56,
            "train/kl": 0.0123456,
            "train/approx_kl": -1e-4,
        }
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


class TestProgressLines:
    def test_show_the_start_the_first_and_the_last_rollout(
        self, make: Make, fit: Fit, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fit(*make(rollouts=3), callbacks=[ProgressLines()])
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == "starting"
        assert [line.split()[0] for line in lines] == ["32/96", "96/96"]
        assert all(re.search(r"fps \d+", line) and len(line) <= 80 for line in lines)

    def test_show_every_rollout_that_takes_longer_than_the_interval(
        self, make: Make, fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ProgressLines, "seconds", 0.0)
        fit(*make(rollouts=3), callbacks=[ProgressLines()])
        assert len(capsys.readouterr().out.splitlines()) == 4

    def test_say_that_a_graph_is_compiled(self) -> None:
        assert [first_text(SimpleNamespace(compile_mode=mode)) for mode in (False, "auto")] == ["starting", "compiling"]


def test_stopwatch_measures_the_training(make: Make, fit: Fit) -> None:
    stopwatch = Stopwatch()
    ppo, collector = make(rollouts=2)
    start = time.perf_counter()
    fit(ppo, collector, callbacks=[stopwatch])
    assert sum(ppo.seconds.values()) < stopwatch.seconds < time.perf_counter() - start
