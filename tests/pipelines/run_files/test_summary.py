"""The summary is valid JSON, the tables and the log show figures, and the learning curve is drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from lightning import Trainer
from matplotlib.figure import Figure

from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.run_files.summary import (
    finish_plot,
    null_if_not_finite,
    plot_learning_curve,
    plot_mean,
    print_evaluation,
    print_files,
    print_summary,
    read_curve,
    write_summary,
)

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]

SUMMARY: dict[str, Any] = {
    "env": "CartPole-v1",
    "seed": 7,
    "frames": 100_000,
    "wall_seconds": 12.34,
    "frames_per_second": 8103.7,
    "environment_frames_per_second": None,
    "train_return_mean": 498.12,
    "train_episodes": 214,
    "eval_return_mean": 500.0,
    "eval_return_std": 1.5,
    "eval_episodes": 20,
    "eval_episodes_cut": 0,
    "health": [],
    "collapsed": False,
    "time": {"collect": 0.4, "estimate": 0.02, "update": 0.5, "other": 0.08},
    "exit": "completed",
    "version": "0.1.0",
}
EVALUATION: dict[str, Any] = {
    "env": "CartPole-v1",
    "checkpoint": "runs/best.ckpt",
    "eval_return_mean": 487.6,
    "eval_return_std": 12.0,
    "eval_length_mean": 488.0,
    "eval_episodes": 20,
    "eval_episodes_cut": 0,
    "health": [],
    "collapsed": False,
    "video": None,
}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """Return a metrics.csv with empty cells, as Lightning writes it."""
    path = tmp_path / "metrics.csv"
    path.write_text(
        "eval/mean_reward,rollout/ep_rew_mean,step,train/entropy\n"
        ",,256,0.69\n"
        ",20.5,512,0.68\n"
        "30.0,,512,\n"
        ",25.0,768,0.67\n"
    )
    return path


class TestWriteSummary:
    def test_writes_the_figures_as_json(self, tmp_path: Path) -> None:
        write_summary(SUMMARY, tmp_path / "summary.json")
        text = (tmp_path / "summary.json").read_text()
        assert json.loads(text) == SUMMARY
        assert list(json.loads(text)) == list(SUMMARY)
        assert text.endswith("}\n")

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
    def test_writes_null_for_figures_that_are_not_finite(self, value: float | None, tmp_path: Path) -> None:
        write_summary({"a": value, "time": {"collect": value, "other": 0.5}}, tmp_path / "summary.json")
        written = json.loads((tmp_path / "summary.json").read_text())
        assert written == {"a": None, "time": {"collect": None, "other": 0.5}}

    @pytest.mark.parametrize("value", [0, 1.5, True, "nan", None, [1, 2]])
    def test_other_values_do_not_change(self, value: Any) -> None:
        assert null_if_not_finite({"a": {"b": value}}) == {"a": {"b": value}}


class TestTables:
    def test_summary_shows_the_figures_and_the_files(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_summary(SUMMARY)
        print_files({"checkpoint": Path("run/last.ckpt")})
        out = capsys.readouterr().out
        for text in (
            *("CartPole-v1, seed 7: completed", "100,000 in 12.3 s (8,104/s)", "collect 40%", "estimate 2%"),
            *("498.1 (mean of the last 100 episodes)", "500.0 +- 1.5 over 20 episodes", "checkpoint: run/last.ckpt\n"),
        ):
            assert text in out

    def test_summary_shows_the_means_of_info(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_summary({**SUMMARY, "train_success_rate": 0.25, "eval_success_rate": 0.5})
        rows = [line.strip("│ ").split() for line in capsys.readouterr().out.splitlines()]
        assert ["training", "success_rate", "│", "0.25"] in rows
        assert ["evaluation", "success_rate", "│", "0.5"] in rows

    def test_summary_shows_the_number_of_episodes_below_100(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_summary({**SUMMARY, "train_episodes": 3})
        assert "mean of the last 3 episodes" in capsys.readouterr().out

    def test_summary_omits_times_that_the_collector_does_not_measure(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_summary({**SUMMARY, "time": {"estimate": 0.02, "update": 0.5, "other": 0.48}})
        assert "estimate 2%, update 50%, other 48%" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("missing", "text"),
        [
            ({"train_return_mean": None, "train_episodes": 0}, "no episode ended"),
            (
                {"eval_return_mean": None, "eval_return_std": None, "eval_episodes": 0},
                "none",
            ),
        ],
        ids=["training", "evaluation"],
    )
    def test_summary_explains_a_missing_return(
        self, missing: dict[str, Any], text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        print_summary({**SUMMARY, **missing})
        assert text in capsys.readouterr().out

    def test_long_paths_are_complete(self, capsys: pytest.CaptureFixture[str]) -> None:
        path = Path("/a_long_folder_name" * 8)
        print_files({"checkpoint": path})
        print_evaluation({**EVALUATION, "video": f"{path}.mp4"})
        shown = "".join(capsys.readouterr().out.replace("│", "").split())
        assert shown.count(str(path)) == 2

    def test_evaluation_shows_the_figures_and_the_files(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_evaluation(EVALUATION)
        out = capsys.readouterr().out
        for text in ("checkpoint: runs/best.ckpt\n", "487.6 +- 12.0", "488.0", "20"):
            assert text in out
        assert "video" not in out


class TestLearningCurve:
    def test_empty_cells_are_skipped(self, metrics: Path) -> None:
        assert read_curve(metrics, "rollout/ep_rew_mean") == ([512, 768], [20.5, 25.0])
        assert read_curve(metrics, "eval/mean_reward") == ([512], [30.0])

    def test_a_missing_column_is_empty(self, metrics: Path) -> None:
        assert read_curve(metrics, "rollout/nothing") == ([], [])

    def test_is_a_png(self, metrics: Path, tmp_path: Path) -> None:
        plot_learning_curve(metrics, tmp_path / "curve.png", "CartPole-v1, seed 0")
        assert plt.imread(tmp_path / "curve.png").shape == (480, 840, 4)

    def test_shades_an_interval_around_the_mean(self) -> None:
        axes = Figure().subplots()
        plot_mean(axes, [0.0, 10.0], [5.0, 6.0], [(4.0, 7.0), (5.0, 8.0)], label="returns")
        finish_plot(axes, "title", "return")
        (line,), (band,) = axes.get_lines(), axes.collections
        assert line.get_ydata().tolist() == [5.0, 6.0]
        corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
        assert corners == {(0.0, 4.0), (0.0, 7.0), (10.0, 5.0), (10.0, 8.0)}
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["returns"]

    @pytest.mark.parametrize("rows", ["", "256,1.0,,\n", "256,,30.0,0.0\n", "256,1.0,,\n512,2.0,30.0,4.0\n"])
    def test_is_drawn_with_few_points(self, rows: str, tmp_path: Path) -> None:
        header = "step,rollout/ep_rew_mean,eval/mean_reward,eval/std_reward\n"
        (tmp_path / "metrics.csv").write_text(header + rows)
        plot_learning_curve(tmp_path / "metrics.csv", tmp_path / "curve.png", "a title")
        assert (tmp_path / "curve.png").stat().st_size > 0

    def test_is_drawn_without_episodes(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.csv").write_text("step,train/entropy\n256,0.69\n")
        plot_learning_curve(tmp_path / "metrics.csv", tmp_path / "curve.png", "a title")
        assert (tmp_path / "curve.png").stat().st_size > 0

    def test_does_not_leave_a_figure_open(self, metrics: Path, tmp_path: Path) -> None:
        plot_learning_curve(metrics, tmp_path / "curve.png", "a title")
        assert plt.get_fignums() == []
