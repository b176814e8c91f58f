"""Measure frames per second of complete training runs against other libraries.

    pip install 'torchppo[bench]'
    python benchmarks/throughput.py                    # all workloads
    python benchmarks/throughput.py --only cartpole --peers sb3 jax --rounds 7
    python benchmarks/throughput.py --costs            # collection, workers, number of environments, start-up

All libraries use the same hyperparameters, one thread, and the same number of frames and optimizer steps. The table
`WORKLOADS` in workloads.py lists the libraries that run each workload. Each run is a separate process; a round runs
each library once. The compilation time is reported separately. Writes throughput.json, with the date and the machine
of each entry.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
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

from torchppo.benchmarks import workloads  # type: ignore[import-not-found, unused-ignore]
from torchppo.benchmarks.workloads import WORKLOADS  # type: ignore[import-not-found, unused-ignore]

HERE = Path(__file__).parent
HEADLINE = ("cartpole", "halfcheetah_1", "halfcheetah_8", "pong_bf16")
"""Workloads of the geometric mean."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NPROC": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
"""Environment variables of all runs, for PyTorch and XLA."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[*WORKLOADS], choices=WORKLOADS, help="workloads to run")
    parser.add_argument("--peers", nargs="+", help="run only these of the other libraries, such as sb3 jax")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each measurement")
    parser.add_argument("--costs", action="store_true", help="measure the costs of single parts instead")
    parser.add_argument("--out", default="throughput.json", help="output file in the folder of this file")
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
            result = stamp | compare(name, arguments.rounds, arguments.peers)
            report["ratios"] = report.get("ratios", {}) | {name: result}
            path.write_text(json.dumps(report, indent=1) + "\n")
        show(report["ratios"])
    path.write_text(json.dumps(report, indent=1) + "\n")


def run(library: str, name: str, *options: str) -> dict[str, float]:
    """Run one workload with one library in this process.

    Options `@key=value` change the workload; other options are passed to the function of the library.
    """
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    work = WORKLOADS[name]
    changes: dict[str, Any] = {
        key: int(value) for key, value in (option[1:].split("=") for option in options if option.startswith("@"))
    }
    work = dataclasses.replace(work, **changes)
    extra = tuple(option for option in options if not option.startswith("@"))
    results: dict[str, float] = getattr(workloads, library)(work, *([extra] if extra else []))
    return results | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(*arguments: str) -> dict[str, float]:
    """Run `run(*arguments)` in a new process."""
    command = [sys.executable, str(HERE / "throughput.py"), "--run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ONE_THREAD)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    results: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    print(*arguments, {key: round(value, 2) for key, value in results.items()}, flush=True)
    return results


def compare(name: str, rounds: int, only: list[str] | None = None) -> dict[str, Any]:
    """Return the frames per second of one workload, and their ratios: median, minimum and maximum over the rounds.

    Args:
        name: the workload.
        rounds: how often each library runs it.
        only: the other libraries to run; `None` runs all libraries of the workload.

    """
    peers = [peer for peer in WORKLOADS[name].peers if only is None or peer in only]
    libraries = ("ours", *peers)
    loads, rows = [], []
    for _ in range(rounds):
        loads.append(os.getloadavg()[0])
        rows.append({key: measure(key, name) for key in (*libraries, "environment")})
    for row in rows:
        counts = {(row[key]["frames"], row[key]["optimizer_steps"]) for key in libraries}
        if len(counts) > 1:
            raise SystemExit(f"{name}: the libraries differ in frames and optimizer steps: {counts}")
        row["bound"] = {"fps": row["environment"]["bound"]}
        for key in libraries:
            row[key]["cpu_fps"] = row[key]["fps"] / row[key]["cores"]
    everything = (*libraries, "environment", "bound")
    return {
        "frames_per_second": {key: spread([row[key]["fps"] for row in rows]) for key in everything},
        "ratio": {key: spread([row["ours"]["fps"] / row[key]["fps"] for row in rows]) for key in everything[1:]},
        "cpu_ratio": {key: spread([row["ours"]["cpu_fps"] / row[key]["cpu_fps"] for row in rows]) for key in peers},
        "compile_seconds": spread([row["ours"]["compile_seconds"] for row in rows]),
        "peak_mib": {key: spread([row[key]["peak_mib"] for row in rows]) for key in libraries},
        "cores": {key: spread([row[key]["cores"] for row in rows]) for key in libraries},
        "gflops": spread([row["environment"]["gflops"] for row in rows]),
        "load": spread(loads),
    }


def costs(rounds: int) -> dict[str, Any]:
    """Costs of collection (relative to the environment, with workers, by number of environments) and of start-up."""
    sixteen = ("halfcheetah_8", "@num_envs=16", "@frames_per_env=256", "@rollouts=12")
    shares, gains = [], []
    for _ in range(rounds):
        env_fps = measure("environment", "halfcheetah_8")["fps"]
        shares.append(measure("collection", "halfcheetah_8", "@frames_per_env=512")["fps"] / env_fps)
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


def timed(*arguments: str) -> float:
    """Wall time of one torchppo command, in seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "torchppo", *arguments], capture_output=True, check=True)
    return time.perf_counter() - start


def solved(seed: int) -> float:
    """Wall time of `torchppo train experiment=cartpole`, with evaluation, learning curve and video, in seconds."""
    with TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        seconds = timed("train", "experiment=cartpole", f"seed={seed}", f"run_dir={run_dir}")
        if json.loads((run_dir / "summary.json").read_text())["eval_return_mean"] != 500.0:
            raise SystemExit(f"CartPole-v1 is not solved with seed {seed}")
    print("solved", seed, round(seconds, 1), flush=True)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }


def machine() -> str:
    """Name of the processor, number of available cores, and versions of PyTorch and Python."""
    import torch

    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0))
    return f"{models[0].split(':')[1].strip()}, {cores} cores, {capability}, torch {torch.__version__}, " + (
        f"Python {platform.python_version()}"
    )


def show(ratios: dict[str, Any]) -> None:
    """Print a table of ratios: median (minimum to maximum)."""
    others = dict.fromkeys(key for result in ratios.values() for key in result["ratio"])
    table = Table(title="frames per second of torchppo relative to")
    for column in ("workload", "torchppo, frames/s", *others, "compilation, s"):
        table.add_column(column)
    for name, result in ratios.items():
        cells = [
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
            for ratio in (result["ratio"].get(key) for key in others)
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
        print(f"geometric mean relative to sb3, Pong in bf16: {mean:.2f}")


if __name__ == "__main__":
    main()
