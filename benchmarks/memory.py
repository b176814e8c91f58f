"""Compare policies with and without memory on tasks that need memory.

    python benchmarks/memory.py cartpole_positions --policies mlp lstm gru transformer --seeds 0 1 2
    python benchmarks/memory.py recall --policies mlp lstm transformer --seeds 0 1 2

Completed runs under runs/benchmarks/ are reused. Writes memory_<experiment>.csv (one line for each run) and
memory_<experiment>.png (learning curves) to the folder of this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from torchppo.benchmarks.learning import HERE, curve, run, write  # type: ignore[import-not-found, unused-ignore]

COLORS = dict(zip(("mlp", "lstm", "gru", "transformer", "transformer_xl"), [f"C{i}" for i in range(5)], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="preset of conf/experiment")
    parser.add_argument("--policies", nargs="+", default=["mlp", "lstm", "gru", "transformer"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    experiment = arguments.experiment
    folders = {policy: Path("runs") / "benchmarks" / f"{experiment}_{policy}" for policy in arguments.policies}
    rows: list[list[object]] = []
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for policy, folder in folders.items():
        for seed in arguments.seeds:
            result = run(experiment, seed, [f"policy={policy}", "eval.video=false"], folder)
            rows.append([policy, *result.values()])
            points = curve(experiment, seed, folder)
            frames, returns = [point[2] for point in points], [point[3] for point in points]
            axes.plot(frames, returns, color=COLORS[policy], label=policy if seed == arguments.seeds[0] else None)
            write(HERE / f"memory_{experiment}.csv", ["policy", *result], rows)
    axes.set(title=experiment, xlabel="frames", ylabel="training return")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(HERE / f"memory_{experiment}.png", dpi=100)


if __name__ == "__main__":
    main()
