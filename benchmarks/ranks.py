"""Measure the frames per second of a training with two ranks against two independent trainings at the same time.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --rounds 7 --out ranks.json

Every process uses one thread, HalfCheetah-v5 with 8 environments, rollouts of 8 x 512 frames, minibatches of 512 and
10 epochs. The first rollout, which compiles, is excluded. Independent trainings are measured only while both run. A
round measures every way once. Writes ranks.json, with the date and the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("two_processes", "two_ranks", "two_ranks_gloo", "one_process")
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each measurement")
    parser.add_argument("--rollouts", type=int, default=16, help="measured rollouts of each process")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="what to measure")
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, such as compile=false")
    parser.add_argument("--out", default="ranks.json", help="output file in the folder of this file")
    parser.add_argument("--run", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, arguments.rollouts, arguments.set)
        return
    from torchppo.benchmarks.throughput import machine, spread  # type: ignore[import-not-found, unused-ignore]

    rows = [{way: measure(way, arguments) for way in arguments.ways} for _ in range(arguments.rounds)]
    report = {"date": date.today().isoformat(), "machine": machine(), "overrides": arguments.set}
    report["frames_per_second"] = {way: spread([row[way] for row in rows]) for way in arguments.ways}
    if "two_processes" in arguments.ways:
        report["ratio_to_two_processes"] = {
            way: spread([row[way] / row["two_processes"] for row in rows]) for way in arguments.ways
        }
    (HERE / arguments.out).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def run(way: str, rollouts: int, overrides: list[str]) -> None:
    """Train in this process, and print the end of every rollout in seconds and its frames as JSON."""
    import warnings

    import torch
    from lightning import Callback

    from torchppo.benchmarks.workloads import WORKLOADS, configuration  # type: ignore[import-not-found, unused-ignore]
    from torchppo.pipelines.build import build_trainer, build_training
    from torchppo.pipelines.distributed import num_ranks, shared_memory
    from torchppo.pipelines.run_files.progress import silence_lightning

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    silence_lightning()
    work = dataclasses.replace(WORKLOADS["halfcheetah_8"], frames_per_env=512, minibatch_size=512, rollouts=rollouts)
    extra = [*overrides]
    if way.startswith("two_ranks"):
        frames = 2 * (rollouts + 1) * work.frames
        extra += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", f"total_frames={frames}"]
    if way == "two_ranks_gloo":
        shared_memory.connect = lambda *_: None
    ends: list[float] = []

    class Timer(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            import time

            ends.append(time.monotonic())

    cfg = configuration(work, tuple(extra))
    trainer = build_trainer(cfg, [Timer()])
    training = build_training(cfg, trainer.global_rank, num_ranks=trainer.world_size)
    trainer.fit(training.ppo, train_dataloaders=training.collector)
    if trainer.is_global_zero:
        print(json.dumps({"frames": work.frames * num_ranks(), "ends": ends}))


def measure(way: str, arguments: argparse.Namespace) -> float:
    """Return the frames per second of all processes together, while all of them train."""
    command = [sys.executable, __file__, "--run", way, "--rollouts", str(arguments.rollouts), "--set", *arguments.set]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        for _ in range(2 if way == "two_processes" else 1)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"{way} failed")
    results = [json.loads(output.strip().splitlines()[-1]) for output in outputs]
    start, end = max(one["ends"][0] for one in results), min(one["ends"][-1] for one in results)
    rollouts = [np.diff(np.interp([start, end], one["ends"], range(len(one["ends"]))))[0] for one in results]
    fps = sum(one["frames"] * count for one, count in zip(results, rollouts, strict=True)) / (end - start)
    print(way, round(float(fps)), flush=True)
    return float(fps)


if __name__ == "__main__":
    main()
