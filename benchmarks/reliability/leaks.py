"""Opens and closes environments, collects rollouts and kills workers; prints what stays open afterwards.

python benchmarks/reliability/leaks.py --cycles 200 --rollouts 300 --out benchmarks/reliability/leaks.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchppo import Collector, make_actor_critic, make_env, mlp


def resources() -> dict[str, int]:
    """Return file descriptors, children and mappings of this process, and its memory in kilobytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return {
        "descriptors": len([*Path("/proc/self/fd").iterdir()]),
        "children": len(multiprocessing.active_children()),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "shared_kb": next(int(line.split()[1]) for line in status if line.startswith("RssShmem")),
        "memory_kb": next(int(line.split()[1]) for line in status if line.startswith("VmRSS")),
    }


def growth(before: dict[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in resources().items()}


def cycle(num_workers: int) -> None:
    env = make_env("CartPole-v1", 4, num_workers=num_workers)
    env.reset_arrays()
    env.send(np.zeros(4, np.int64))
    env.receive()
    env.close()


def collect(num_rollouts: int, num_workers: int) -> dict[str, float]:
    """Return what grows from the 20th rollout to the last."""
    env = make_env("CartPole-v1", 4, num_workers=num_workers)
    actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=partial(mlp))
    collector = Collector(env, actor, frames_per_env=64, total_frames=4 * 64 * num_rollouts)
    before: dict[str, int] = {}
    for index, _ in enumerate(collector):
        before = before or (resources() if index == 20 else {})
    grown: dict[str, float] = dict(growth(before))
    env.close()
    return grown | {"memory_kb_per_rollout": grown["memory_kb"] / (num_rollouts - 21)}


def kill_workers(kills: int) -> dict[str, Any]:
    """Kill a random worker every ten steps; return how many steps were taken and discarded."""
    env = make_env("CartPole-v1", 8, num_workers=2, on_failure="restart")
    generator, steps = random.Random(0), 10 * kills
    env.set_seed(0)
    env.reset_arrays()
    for step in range(steps):
        if step % 10 == 5:
            os.kill(generator.choice(env.vector._workers)._process.pid, signal.SIGKILL)
        env.send(np.zeros(8, np.int64))
        arrays = env.receive()
        if (done := arrays.terminated | arrays.truncated).any():
            env.reset_arrays(done.copy())
    result = {"kills": kills, "steps": 8 * steps, "failed_steps": int(env.vector.num_restarts.sum())}
    env.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--rollouts", type=int, default=300)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"date": str(datetime.date.today()), "cycles": arguments.cycles}
    for num_workers in (0, 2):
        for _ in range(10):
            cycle(num_workers)
        before = resources()
        for _ in range(arguments.cycles):
            cycle(num_workers)
        report[f"cycles_workers_{num_workers}"] = growth(before)
        report[f"rollouts_workers_{num_workers}"] = collect(arguments.rollouts, num_workers)
        print(report, flush=True)
    report["restart"] = kill_workers(arguments.kills)
    print(report["restart"])
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
