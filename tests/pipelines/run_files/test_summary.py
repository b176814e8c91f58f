"""What is written for people and programs: no NaN, whole paths, a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from torchppo.pipelines.run_files.summary import (
    finite,
    plot_learning_curve,
    print_evaluation,
    print_files,
    print_summary,
    read_curve,
    write_summary,
)

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
    "video": None,
}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """A metrics.csv as Lightning writes it, with holes."""
    path = tmp_path / "metrics.csv"
    path.write_text(
        "eval/mean_reward,rollout/ep_rew_mean,step,train/entropy\n"
        ",,256,0.69\n"
        ",20.5,512,0.68\n"
        "30.0,,512,\n"
        ",25.0,768,0.67\n"
    )
    return path


class TestSummary:
    def test_is_json_with_the_figures_as_they_are(self, tmp_path: Path) -> None:
        write_summary(SUMMARY, tmp_path / "summary.json")
        text = (tmp_path / "summary.json").read_text()
        assert json.loads(text) == SUMMARY
        assert list(json.loads(text)) == list(SUMMARY)
        assert text.endswith("}\n")

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
    def test_has_null_for_a_figure_that_does_not_exist(self, value: float | None, tmp_path: Path) -> None:
        write_summary({"a": value, "time": {"collect": value, "other": 0.5}}, tmp_path / "summary.json")
        written = json.loads((tmp_path / "summary.json").read_text())
        assert written == {"a": None, "time": {"collect": None, "other": 0.5}}

    @pytest.mark.parametrize("value", [0, 1.5, True, "nan", None, [1, 2]])
    def test_leaves_everything_else_alone(self, value: Any) -> None:
        assert finite({"a": {"b": value}}) == {"a": {"b": value}}


class TestTables:
    def test_shows_the_figures_and_the_files(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_summary(SUMMARY)
        print_files({"checkpoint": Path("run/last.ckpt")})
        out = capsys.readouterr().out
        for words in (
            *("CartPole-v1, seed 7: completed", "100,000 in 12.3 s (8,104/s)", "collect 40%", "estimate 2%"),
            *("498.1 mean of the last 100 episodes", "500.0 +- 1.5 over 20 episodes", "run/last.ckpt"),
        ):
            assert words in out

    def test_says_how_many_episodes_there_were_if_they_were_few(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_summary({**SUMMARY, "train_episodes": 3})
        assert "mean of the last 3 episodes" in capsys.readouterr().out

    def test_leaves_out_times_that_a_collector_does_not_tell(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_summary({**SUMMARY, "time": {"estimate": 0.02, "update": 0.5, "other": 0.48}})
        assert "estimate 2%, update 50%, other 48%" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("missing", "words"),
        [
            ({"train_return_mean": None, "train_episodes": 0}, "no episode ended"),
            ({"eval_return_mean": None, "eval_return_std": None, "eval_episodes": 0}, "interrupted before one"),
        ],
        ids=["training", "evaluation"],
    )
    def test_says_so_where_there_is_no_return(
        self, missing: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        print_summary({**SUMMARY, **missing})
        assert words in capsys.readouterr().out

    def test_shows_whole_paths_however_long(self, capsys: pytest.CaptureFixture[str]) -> None:
        path = Path("/a_rather_long_folder" * 8)
        print_files({"checkpoint": path})
        print_evaluation({**EVALUATION, "video": f"{path}.mp4"})
        shown = "".join(capsys.readouterr().out.replace("│", "").split())
        assert shown.count(str(path)) == 2

    def test_shows_an_evaluation(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_evaluation(EVALUATION)
        out = capsys.readouterr().out
        for words in ("checkpoint: runs/best.ckpt\n", "487.6 +- 12.0", "488.0", "20"):
            assert words in out
        assert "video" not in out


class TestLearningCurve:
    def test_reads_a_column_where_it_has_values(self, metrics: Path) -> None:
        assert read_curve(metrics, "rollout/ep_rew_mean") == ([512, 768], [20.5, 25.0])
        assert read_curve(metrics, "eval/mean_reward") == ([512], [30.0])

    def test_of_a_column_that_is_not_there_is_empty(self, metrics: Path) -> None:
        assert read_curve(metrics, "rollout/nothing") == ([], [])

    def test_is_a_picture(self, metrics: Path, tmp_path: Path) -> None:
        plot_learning_curve(metrics, tmp_path / "curve.png", "CartPole-v1, seed 0")
        assert plt.imread(tmp_path / "curve.png").shape == (480, 840, 4)

    def test_is_drawn_even_if_no_episode_ended(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.csv").write_text("step,train/entropy\n256,0.69\n")
        plot_learning_curve(tmp_path / "metrics.csv", tmp_path / "curve.png", "a title")
        assert (tmp_path / "curve.png").stat().st_size > 0

    def test_leaves_no_figure_open(self, metrics: Path, tmp_path: Path) -> None:
        plot_learning_curve(metrics, tmp_path / "curve.png", "a title")
        assert plt.get_fignums() == []
