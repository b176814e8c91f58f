"""The progress bar shows the state of the training, and the stopwatch measures its wall time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from lightning import Callback, Trainer

from torchppo.pipelines.callbacks.progress import ProgressBar, Stopwatch
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


class Fail(Callback):
    """Raises after the first rollout."""

    def on_train_batch_end(self, *_: object) -> None:
        raise ZeroDivisionError


class TestProgressBar:
    def test_shows_frames_metrics_and_time_shares(
        self, make: Make, fit: Fit, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fit(*make(rollouts=2), callbacks=[ProgressBar()])
        shown = " ".join(capsys.readouterr().out.split())
        assert "64/64" in shown
        for pattern in (r"frames/s \d", r"KL \S*\d", r"collect \d+%", r"environment \d+%", r"update \d+%"):
            assert re.search(pattern, shown), pattern

    def test_stops_after_an_exception(self, make: Make, fit: Fit) -> None:
        bar = ProgressBar()
        with pytest.raises(ZeroDivisionError):
            fit(*make(rollouts=2), callbacks=[bar, Fail()])
        assert bar._progress.live.is_started is False


def test_stopwatch_measures_the_training(make: Make, fit: Fit) -> None:
    stopwatch = Stopwatch()
    ppo, collector = make(rollouts=2)
    start = time.perf_counter()
    fit(ppo, collector, callbacks=[stopwatch])
    assert sum(ppo.seconds.values()) < stopwatch.seconds < time.perf_counter() - start
