"""Measure the cost of guards and checkpoints: trainings on HalfCheetah-v5 x 8 with and without them.

    python benchmarks/reliability/overhead.py --rounds 5

The training without them does not check what environments return, has no watchdog and saves a checkpoint only at the
end. The other training saves every 20 seconds, three times as often as by default.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torchppo.benchmarks.throughput import machine  # type: ignore[import-not-found, unused-ignore]

WORDS = (
    *("train", "experiment=halfcheetah", "env.num_envs=8", "update.minibatch_size=2048", "total_frames=327680"),
    *("eval.episodes=0", "checkpoint.every_seconds=20", "trainer.accelerator=cpu", "compile=true"),
)


def remove_guards() -> None:
    """Replace the checks of steps and rollouts, the watchdog and the checkpoints by nothing."""
    from torchppo.envs.vector.serial import SerialVectorEnv
    from torchppo.pipelines import train
    from torchppo.pipelines.collectors import collector
    from torchppo.pipelines.saving.last_checkpoint import LastCheckpoint

    def send(self: Any, actions: Any, env_slice: slice = slice(None)) -> None:
        observations, rewards, all_terminated, all_truncated, raw_episode_rewards = self.arrays
        for index, action in zip(range(self.num_envs)[env_slice], actions, strict=True):
            observations[index], rewards[index], terminated, truncated, info = self.envs[index].step(action)
            all_terminated[index], all_truncated[index] = terminated, truncated
            if "raw_episode_reward" in info:
                raw_episode_rewards[index] = info["raw_episode_reward"]
            self.infos[index] = info

    SerialVectorEnv.send = send  # type: ignore[method-assign]
    LastCheckpoint.save_if_due = lambda *_: None  # type: ignore[method-assign]
    collector.require_finite = lambda data, **_: data  # type: ignore[attr-defined]
    train.Watchdog = lambda *_: nullcontext()  # type: ignore[attr-defined,assignment]


def run(kind: str) -> dict[str, float]:
    """Train in this process; return frames per second after the second rollout, and CPU seconds of the process."""
    from torchppo.pipelines.cli.main import main as torchppo

    if kind == "without":
        remove_guards()
    with tempfile.TemporaryDirectory() as folder:
        if code := torchppo([*WORDS, f"run_dir={folder}/run"]):
            raise SystemExit(code)
        with Path(folder, "run", "metrics.csv").open(newline="") as file:
            speeds = [float(row["time/fps"]) for row in csv.DictReader(file) if row["time/fps"]][2:]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {"fps": statistics.harmonic_mean(speeds), "cpu_seconds": usage.ru_utime + usage.ru_stime}


def measure(kind: str) -> dict[str, float]:
    """Return the results of `run` in a new process."""
    command = [sys.executable, __file__, "--run", kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    results: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(kind, results, flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("overhead.json"))
    parser.add_argument("--run", choices=("with", "without"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(args.run)))
        return
    ratios = []
    for index in range(args.rounds):
        kinds = ("with", "without") if index % 2 == 0 else ("without", "with")
        results = {kind: measure(kind) for kind in kinds}
        ratios.append({key: results["with"][key] / results["without"][key] for key in ("fps", "cpu_seconds")})
    report = {
        "date": str(datetime.date.today()),
        "machine": machine(),
        "with_against_without": {
            key: {"median": statistics.median(values), "rounds": [round(value, 4) for value in values]}
            for key in ("fps", "cpu_seconds")
            for values in [[ratio[key] for ratio in ratios]]
        },
    }
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
