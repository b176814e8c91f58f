"""What a run leaves behind: summary, table and learning curve."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

Summary = dict[str, Any]


def write_summary(summary: Summary, path: Path) -> None:
    """Write a summary as JSON; a figure that does not exist is null."""
    path.write_text(json.dumps(finite(summary), indent=2, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The same with null for every number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_summary(summary: Summary) -> None:
    """Show a table of what was reached."""
    table = two_columns(f"{summary['env']}, seed {summary['seed']}: {summary['exit']}")
    time = summary["time"]
    shares = ", ".join(
        f"{name} {time[name]:.0%}" for name in ("collect", "estimate", "update", "other") if name in time
    )
    speed, alone = summary["frames_per_second"], summary["environment_frames_per_second"]
    if alone is not None:
        parts = ", ".join(f"{name} {time[name]:.0%}" for name in ("environment", "policy") if name in time)
        shares += f"; of collect: {parts}"
    rows = {
        "frames": f"{summary['frames']:,} in {summary['wall_seconds']:.1f} s ({speed:,.0f}/s"
        + (")" if alone is None else f", {speed / alone:.0%} of the environment alone)"),
        "time": shares,
        "return in training": shown(
            summary["train_return_mean"],
            f"mean of the last {min(summary['train_episodes'], 100)} episodes",
            "no episode ended",
        ),
        "return in evaluation": shown(
            summary["eval_return_mean"],
            f"+- {summary['eval_return_std'] or 0.0:.1f} over {summary['eval_episodes']} episodes",
            "interrupted before one",
        ),
    }
    for name, text in rows.items():
        table.add_row(name, text)
    Console().print(table)


def two_columns(title: str) -> Table:
    """A table of names and values."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def print_files(files: dict[str, Path]) -> None:
    """Show where the files are, each in a line that can be copied."""
    console = Console(soft_wrap=True, highlight=False)
    for name, path in files.items():
        console.print(f"{name}: {path}", markup=False)


def print_evaluation(report: Summary) -> None:
    """Show what `torchppo eval` found as a table."""
    table = two_columns(report["env"])
    table.add_row("return", f"{report['eval_return_mean']:.1f} +- {report['eval_return_std']:.1f}")
    table.add_row("length", f"{report['eval_length_mean']:.1f}")
    table.add_row("episodes", str(report["eval_episodes"]))
    Console().print(table)
    print_files({name: Path(report[name]) for name in ("checkpoint", "video") if report[name]})


def shown(value: float | None, detail: str, otherwise: str) -> str:
    """A figure and what it is, or why there is none."""
    return otherwise if value is None else f"{value:.1f} {detail}"


def read_curve(metrics: Path, key: str) -> tuple[list[float], list[float]]:
    """Frames and values of one column of a metrics.csv, where it has a value."""
    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(key)]
    return [float(row["step"]) for row in rows], [float(row[key]) for row in rows]


def plot_learning_curve(metrics: Path, path: Path, title: str) -> None:
    """Draw the returns of training and evaluation over frames."""
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
