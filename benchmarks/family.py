"""Train CartPole-v1 with every objective, update, estimator and controller, and record when it is solved.

    python benchmarks/family.py
    python benchmarks/family.py spo espo --seeds 0 1

A run ends at the first evaluation (20 episodes, deterministic actions, every 10,000 frames) with a mean return of at
least 475, or after 200,000 frames. Completed runs under runs/benchmarks/family/ are reused. Writes family.csv, one line
for each run, to the folder of this file. Lines of other variants and seeds are kept. Exits with 1 if a run fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from torchppo.benchmarks.learning import merge_rows, train_once

HERE = Path(__file__).parent
RUNS = Path("runs") / "benchmarks" / "family"
SOLVED = 475.0
COMMON = (
    *("total_frames=200_000", "eval.every_frames=10_000", f"eval.stop_at={SOLVED}", "eval.video=false", "logger=csv"),
    *("checkpoint.every_seconds=null", "trainer.accelerator=cpu"),
)
VARIANTS = {
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
    "vtrace": "experiment=cartpole estimator=vtrace update.recompute_advantage=true",
    "kl_adaptive": "experiment=cartpole controller@controller.lr=kl_adaptive",
    "natural_gradient": "experiment=cartpole update=natural_gradient collector.frames_per_env=128",
    "frobenius": "experiment=cartpole objective=unclipped trust_region=frobenius",
    "kl_trust_region": "experiment=cartpole objective=unclipped trust_region=kl",
}
"""Overrides of `torchppo train` for each variant. A new component needs a line here."""
COLUMNS = ("variant", "seed", "solved", "frames", "eval_return_mean", "eval_return_std", "wall_seconds", "date")


def run(variant: str, seed: int) -> dict[str, object]:
    words = [*VARIANTS[variant].split(), *COMMON, f"seed={seed}"]
    summary = train_once(words, RUNS / f"{variant}-s{seed}", subprocess.DEVNULL)
    row: dict[str, object] = {"variant": variant, "seed": seed, "solved": summary["eval_return_mean"] >= SOLVED}
    row |= {key: summary[key] for key in COLUMNS[3:-1]}
    row["date"] = date.today().isoformat()
    print(row, flush=True)
    return row


def key(row: Mapping[str, object]) -> tuple[int, int]:
    """Return the sort key of a run."""
    return list(VARIANTS).index(str(row["variant"])), int(str(row["seed"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", default=list(VARIANTS), help=f"from {', '.join(VARIANTS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    rows = [run(variant, seed) for variant in arguments.variants for seed in arguments.seeds]
    merge_rows(HERE / "family.csv", COLUMNS, rows, key)
    return int(not all(row["solved"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
