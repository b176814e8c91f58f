"""Progress bar, wall time, summary, tables and learning curve of a run."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from ... import __version__
from ..collectors.collector import seconds_of
from ..metrics.episode_info import mean_infos

Summary = dict[str, Any]
EVALUATION_KEYS = ("eval_return_mean", "eval_return_std", "eval_length_mean", "eval_episodes")


def make_summary(
    *,
    env: str,
    seed: int,
    overrides: list[str],
    ppo: Any,
    collector_seconds: dict[str, float],
    wall_seconds: float,
    evaluation: Any,
    was_interrupted: bool,
) -> Summary:
    """Return the numbers of a run that `summary.json` stores.

    Args:
        env: name of the environment.
        seed: seed of the run.
        overrides: overrides of the command line, also those of a sweep.
        ppo: the trained LightningModule.
        collector_seconds: seconds that the collector measured.
        wall_seconds: wall time of training, including evaluations.
        evaluation: the last `Evaluation`, or `None`.
        was_interrupted: whether a signal ended the run.

    """
    returns = [reward for reward, _ in ppo.episodes.episodes]
    shares = {name: part / wall_seconds for name, part in (collector_seconds | ppo.seconds).items()}
    environment = collector_seconds.get("environment")
    return {
        "env": env,
        "seed": seed,
        "overrides": overrides,
        "frames": ppo.frames,
        "wall_seconds": wall_seconds,
        "frames_per_second": ppo.frames / wall_seconds,
        "environment_frames_per_second": ppo.frames / environment if environment else None,
        "train_return_mean": sum(returns) / len(returns) if returns else None,
        "train_episodes": ppo.episodes.num_episodes,
        "eval_return_mean": evaluation.mean if evaluation else None,
        "eval_return_std": evaluation.std if evaluation else None,
        "eval_episodes": len(evaluation.returns) if evaluation else 0,
        **(mean_infos("train", ppo.episodes.infos, "_") if ppo.episodes.infos else {}),
        **(mean_infos("eval", evaluation.infos, "_") if evaluation and evaluation.infos else {}),
        "time": {**shares, "other": 1 - sum(shares.get(name, 0.0) for name in ("collect", "estimate", "update"))},
        "exit": "interrupted" if was_interrupted else "completed",
        "version": __version__,
    }


def write_summary(summary: Summary, path: Path) -> None:
    """Write a summary as JSON; values that are not finite become null."""
    path.write_text(json.dumps(null_if_not_finite(summary), indent=2, allow_nan=False) + "\n")


def null_if_not_finite(value: Any) -> Any:
    """Replace floats that are not finite by `None`, including those in dictionaries."""
    if isinstance(value, dict):
        return {key: null_if_not_finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_summary(summary: Summary) -> None:
    """Print a table with the results of a run."""
    time, speed, env_speed = summary["time"], summary["frames_per_second"], summary["environment_frames_per_second"]
    shares = shares_text(time, "collect", "estimate", "update", "other")
    frames = f"{summary['frames']:,} in {summary['wall_seconds']:.1f} s ({speed:,.0f}/s"
    if env_speed is None:
        frames += ")"
    else:
        frames += f", {speed / env_speed:.0%} of the environment alone)"
        shares += f"; of collect: {shares_text(time, 'environment', 'policy')}"
    table = two_columns(f"{summary['env']}, seed {summary['seed']}: {summary['exit']}")
    table.add_row("frames", frames)
    table.add_row("time", shares)
    table.add_row(
        "training return",
        "no episode ended"
        if summary["train_return_mean"] is None
        else f"{summary['train_return_mean']:.1f} (mean of the last {min(summary['train_episodes'], 100)} episodes)",
    )
    table.add_row(
        "evaluation return",
        "interrupted before the first evaluation"
        if summary["eval_return_mean"] is None
        else f"{summary['eval_return_mean']:.1f} +- {summary['eval_return_std'] or 0.0:.1f} "
        f"over {summary['eval_episodes']} episodes",
    )
    Console().print(table)


def shares_text(time: dict[str, float], *names: str) -> str:
    """Return the shares that exist, such as `collect 40%, update 50%`."""
    return ", ".join(f"{name} {time[name]:.0%}" for name in names if name in time)


def two_columns(title: str) -> Table:
    """Return an empty table of names and values."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def print_files(files: dict[str, Path]) -> None:
    """Print the paths of files, each in one line that can be copied."""
    console = Console(soft_wrap=True, highlight=False)
    for name, path in files.items():
        console.print(f"{name}: {path}", markup=False)


def print_evaluation(report: Summary) -> None:
    """Print the result of `torchppo eval` as a table."""
    table = two_columns(report["env"])
    table.add_row("return", f"{report['eval_return_mean']:.1f} +- {report['eval_return_std']:.1f}")
    table.add_row("length", f"{report['eval_length_mean']:.1f}")
    table.add_row("episodes", str(report["eval_episodes"]))
    for name in [key for key in report if key.startswith("eval_") and key not in EVALUATION_KEYS]:
        table.add_row(name.removeprefix("eval_"), f"{report[name]:.4g}")
    Console().print(table)
    print_files({name: Path(report[name]) for name in ("checkpoint", "video") if report[name]})


def read_curve(metrics: Path, key: str) -> tuple[list[float], list[float]]:
    """Return frames and values of a column of a metrics.csv, without empty cells."""
    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(key)]
    return [float(row["step"]) for row in rows], [float(row[key]) for row in rows]


def plot_learning_curve(metrics: Path, path: Path, title: str) -> None:
    """Plot the returns of training and evaluation over frames."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (
        ("rollout/ep_rew_mean", "training (mean of 100 episodes)", "-"),
        ("eval/mean_reward", "evaluation (deterministic)", "o-"),
    ):
        frames, values = read_curve(metrics, key)
        axes.plot(frames, values, style, label=label, markersize=4)
    axes.set(xlabel="frames", ylabel="return", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


class ProgressBar(Callback):
    """Shows frames, frames per second, return, KL divergence, shares of the time, and the remaining time."""

    def __init__(self) -> None:
        fixed = Column(no_wrap=True)
        self._progress = Progress(
            BarColumn(10, table_column=fixed),
            MofNCompleteColumn(table_column=fixed),
            TextColumn("{task.fields[text]}", table_column=Column(no_wrap=False)),
            TimeRemainingColumn(table_column=fixed),
        )

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._start = time.perf_counter()
        self._task = self._progress.add_task("frames", total=pl_module.total_frames, text="")
        if trainer.is_global_zero:
            self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        metrics = trainer.callback_metrics
        shown = {"frames/s": "time/fps", "return": "rollout/ep_rew_mean", "KL": "train/approx_kl"}
        text = "  ".join(f"{name} {float(metrics[key]):.4g}" for name, key in shown.items() if key in metrics)
        text += "".join(f"  {name} {share:.0%}" for name, share in self._time_shares(trainer, pl_module).items())
        self._progress.update(self._task, completed=pl_module.frames, text=text)

    def _time_shares(self, trainer: Trainer, ppo: Any) -> dict[str, float]:
        """Return the shares of the time since the start; the environment is a part of `collect`."""
        total = time.perf_counter() - self._start
        seconds = {**seconds_of(trainer.train_dataloader), **ppo.seconds}
        return {name: seconds[name] / total for name in ("collect", "environment", "update") if name in seconds}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._progress.stop()  # Lightning does not call `teardown` after an exception


class Stopwatch(Callback):
    """Measures the wall time of training, including evaluations."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = time.perf_counter()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.seconds = time.perf_counter() - self._start
