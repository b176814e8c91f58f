"""Compare policies with and without memory on tasks that need memory.

    python benchmarks/memory.py cartpole_positions --policies mlp lstm gru transformer --seeds 0 1 2
    python benchmarks/memory.py recall --policies mlp lstm transformer --seeds 0 1 2

Completed runs under runs/benchmarks/ are reused. Writes memory_<experiment>.csv (one line for each run) and
memory_<experiment>.png (learning curves) to the folder of this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from torchppo.benchmarks.learning import HERE, curve, plot_seeds, run, write  # type: ignore[import-not-found, unused-ignore]
from torchppo.pipelines.run_files.summary import finish_plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="preset of conf/experiment")
    parser.add_argument("--policies", nargs="+", default=["mlp", "lstm", "gru", "transformer"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    experiment = arguments.experiment
    folders = {policy: Path("runs") / "benchmarks" / f"{experiment}_{policy}" for policy in arguments.policies}
    rows: list[list[object]] = []
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for policy, folder in folders.items():
        points = []
        for seed in arguments.seeds:
            result = run(experiment, seed, [f"policy={policy}", "eval.video=false"], folder)
            rows.append([policy, *result.values()])
            points += [point[1:] for point in curve(experiment, seed, folder)]
            write(HERE / f"memory_{experiment}.csv", ["policy", *result], rows)
        plot_seeds(axes, points, policy)
    finish_plot(axes, experiment, "training return")
    figure.savefig(HERE / f"memory_{experiment}.png", dpi=100)


if __name__ == "__main__":
    main()
