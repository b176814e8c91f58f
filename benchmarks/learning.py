"""Train experiments with several seeds and record the results of the final policies and the learning curves.

    python benchmarks/learning.py cartpole --seeds 0 1 2 3 4
    python benchmarks/learning.py minigrid_memory --seeds 0 -- total_frames=400000
    python benchmarks/learning.py halfcheetah hopper walker2d --seeds 0 1 2 --name mujoco

Words after `--` are overrides of every run. Completed runs under runs/benchmarks/ are reused. Writes <name>.csv (one
line for each run), <name>_curves.csv and <name>.png to the folder of this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from torchppo.pipelines.run_files.summary import finish_plot, plot_mean, read_curve

HERE = Path(__file__).parent
COLUMNS = (
    "env",
    "seed",
    "frames",
    "eval_return_mean",
    "eval_return_std",
    "train_return_mean",
    "frames_per_second",
)
CURVE_POINTS = 100


def train_once(overrides: Sequence[str], run_dir: Path, stdout: int | None = None) -> dict[str, Any]:
    """Train, unless the run is complete, and return its summary."""
    if not (run_dir / "summary.json").exists():
        command = ["train", *overrides, f"run_dir={run_dir}"]
        print("torchppo", *command, flush=True)
        subprocess.run([sys.executable, "-m", "torchppo", *command], check=True, stdout=stdout)
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    if summary["exit"] not in ("completed", "stopped"):
        raise SystemExit(f"{run_dir} was interrupted; remove it to train it again")
    return summary


def run(experiment: str, seed: int, overrides: list[str], folder: Path) -> dict[str, float | str]:
    summary = train_once([f"experiment={experiment}", f"seed={seed}", *overrides], folder / f"{experiment}-s{seed}")
    return {"date": date.today().isoformat(), "experiment": experiment} | {key: summary[key] for key in COLUMNS}


def curve(experiment: str, seed: int, folder: Path) -> list[tuple[str, int, float, float]]:
    frames, returns = read_curve(folder / f"{experiment}-s{seed}" / "metrics.csv", "rollout/ep_rew_mean")
    stride = max(1, len(frames) // CURVE_POINTS)
    points = list(zip(frames, returns, strict=True))
    return [(experiment, seed, frame, value) for frame, value in (*points[::stride], points[-1])]


def plot(curves: list[tuple[str, int, float, float]], experiments: list[str], path: Path) -> None:
    figure = Figure(figsize=(5 * len(experiments), 4), layout="constrained")
    for axes, experiment in zip(figure.subplots(1, len(experiments), squeeze=False)[0], experiments, strict=True):
        plot_seeds(axes, [row[1:] for row in curves if row[0] == experiment])
        finish_plot(axes, experiment, "training return")
    figure.savefig(path, dpi=100)


def plot_seeds(axes: Any, rows: list[tuple[int, float, float]], name: str = "") -> None:
    """Plot the mean return of rows `(seed, frames, return)` over seeds, and the range from lowest to highest."""
    seeds = sorted({seed for seed, _, _ in rows})
    series = [np.array([row[1:] for row in rows if row[0] == seed]) for seed in seeds]
    # Start at the first frame that all seeds have. End at the last frame of any seed: some seeds stop early.
    frames = np.linspace(max(one[0, 0] for one in series), max(one[-1, 0] for one in series), CURVE_POINTS)
    returns = np.stack([np.interp(frames, one[:, 0], one[:, 1]) for one in series])
    bounds = list(zip(returns.min(0).tolist(), returns.max(0).tolist(), strict=True)) if len(seeds) > 1 else []
    label = f"{name}, mean and range of {len(seeds)} seeds".removeprefix(", ")
    plot_mean(axes, frames.tolist(), returns.mean(0).tolist(), bounds, label=label)


def thinned_curve(run_dir: Path, num_points: int, name: dict[str, Any]) -> list[dict[str, Any]]:
    """Return about `num_points` points of a run's training return, as rows with `name`, `frames` and `return`."""
    points = [*zip(*read_curve(run_dir / "metrics.csv", "rollout/ep_rew_mean"), strict=True)]
    chosen = [*points[: -1 : max(1, len(points) // num_points)], points[-1]]
    return [name | {"frames": int(frame), "return": round(value, 1)} for frame, value in chosen]


def plot_variants(axes: Any, rows: list[dict[str, Any]], variants: Collection[str]) -> None:
    """Plot the mean training return of each variant. The legend lists the number of seeds.

    A run that ends before the others keeps its last return.

    Args:
        axes: axes of a figure.
        rows: points with `variant`, `seed`, `frames` and `return`.
        variants: the variants in the order of their colors, which do not depend on `rows`.

    """
    colors: Any = colormaps["tab10" if len(variants) <= 10 else "tab20"]
    for color, variant in zip(colors.colors, variants, strict=False):
        series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in rows:
            if row["variant"] == variant:
                series[str(row["seed"])].append((float(row["frames"]), float(row["return"])))
        if series:
            arrays = [np.array(one) for one in series.values()]
            frames = max(arrays, key=lambda one: float(one[-1, 0]))[:, 0]
            means = np.mean([np.interp(frames, one[:, 0], one[:, 1]) for one in arrays], axis=0)
            axes.set_prop_cycle(color=[color])
            plot_mean(axes, frames.tolist(), means.tolist(), [], label=f"{variant} ({len(series)})")


def write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def merge_rows(
    path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], Any]
) -> list[dict[str, Any]]:
    """Replace the lines of a CSV file that have the keys of `rows`, keep the others, and return all lines, sorted."""
    old = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    new = {key(row) for row in rows}
    table = sorted([*(row for row in old if key(row) not in new), *rows], key=key)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", help="presets of conf/experiment")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--name", help="name of the output files; default: the first experiment")
    separator = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = parser.parse_args(sys.argv[1:separator])
    overrides = sys.argv[separator + 1 :]
    name = arguments.name or arguments.experiments[0]
    folder = Path("runs") / "benchmarks" / name
    pairs = [(experiment, seed) for seed, experiment in product(arguments.seeds, arguments.experiments)]
    results = [run(experiment, seed, overrides, folder) for experiment, seed in pairs]
    curves = [point for experiment, seed in pairs for point in curve(experiment, seed, folder)]
    write(HERE / f"{name}.csv", list(results[0]), [list(result.values()) for result in results])
    write(HERE / f"{name}_curves.csv", ["experiment", "seed", "frames", "return"], [list(point) for point in curves])
    plot(curves, arguments.experiments, HERE / f"{name}.png")


if __name__ == "__main__":
    main()
