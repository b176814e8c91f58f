"""Compare intrinsic rewards on a task with rare rewards.

    python benchmarks/intrinsic.py --settings none rnd --seeds 0 1 2

Completed runs under runs/benchmarks/ are reused. Writes intrinsic.csv (one line for each run), intrinsic_curves.csv and
intrinsic.png (training returns) to the folder of this file. Needs torchppo[minigrid].
"""

from __future__ import annotations

import argparse
import platform
from contextlib import closing
from pathlib import Path

import torch
from matplotlib.figure import Figure

from torchppo.benchmarks.learning import HERE, curve, plot_seeds, run, write  # type: ignore[import-not-found, unused-ignore]
from torchppo.pipelines.checkpoint import restore
from torchppo.pipelines.episodes import evaluate
from torchppo.pipelines.run_files.summary import finish_plot

EXPERIMENT = "minigrid_multiroom"
EPISODES = 100


def share_solved(checkpoint: Path, *, deterministic: bool) -> float:
    """Return the share of episodes whose return is positive: the goal was reached within the time limit."""
    ppo, _, env = restore(checkpoint, seed=1, episodes=EPISODES, overrides=(), trust=["minigrid"])
    with closing(env):
        torch.manual_seed(1)
        result = evaluate(ppo.actor, env, EPISODES, deterministic=deterministic)
    return sum(value > 0 for value in result.returns) / EPISODES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["none", "rnd"], help="choices of conf/intrinsic")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--machine", default=platform.processor() or platform.machine())
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    points: list[list[object]] = []
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for setting in arguments.settings:
        folder = Path("runs") / "benchmarks" / f"{EXPERIMENT}_{setting}"
        for seed in arguments.seeds:
            result = run(EXPERIMENT, seed, [f"intrinsic={setting}", "eval.video=false"], folder)
            last = folder / f"{EXPERIMENT}-s{seed}" / "checkpoints" / "last.ckpt"
            solved = {"solved_sampled": share_solved(last, deterministic=False)}
            solved |= {"solved_deterministic": share_solved(last, deterministic=True)}
            rows.append([setting, arguments.machine, *result.values(), *solved.values()])
            points += [[setting, *point[1:]] for point in curve(EXPERIMENT, seed, folder)]
            write(HERE / "intrinsic.csv", ["intrinsic", "machine", *result, *solved], rows)
            write(HERE / "intrinsic_curves.csv", ["intrinsic", "seed", "frames", "return"], points)
        curves = [point[1:] for seed in arguments.seeds for point in curve(EXPERIMENT, seed, folder)]
        plot_seeds(axes, curves, f"intrinsic={setting}")
    finish_plot(axes, EXPERIMENT, "training return")
    figure.savefig(HERE / "intrinsic.png", dpi=100)


if __name__ == "__main__":
    main()
