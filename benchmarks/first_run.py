"""Measure the first run: `torchppo train experiment=cartpole` against Stable-Baselines3, and the time to start.

    pip install 'torchppo[bench]'
    python benchmarks/first_run.py --rounds 5

The script has the settings of the preset: at most 100,000 frames, and an evaluation of 20 deterministic episodes after
every 25,000 frames, which ends the training at a mean return of 500. The command also writes checkpoints, logs, a
learning curve and a video. The script saves its model. Both must reach a return of 475.

`start_up` is the time until the command prints the line of its first rollout, which includes one update. It is compared
with the time of `import torch, torchrl, lightning`.

Every measurement is a new process with one thread; a round makes each one once. `_cpu` is CPU time, including that of
child processes. Writes first_run.json, with the date, the machine and its load.
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
IMPORTS = [sys.executable, "-c", "import torch, torchrl, lightning; print('0 frames', flush=True)"]
SOLVED = 475.0
TIMES = {"wall": "", "cpu": "_cpu"}
"""Suffixes of the names of wall time and of CPU time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each measurement")
    parser.add_argument("--seed", type=int, default=0, help="seed of both trainings, which decides their length")
    parser.add_argument("--out", default="first_run.json", help="output file in the folder of this file")
    parser.add_argument("--sb3", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sb3:
        stable_baselines3(arguments.seed)
        return
    from torchppo.benchmarks.throughput import machine, spread  # type: ignore[import-not-found, unused-ignore]

    rows = [measure(arguments.seed) for _ in range(arguments.rounds)]
    report: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine(), "load": os.getloadavg()}
    report |= {"seed": arguments.seed, "frames": {name: rows[0][f"{name}_frames"] for name in ("torchppo", "sb3")}}
    for time_name, end in TIMES.items():
        report[time_name] = {
            "torchppo_to_sb3": spread([row["torchppo" + end] / row["sb3" + end] for row in rows]),
            "start_up_beyond_imports": spread([row["start_up" + end] - row["imports" + end] for row in rows]),
        } | {name: spread([row[name + end] for row in rows]) for name in ("torchppo", "sb3", "start_up", "imports")}
    (HERE / arguments.out).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def measure(seed: int) -> dict[str, float]:
    """Run each process once; return the seconds of each and the frames of the trainings."""
    results: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torchppo", "train", "experiment=cartpole", f"seed={seed}"]
        script = [sys.executable, str(HERE / "first_run.py"), "--sb3", f"--seed={seed}"]
        _, results["torchppo"], results["torchppo_cpu"] = run([*command, "run_dir=run"], folder)
        line, results["sb3"], results["sb3_cpu"] = run(script, folder)
        _, results["start_up"], results["start_up_cpu"] = run([*command, "run_dir=other"], folder, r"[\d,/]+ frames")
        _, results["imports"], results["imports_cpu"] = run(IMPORTS, folder, r"[\d,/]+ frames")
        ours, theirs = json.loads(Path(folder, "run", "summary.json").read_text()), json.loads(line)
    results |= {"torchppo_frames": ours["frames"], "sb3_frames": theirs["frames"]}
    if min(ours["eval_return_mean"], theirs["eval_return_mean"]) < SOLVED:
        raise SystemExit(f"CartPole-v1 is not solved with seed {seed}: {results}")
    print({name: round(value, 2) for name, value in results.items()}, flush=True)
    return results


def run(command: list[str], folder: str, last: str | None = None) -> tuple[str, float, float]:
    """Run a process to its end, or to the first line that matches `last`.

    Returns:
        The last line, and the seconds of wall time and of CPU time.

    """
    before, start, line = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if last is not None and re.match(last, line):
                process.kill()
                break
    seconds = time.perf_counter() - start
    if process.returncode and last is None:
        raise SystemExit(f"{' '.join(command)} failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return line, seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def stable_baselines3(seed: int) -> None:
    """Train and evaluate CartPole-v1 with Stable-Baselines3, save the model, and print frames and return as JSON."""
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
    print(json.dumps({"frames": model.num_timesteps, "eval_return_mean": evaluation.last_mean_reward}))


if __name__ == "__main__":
    main()
