"""Measure the first run: `torchppo train experiment=cartpole` against a script of Stable-Baselines3, and the start-up.

    pip install 'torchppo[bench]'
    python benchmarks/first_run.py --rounds 3

The script has the settings of the preset: at most 100,000 frames, and after every 25,000 frames an evaluation of 20
deterministic episodes, which ends the training at a mean return of 500. The command also writes checkpoints, logs, a
learning curve and a video; the script saves its model. The start-up is the time from the command to the line of its
first rollout, after which the policy has learned once, minus that of `import torch, torchrl, lightning`. Every
measurement is a separate process with one thread; a round runs each one once. Writes first_run.json, with the date, the
machine and its load.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
IMPORTS = "import torch, torchrl, lightning; print('0 frames', flush=True)"
SOLVED = 475.0
"""Smallest mean evaluation return of both trainings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of each measurement; a round is also a seed")
    parser.add_argument("--out", default="first_run.json", help="output file in the folder of this file")
    parser.add_argument("--sb3", type=int, metavar="SEED", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sb3 is not None:
        stable_baselines3(arguments.sb3)
        return
    from torchppo.benchmarks.throughput import machine, spread  # type: ignore[import-not-found, unused-ignore]

    report: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine(), "load": os.getloadavg()}
    rows = [measure(seed) for seed in range(arguments.rounds)]
    ratios = {"torchppo / sb3": ("torchppo", "sb3"), "cpu of torchppo / sb3": ("torchppo_cpu", "sb3_cpu")}
    report["ratio"] = {name: spread([row[one] / row[two] for row in rows]) for name, (one, two) in ratios.items()}
    report["seconds"] = {name: spread([row[name] for row in rows]) for name in rows[0]}
    (HERE / arguments.out).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def measure(seed: int) -> dict[str, float]:
    """Run each process once; return seconds of wall time, and with `_cpu` of the processor, also of children."""
    results = {}
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torchppo", "train", "experiment=cartpole", f"seed={seed}"]
        for name, words in {
            "torchppo": [*command, f"run_dir={folder}/run"],
            "sb3": [sys.executable, str(HERE / "first_run.py"), "--sb3", str(seed)],
        }.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            start = time.perf_counter()
            out = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, cwd=folder).stdout
            results[name] = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            results[f"{name}_cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            summary = json.loads(Path(folder, "run", "summary.json").read_text()) if name == "torchppo" else {}
            if summary.get("eval_return_mean", out) is None or float(summary.get("eval_return_mean", out)) < SOLVED:
                raise SystemExit(f"{name} has not solved CartPole-v1 with seed {seed}")
        results["first_rollout"] = until_frames([*command, f"run_dir={folder}/first"], folder)
        results["imports"] = until_frames([sys.executable, "-c", IMPORTS], folder)
    results["beyond_imports"] = results["first_rollout"] - results["imports"]
    print(seed, {name: round(value, 2) for name, value in results.items()}, flush=True)
    return results


def until_frames(command: list[str], folder: str) -> float:
    """Return the seconds until a process prints a number of frames, and end it."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if re.match(r"[\d,/]+ frames", line))
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def stable_baselines3(seed: int) -> None:
    """Train and evaluate CartPole-v1 with Stable-Baselines3, save the model, and print the mean return."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(1)
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", 8, seed=seed),
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=lambda remaining: 1e-3 * remaining,
        clip_range=lambda remaining: 0.2 * remaining,
        device="cpu",
        seed=seed,
    )
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1, seed=1000 + seed),
        callback_on_new_best=StopTrainingOnRewardThreshold(500.0, verbose=0),
        n_eval_episodes=20,
        eval_freq=25_000 // 8,
        verbose=0,
    )
    model.learn(100_000, callback=evaluation)
    model.save("model")
    print(evaluation.last_mean_reward)


if __name__ == "__main__":
    main()
