"""Frames per second of whole trainings against peers: same hyperparameters, one thread, runs in turn.

    pip install 'torchppo[bench]'
    python benchmarks/throughput.py                    # the table of every workload
    python benchmarks/throughput.py --only cartpole --rounds 7
    python benchmarks/throughput.py --costs            # collection, workers, numbers of environments, start-up

Every run is a process of its own; a round runs each side once. Frames and optimiser steps of all sides have to be
equal. Compilation is not in the frames per second, it stands in its own column. Writes throughput.json, every entry
with its date and machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PEERS = ("sb3", "torchrl")
MLP = ("cartpole", "halfcheetah_1", "halfcheetah_8")
HEADLINE = (*MLP, "pong_bf16")
"""Of which the geometric mean is told."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[*MLP, "pong", "pong_bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--out", default="throughput.json", help="beside this file")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(run(*arguments.run)))
        return
    path = HERE / arguments.out
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    stamp = {"date": date.today().isoformat(), "machine": machine()}
    if arguments.costs:
        report["costs"] = stamp | costs(arguments.rounds)
        Console().print_json(json.dumps(report["costs"]))
    else:
        for name in arguments.only:
            report["ratios"] = report.get("ratios", {}) | {name: stamp | compare(name, arguments.rounds)}
            path.write_text(json.dumps(report, indent=1) + "\n")
        show(report["ratios"])
    path.write_text(json.dumps(report, indent=1) + "\n")


def run(side: str, name: str, *words: str) -> dict[str, float]:
    """One side of one workload in this process; words `key=value` change the workload, others go to the side."""
    import warnings

    import torch

    from torchppo.benchmarks import workloads  # type: ignore[import-not-found, unused-ignore]

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    work = workloads.WORKLOADS[name]
    changes: dict[str, Any] = {
        key: int(value) for key, value in (word[1:].split("=") for word in words if word.startswith("@"))
    }
    work = dataclasses.replace(work, **changes)
    extra = tuple(word for word in words if not word.startswith("@"))
    figures: dict[str, float] = getattr(workloads, side)(work, *([extra] if extra else []))
    return figures | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(*words: str) -> dict[str, float]:
    """The figures of one run in a fresh process."""
    command = [sys.executable, str(HERE / "throughput.py"), "--run", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(*words, {key: round(value, 1) for key, value in figures.items()}, flush=True)
    return figures


def compare(name: str, rounds: int) -> dict[str, Any]:
    """Ratios of one workload, round by round."""
    peers = PEERS if name in MLP else ("sb3",)
    sides = ("ours", *peers, "environment")
    results = [{side: measure(side, name) for side in sides} for _ in range(rounds)]
    for result in results:
        counts = {(result[side]["frames"], result[side]["optimizer_steps"]) for side in ("ours", *peers)}
        if len(counts) > 1:
            raise SystemExit(f"{name}: the sides differ in frames and optimiser steps: {counts}")
    return {
        "frames_per_second": {side: spread([result[side]["fps"] for result in results]) for side in sides},
        "ratio": {
            side: spread([result["ours"]["fps"] / result[side]["fps"] for result in results])
            for side in (*peers, "environment")
        },
        "compile_seconds": spread([result["ours"]["compile_seconds"] for result in results]),
        "peak_mib": {side: spread([result[side]["peak_mib"] for result in results]) for side in ("ours", *peers)},
    }


def costs(rounds: int) -> dict[str, Any]:
    """What collection costs: against the environment, with workers, by the number of environments; and start-up."""
    sixteen = ("halfcheetah_8", "@num_envs=16", "@frames_per_env=256", "@rollouts=12")
    shares, gains = [], []
    for _ in range(rounds):
        alone = measure("environment", "halfcheetah_8")["fps"]
        shares.append(measure("collection", "halfcheetah_8", "@frames_per_env=512")["fps"] / alone)
        serial = measure("collection", *sixteen)["fps"]
        gains.append(measure("collection", *sixteen, "num_workers=2")["fps"] / serial)
    by_number = {
        num: 1e6 / measure("collection", "cartpole", f"@num_envs={num}", "@frames_per_env=256", "@rollouts=4")["fps"]
        for num in (1, 4, 16, 64, 256, 1024)
    }
    return {
        "collection_against_environment_halfcheetah_8": spread(shares),
        "two_workers_against_one_process_halfcheetah_16": spread(gains),
        "microseconds_per_frame_cartpole_by_num_envs": {num: round(cost, 2) for num, cost in by_number.items()},
        "seconds_of_help": spread([timed("--help") for _ in range(rounds)]),
        "seconds_to_a_solved_cartpole": spread([solved(seed) for seed in range(rounds)]),
    }


def timed(*words: str) -> float:
    """Seconds of one command of torchppo."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "torchppo", *words], capture_output=True, check=True)
    return time.perf_counter() - start


def solved(seed: int) -> float:
    """Seconds from the command to a CartPole-v1 that is solved, evaluated, drawn and filmed."""
    with TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        seconds = timed("train", "experiment=cartpole", f"seed={seed}", f"run_dir={run_dir}")
        if json.loads((run_dir / "summary.json").read_text())["eval_return_mean"] != 500.0:
            raise SystemExit(f"CartPole-v1 is not solved with seed {seed}")
    print("solved", seed, round(seconds, 1), flush=True)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Smallest, median and largest."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def machine() -> str:
    """The processor, its number of cores that are ours, and the versions."""
    import os

    import torch

    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0))
    return f"{models[0].split(':')[1].strip()}, {cores} cores, {capability}, torch {torch.__version__}, " + (
        f"Python {platform.python_version()}"
    )


def show(ratios: dict[str, Any]) -> None:
    """A table of ratios: median (smallest to largest)."""
    table = Table(title="our frames per second against")
    for column in ("workload", "ours", *PEERS, "environment", "compilation, s"):
        table.add_column(column)
    for name, result in ratios.items():
        cells = [
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
            for ratio in (result["ratio"].get(side) for side in (*PEERS, "environment"))
        ]
        table.add_row(
            name,
            f"{result['frames_per_second']['ours']['median']:,.0f}",
            *cells,
            f"{result['compile_seconds']['median']:.1f}",
        )
    Console().print(table)
    if {*HEADLINE} <= {*ratios}:
        mean = statistics.geometric_mean(ratios[name]["ratio"]["sb3"]["median"] for name in HEADLINE)
        print(f"geometric mean against sb3, Pong in bf16: {mean:.2f}")


if __name__ == "__main__":
    main()
