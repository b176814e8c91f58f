"""Summary, tables and learning curve of a run."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from rich.console import Console
from rich.table import Table

from ... import __version__
from ..metrics.episode_statistics import mean_infos
from ..stopping.signals import write_or_skip

Summary = dict[str, Any]
FINISHED = ("completed", "stopped")
"""Values of `exit` of runs that have nothing left to do."""
RETURN_KEYS: tuple[str, ...] = ("train_return_mean", "train_episodes")
RETURN_KEYS += ("eval_return_mean", "eval_return_std", "eval_length_mean", "eval_episodes", "eval_episodes_cut")


def make_summary(
    *,
    env: str,
    seed: int,
    overrides: list[str],
    ppo: Any,
    collector_seconds: dict[str, float],
    wall_seconds: float,
    evaluation: Any,
    end: str,
    health: Any,
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
        end: how the run ended (`exit` in the file).
        health: the `HealthReport`.

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
        **mean_infos("train", ppo.episodes.infos, "_"),
        **evaluation_figures(evaluation),
        "time": {**shares, "other": 1 - sum(shares.get(name, 0.0) for name in ("collect", "estimate", "update"))},
        **health.summary,
        "exit": end,
        "version": __version__,
    }


def evaluation_figures(evaluation: Any) -> Summary:
    """Return the numbers of an `Evaluation`. Without an evaluation, the returns are `None`."""
    return {
        "eval_return_mean": evaluation.mean if evaluation else None,
        "eval_return_std": evaluation.std if evaluation else None,
        "eval_episodes": len(evaluation.returns) if evaluation else 0,
        "eval_episodes_cut": evaluation.num_cut if evaluation else 0,
        **(mean_infos("eval", evaluation.infos, "_") if evaluation else {}),
    }


def write_summary(summary: Summary, path: Path) -> None:
    """Write a summary as JSON; values that are not finite become null."""
    path.write_text(json.dumps(null_if_not_finite(summary), indent=2, allow_nan=False) + "\n")


def write_at_once(summary: Summary, run_dir: Path) -> None:
    """Write the summary of a process that ends at once, and print how to continue."""
    write_summary(summary, run_dir / "summary.json")
    write_or_skip(1, f"{how_to_continue(run_dir)}\n")


def how_to_continue(run_dir: Path) -> str:
    """Return the last line of a run that is not finished."""
    return f"to continue: torchppo resume {short_path(run_dir)}"


def read_summary(run_dir: Path) -> Summary:
    """Return the contents of `summary.json` in the directory of a run; empty if there is none."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def null_if_not_finite(value: Any) -> Any:
    """Replace floats that are not finite by `None`, including those in dictionaries and lists."""
    if isinstance(value, dict):
        return {key: null_if_not_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [null_if_not_finite(item) for item in value]
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
    mean, num_episodes = summary["train_return_mean"], min(summary["train_episodes"], 100)
    text = "no episode ended" if mean is None else f"{mean:.1f} (mean of the last {num_episodes} episodes)"
    table.add_row("training return", text)
    table.add_row(
        "evaluation return",
        "none"
        if summary["eval_return_mean"] is None
        else f"{summary['eval_return_mean']:.1f} +- {summary['eval_return_std'] or 0.0:.1f} "
        f"over {summary['eval_episodes']} episode{'s' if summary['eval_episodes'] > 1 else ''}"
        + (f", {summary['eval_episodes_cut']} cut" if summary["eval_episodes_cut"] else ""),
    )
    if summary["health"]:
        names = ", ".join(one["rule"] for one in summary["health"])
        table.add_row("health", names + ("; the policy has collapsed" if summary["collapsed"] else ""))
    add_infos(table, summary, "train_", "training ")
    add_infos(table, summary, "eval_", "evaluation ")
    Console().print(table)


def add_infos(table: Table, summary: Summary, prefix: str, label: str = "") -> None:
    """Add a row for every entry of `info` in a summary. Their keys begin with `prefix`."""
    for key in [key for key in summary if key.startswith(prefix) and key not in RETURN_KEYS]:
        table.add_row(label + key.removeprefix(prefix), f"{summary[key]:.4g}")


def shares_text(time: dict[str, float], *names: str) -> str:
    """Return the shares that exist, such as `collect 40%, update 50%`."""
    return ", ".join(f"{name} {time[name]:.0%}" for name in names if name in time)


def two_columns(title: str) -> Table:
    """Return an empty table of names and values."""
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def short_path(path: Path) -> Path:
    """Return a path relative to the working directory if it is inside of it."""
    folder = Path.cwd()
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def print_files(files: dict[str, Path]) -> None:
    """Print the paths of files, each in one line that can be copied."""
    console = Console(soft_wrap=True, highlight=False)
    for name, path in files.items():
        console.print(f"{name}: {short_path(path)}", markup=False)


def print_evaluation(report: Summary) -> None:
    """Print the result of `torchppo eval` as a table."""
    table = two_columns(report["env"])
    table.add_row("return", f"{report['eval_return_mean']:.1f} +- {report['eval_return_std']:.1f}")
    table.add_row("length", f"{report['eval_length_mean']:.1f}")
    cut = f", {report['eval_episodes_cut']} cut" if report["eval_episodes_cut"] else ""
    table.add_row("episodes", f"{report['eval_episodes']}{cut}")
    add_infos(table, report, "eval_")
    Console().print(table)
    print_files({name: Path(report[name]) for name in ("checkpoint", "video") if report[name]})


def read_curve(metrics: Path, key: str) -> tuple[list[float], list[float]]:
    """Return frames and values of a column of a metrics.csv, without empty cells."""
    with metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(key)]
    return [float(row["step"]) for row in rows], [float(row[key]) for row in rows]


def plot_learning_curve(metrics: Path, path: Path, title: str) -> None:
    """Plot the mean and standard deviation of the returns of training and evaluation over frames."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    frames, means = read_curve(metrics, "rollout/ep_rew_mean")
    _, deviations = read_curve(metrics, "rollout/ep_rew_std")
    bounds = [(mean - std, mean + std) for mean, std in zip(means, deviations, strict=False)]
    plot_mean(axes, frames, means, bounds, label="training (last 100 episodes)")
    frames, means = read_curve(metrics, "eval/mean_reward")
    _, deviations = read_curve(metrics, "eval/std_reward")
    if frames:
        deviations = deviations if len(deviations) == len(means) else [0.0] * len(means)
        axes.errorbar(frames, means, deviations, fmt="o", capsize=3, label="evaluation")
    if not axes.lines:
        title += ": no episode ended"
    finish_plot(axes, title, "return (mean and std)")
    figure.savefig(path, dpi=120)


def plot_mean(
    axes: Any, frames: list[float], means: list[float], bounds: list[tuple[float, float]], *, label: str
) -> None:
    """Plot a line with a shaded interval, in the style of all learning curves. Empty `bounds` omit the interval."""
    if not frames:
        return
    (line,) = axes.plot(frames, means, marker="o" if len(frames) == 1 else None, label=label)
    if bounds and len(bounds) == len(frames):
        axes.fill_between(frames, *zip(*bounds, strict=True), color=line.get_color(), alpha=0.2, linewidth=0)


def finish_plot(axes: Any, title: str, ylabel: str) -> None:
    """Set the title, axes and legend of a plot over frames. The legend is below the plot, so that it hides no data."""
    axes.set(xlabel="frames", ylabel=ylabel, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
