"""Train CartPole-v1 with components of the PPO family, and record when it is solved.

    python benchmarks/family.py
    python benchmarks/family.py spo espo --seeds 0 1

A run ends at the first evaluation (20 episodes, deterministic actions, every 10,000 frames) with a mean return of at
least 475, or after 200,000 frames. Completed runs under runs/benchmarks/family/ are reused. Writes family.csv (one line
for each run), family_curves.csv and one figure for each group to the folder of this file. Lines of other variants and
seeds are kept. Exits with 1 if a run does not solve the task.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from torchppo.benchmarks.learning import merge_rows, plot_variants, thinned_curve, train_once
from torchppo.pipelines.run_files.summary import finish_plot

HERE = Path(__file__).parent
RUNS = Path("runs") / "benchmarks" / "family"
SOLVED = 475.0
COMMON = (
    *("total_frames=200_000", "eval.every_frames=10_000", f"eval.stop_at={SOLVED}", "eval.video=false", "logger=csv"),
    *("checkpoint.every_seconds=null", "trainer.accelerator=cpu"),
)
GROUPS = {
    "objectives": {
        "clip": "experiment=cartpole",
        "asymmetric_clip": "experiment=cartpole objective.clip_epsilon=[0.2,0.28] "
        "controller@controller.clip_epsilon=constant",
        "dual_clip": "experiment=cartpole objective.dual_clip=3",
        "truncated": "experiment=cartpole objective=unclipped objective.importance_quantile=0.9 update.target_kl=0.02",
        "kl_penalty": "experiment=cartpole_kl",
        "kl_penalty_fixed": "experiment=cartpole_kl objective=kl_penalty_fixed",
        "spo": "experiment=cartpole objective=spo",
        "espo": "experiment=cartpole objective=espo",
        "rollback": "experiment=cartpole objective=rollback",
        "truly": "experiment=cartpole objective=rollback objective.max_kl=0.03 objective.alpha=5",
        "ppo_ewma": "experiment=cartpole objective=ppo_ewma",
        "a2c": "experiment=cartpole_a2c",
        "reinforce": "experiment=cartpole_a2c objective=reinforce estimator=monte_carlo",
    },
    "updates": {
        "natural_gradient": "experiment=cartpole update=natural_gradient collector.frames_per_env=128",
        "ppg": "experiment=cartpole update=ppg",
        "frobenius": "experiment=cartpole objective=unclipped trust_region=frobenius",
        "kl_trust_region": "experiment=cartpole objective=unclipped trust_region=kl",
    },
    "estimators": {
        "td_lambda": "experiment=cartpole estimator=td_lambda",
        "vtrace": "experiment=cartpole estimator=vtrace update.recompute_advantage=true",
        "kl_adaptive": "experiment=cartpole controller@controller.lr=kl_adaptive",
        "target_entropy": "experiment=cartpole controller@controller.entropy_coeff=target_entropy "
        "controller.entropy_coeff.target_entropy=0.4 objective.entropy_coeff=0.01",
    },
    "networks": {
        "simba": "experiment=cartpole policy=simba",
        "layer_norm": "experiment=cartpole policy.body.layer_norm=true",
        "huber": "experiment=cartpole critic=huber",
        "hl_gauss_adaptive": "experiment=cartpole critic=hl_gauss_adaptive",
        "two_hot": "experiment=cartpole critic=two_hot",
        "popart": "experiment=cartpole critic=popart",
    },
}
"""Overrides of `torchppo train` for each variant of each group. A new component needs a line here."""
VARIANTS = {name: words for group in GROUPS.values() for name, words in group.items()}
COLUMNS = ("variant", "seed", "solved", "frames", "eval_return_mean", "eval_return_std", "wall_seconds", "date")
CURVE_COLUMNS = ("variant", "seed", "frames", "return")
CURVE_POINTS = 25


def run(variant: str, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the result and the learning curve of a run."""
    words = [*VARIANTS[variant].split(), *COMMON, f"seed={seed}"]
    folder, name = RUNS / f"{variant}-s{seed}", {"variant": variant, "seed": seed}
    summary = train_once(words, folder, subprocess.DEVNULL)
    row = name | {"solved": summary["eval_return_mean"] >= SOLVED} | {key: summary[key] for key in COLUMNS[3:-1]}
    row["date"] = date.today().isoformat()
    print(row, flush=True)
    return row, thinned_curve(folder, CURVE_POINTS, name)


def plot(curves: list[dict[str, Any]]) -> None:
    """Plot the mean training return of each variant, with one figure for each group."""
    for group, variants in GROUPS.items():
        figure = Figure(figsize=(7, 5.5), layout="constrained")
        plot_variants(axes := figure.subplots(), curves, variants)
        finish_plot(axes, "CartPole-v1", "training return")
        figure.savefig(HERE / f"family_{group}.png", dpi=100)


def key(row: Mapping[str, object]) -> tuple[int, int]:
    """Return the sort key of a run."""
    return list(VARIANTS).index(str(row["variant"])), int(str(row["seed"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=f"from {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    rows = []
    for seed, variant in product(arguments.seeds, arguments.variants):
        row, curve = run(variant, seed)
        rows.append(row)
        merge_rows(HERE / "family.csv", COLUMNS, [row], key)
        curves = merge_rows(HERE / "family_curves.csv", CURVE_COLUMNS, curve, key)
    plot(curves)
    return int(not all(row["solved"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
