"""Trains with an environment that fails in every way of `faulty.py`, and writes how each run ended.

    python -m torchppo.benchmarks.reliability.failures --out benchmarks/reliability/failures.csv
    python -m torchppo.benchmarks.reliability.failures --restart --modes raise_step sigkill

Every run is a forked process, so that the libraries are imported once. `ok` is false if a run did not end within the
deadline of a step plus five seconds, if its exit code or message is not the expected one, or if `summary.json` does not
have the reason.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from torchppo.benchmarks.reliability import faulty

STEP_TIMEOUT = 5.0
COMPLETES = {
    *("none", "print", "dtype", "list", "out_of_space", "one_rew", "one_done", "int_done", "slow_reset", "never_ends"),
    *("close_hang", "close_spin", "close_raise"),
}
"""Modes in which a run ends with exit code 0."""
DIES = {"exit3": 3, "sigkill": -9, "segv": -11}
"""Modes that end the whole process, if it steps the environment itself. No Python code runs after that."""
NUMERICAL = {"huge_rew": 4}


def expected_code(mode: str, num_workers: int, *, is_restarted: bool) -> int | None:
    """Return the exit code; `None` if the process stops itself, which only another process can notice."""
    if num_workers == 0 and mode in DIES:
        return DIES[mode]
    if num_workers == 0 and mode == "stop":
        return None
    if mode in NUMERICAL:
        return NUMERICAL[mode]
    return 0 if mode in COMPLETES or is_restarted else 3


def overrides(mode: str, num_workers: int, run_dir: Path, *, is_restarted: bool) -> list[str]:
    words = {
        "env.id": "torchppo.benchmarks.reliability.faulty:Faulty-v0",
        "+env.mode": mode,
        "env.num_envs": 4,
        "env.num_workers": num_workers,
        "env.step_timeout": STEP_TIMEOUT,
        "collector.frames_per_env": 16,
        "update.minibatch_size": 64,
        "update.epochs": 30 if mode in NUMERICAL else 1,
        "total_frames": 512,
        "eval.episodes": 0,
        "logger": "csv",
        "compile": "false",
        "run_dir": run_dir,
    }
    if is_restarted:
        words |= {"env.on_failure": "restart", "+env.once": run_dir.with_suffix(".failed")}
    return [f"{key}={value}" for key, value in words.items()]


def run_child(words: list[str], log: Path) -> NoReturn:
    """Run the command in a forked process, which this function does not leave."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.setsid()
    os.chdir(log.parent)
    from torchppo.pipelines.cli.main import main

    sys.exit(main(["train", *words]))


def run_case(mode: str, num_workers: int, folder: Path, *, is_restarted: bool) -> dict[str, Any]:
    """Return how a run ended."""
    run_dir, log = folder / f"{mode}_{num_workers}", folder / f"{mode}_{num_workers}.txt"
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        run_child(overrides(mode, num_workers, run_dir, is_restarted=is_restarted), log)
    limit, code = 60.0, None
    while code is None and time.monotonic() - start < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if done else None
        time.sleep(0.02)
    seconds = time.monotonic() - start
    if code is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    summary = json.loads(path.read_text()) if (path := run_dir / "summary.json").exists() else {}
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("torchppo: ")]
    message = lines[-1].replace(str(folder), "") if lines else ""
    expected = expected_code(mode, num_workers, is_restarted=is_restarted)
    names_env = "environment" in message and "step" in message and "seed" in message
    is_reported = summary.get("exit") == "failed" and summary.get("reason") == message.removeprefix("torchppo: ")
    is_ok = code == expected
    if expected == 3 and not (num_workers == 0 and mode in DIES):
        is_ok = is_ok and names_env and is_reported and seconds < STEP_TIMEOUT + 15
    return {
        "mode": mode,
        "num_workers": num_workers,
        "exit_code": "none" if code is None else code,
        "expected": "none" if expected is None else expected,
        "seconds": round(seconds, 1),
        "summary": summary.get("exit", ""),
        "ok": is_ok,
        "message": message[:240],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modes", nargs="*", default=faulty.MODES)
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 2])
    parser.add_argument("--restart", action="store_true", help="env.on_failure=restart; new environments are sound")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    import torchppo.pipelines.train  # noqa: F401 - the forked processes need not import it

    rows, folder = [], Path(tempfile.mkdtemp())
    for mode in arguments.modes:
        for num_workers in arguments.workers:
            rows.append(row := run_case(mode, num_workers, folder, is_restarted=arguments.restart))
            print(*row.values(), sep="  ", flush=True)
    shutil.rmtree(folder)
    print(f"{sum(row['ok'] for row in rows)} of {len(rows)} as expected")
    if arguments.out:
        with arguments.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
