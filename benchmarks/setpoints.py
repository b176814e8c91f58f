"""Train the default policy on set points in action boxes far from [-1, 1].

    python benchmarks/setpoints.py --seeds 0 1 2
    python benchmarks/setpoints.py --targets 0.2 -- optimizer.lr=3e-4 update.epochs=10

The observation is constant, an episode has 20 steps, and the reward is -|action - target| / (range / 2). A uniformly
random policy has a return of about -14 with the default targets. Words after `--` are overrides of every run. The
results are written to setpoints.csv in the folder of this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

HERE = Path(__file__).parent
BOXES = ((100.0, 200.0), (0.0, 1000.0), (-1.0, 5.0), (-0.01, 0.01), (0.0, 1.0))
SETTINGS = (
    "env.num_envs=8",
    "collector.frames_per_env=64",
    "update.minibatch_size=64",
    "update.epochs=4",
    "optimizer.lr=1e-3",
    "estimator.gamma=0.5",
    "total_frames=20000",
    "eval.every_frames=null",
    "eval.video=false",
    "logger=csv",
)


class SetPoint(gymnasium.Env[Any, Any]):
    """Rewards the action `low + target * (high - low)` at every step."""

    def __init__(self, low: float, high: float, target: float) -> None:
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Box(low, high, (1,), np.float32)
        self._target, self._half_range = low + target * (high - low), (high - low) / 2

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        reward = -abs(float(action[0]) - self._target) / self._half_range
        return np.zeros(1, np.float32), reward, self._steps >= 20, False, {}


gymnasium.register("SetPoint-v0", entry_point="setpoints:SetPoint")


def run(low: float, high: float, target: float, seed: int, settings: list[str]) -> dict[str, float | str]:
    """Train once and return the results."""
    with tempfile.TemporaryDirectory() as folder:
        env = ["env.id=setpoints:SetPoint-v0", f"+env.low={low}", f"+env.high={high}", f"+env.target={target}"]
        command = ["train", *env, *settings, f"seed={seed}", f"run_dir={folder}/run"]
        subprocess.run([sys.executable, "-m", "torchppo", *command], check=True, cwd=HERE, stdout=subprocess.DEVNULL)
        summary = json.loads(Path(f"{folder}/run/summary.json").read_text())
    results = {key: summary[key] for key in ("frames", "train_return_mean", "eval_return_mean")}
    return {"date": date.today().isoformat(), "low": low, "high": high, "target": target, "seed": seed, **results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", type=float, nargs="+", default=[0.2, 0.8])
    parser.add_argument("--output", type=Path, default=HERE / "setpoints.csv")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    rows = []
    for (low, high), target, seed in product(BOXES, options.targets, options.seeds):
        rows.append(run(low, high, target, seed, [*SETTINGS, *options.overrides]))
        print(rows[-1], flush=True)
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
