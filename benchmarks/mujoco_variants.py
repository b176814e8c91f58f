"""Train the MuJoCo experiments with variants of PPO, and record the results of the final policies.

    python benchmarks/mujoco_variants.py
    python benchmarks/mujoco_variants.py clip spo --tasks hopper --seeds 0 1

Every run has 1,000,000 frames and ends with an evaluation of 20 episodes with deterministic actions. Completed runs
under runs/benchmarks/mujoco_variants/ are reused. The script writes mujoco_variants.csv (one line for each run),
mujoco_variants_curves.csv and mujoco_variants.png to its folder, and keeps the lines of other runs. It prints the mean
over the seeds with a 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from torchppo.benchmarks.learning import merge_rows, plot_variants, thinned_curve, train_once
from torchppo.pipelines.run_files.summary import finish_plot

HERE = Path(__file__).parent
RUNS = Path("runs") / "benchmarks" / "mujoco_variants"
TASKS = ("halfcheetah", "hopper", "walker2d")
COMMON = ("eval.video=false", "logger=csv", "trainer.accelerator=cpu")
VARIANTS = {
    "clip": "",
    "kl_penalty": "objective=kl_penalty",
    "spo": "objective=spo",
    "wasserstein": "objective=unclipped trust_region=wasserstein",
    "natural_gradient": "update=natural_gradient update.target_kl=0.04 update.cg_steps=25 optimizer.lr=1e-3 "
    "critic.epochs=20",
    "simba": "policy=simba",
    "categorical": "head=categorical",
    "kl_adaptive": "controller@controller.lr=kl_adaptive",
    "recomputed": "update.recompute_advantage=true",
}
"""Overrides of `torchppo train experiment=<task>` for each variant."""
COLUMNS = (
    *("date", "task", "variant", "seed"),
    *("frames", "eval_return_mean", "eval_return_std", "train_return_mean", "wall_seconds"),
)
CURVE_COLUMNS = ("task", "variant", "seed", "frames", "return")
CURVE_POINTS = 25


def key(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the sort key of a run."""
    return TASKS.index(row["task"]), list(VARIANTS).index(row["variant"]), int(row["seed"])


def run(task: str, variant: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the result and the learning curve of a run."""
    words = [f"experiment={task}", *VARIANTS[variant].split(), *COMMON, f"seed={seed}"]
    folder = RUNS / f"{task}-{variant}-s{seed}"
    summary = train_once(words, folder, subprocess.DEVNULL)
    name = {"task": task, "variant": variant, "seed": seed}
    curve = thinned_curve(folder, CURVE_POINTS, name)
    return {"date": date.today().isoformat()} | name | {key: summary[key] for key in COLUMNS[4:]}, curve


def plot(curves: list[dict[str, Any]], path: Path) -> None:
    """Plot the mean training return of each variant."""
    figure = Figure(figsize=(5 * len(TASKS), 5.5), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        plot_variants(axes, [row for row in curves if row["task"] == task], VARIANTS)
        finish_plot(axes, f"experiment={task}", "training return")
    figure.savefig(path, dpi=100)


def print_means(rows: list[dict[str, Any]]) -> None:
    """Print the mean of the final evaluations of each variant, and the interval of 95 % of the resampled means."""
    for task, variant in product(TASKS, VARIANTS):
        found = [row for row in rows if (row["task"], row["variant"]) == (task, variant)]
        returns = [float(row["eval_return_mean"]) for row in found]
        if len(returns) > 1:
            resampled = np.random.default_rng(0).choice(returns, (10_000, len(returns))).mean(axis=1)
            low, high = np.quantile(resampled, [0.025, 0.975])
            print(f"{task:12} {variant:18} {np.mean(returns):6.0f} [{low:.0f}, {high:.0f}] ({len(returns)} seeds)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=f"from {', '.join(VARIANTS)}")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    arguments = parser.parse_args()
    for seed, task, variant in product(arguments.seeds, arguments.tasks, arguments.variants):
        row, curve = run(task, variant, seed)
        rows = merge_rows(HERE / "mujoco_variants.csv", COLUMNS, [row], key)
        curves = merge_rows(HERE / "mujoco_variants_curves.csv", CURVE_COLUMNS, curve, key)
    plot(curves, HERE / "mujoco_variants.png")
    print_means(rows)


if __name__ == "__main__":
    main()
