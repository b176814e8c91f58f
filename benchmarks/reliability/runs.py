"""Small trainings that are killed, continued and compared."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchppo.pipelines.resume.verify import different, with_collector
from torchppo.pipelines.saving.plain_checkpoints import load_checkpoint

SMALL = (
    *("trainer.accelerator=cpu", "update.epochs=1", "eval.video=false", "eval.episodes=2", "seed=5"),
    *("env.num_envs=4", "collector.frames_per_env=32", "update.minibatch_size=64", "+eval.env.max_episode_steps=60"),
)
ROLLOUTS = ("total_frames=5120", "eval.every_frames=1280", "checkpoint.every_frames=256")
"""40 rollouts, with a checkpoint after every second and an evaluation after every tenth one."""
POSITIONS = ("experiment=cartpole_positions", "update.sequence_length=16", "eval.stop_at=null")
ENVIRONMENTS = {
    "cartpole": ("experiment=cartpole", "policy.body.num_cells=[16]", "eval.stop_at=null"),
    "hopper": ("experiment=hopper", "policy.body.num_cells=[16]"),
    "lunarlander": ("experiment=lunarlander", "policy.body.num_cells=[16]", "eval.stop_at=null"),
    "pong": ("experiment=pong", "policy.body.num_features=8", "total_frames=1280", "eval.every_frames=640"),
    "lstm": (*POSITIONS, "policy=lstm"),
    "gru": (*POSITIONS, "policy=gru"),
    "transformer": (*POSITIONS, "policy=transformer"),
}
MODES = {"eager": "compile=false", "trace": "compile=trace", "compiled": "compile=true"}


def configurations() -> dict[str, list[str]]:
    """Return configurations in which each environment meets each mode, in process and with workers."""
    found = {}
    for number, (name, words) in enumerate(ENVIRONMENTS.items()):
        for place, (mode, word) in enumerate(MODES.items()):
            has_workers = (number + place) % 2 == 1
            workers = "collector.double_buffer=true" if name == "pong" else "env.num_workers=2"
            options = [*SMALL, *ROLLOUTS, *words, word, *([workers] if has_workers else [])]
            if name == "pong":
                options = [option for option in options if "max_episode_steps" not in option] + ["eval.max_steps=30"]
            last = {option.partition("=")[0].lstrip("+"): option for option in options}  # later ones replace others
            found[f"{name}-{mode}-{'workers' if has_workers else 'in_process'}"] = list(last.values())
    return found


def start(words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `torchppo` in a new process group."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "torchppo", *words],
            stdout=file,
            stderr=file,
            cwd=log.parent,
            env=environment,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to all processes of a training."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def frames_of(run_dir: Path) -> int:
    """Return the frames that `metrics.csv` has reached."""
    try:
        rows = (run_dir / "metrics.csv").read_text().splitlines()
        column = rows[0].split(",").index("step")
        return max((int(row.split(",")[column]) for row in rows[1:] if row.count(",") == rows[0].count(",")), default=0)
    except (OSError, ValueError, IndexError):
        return 0


def kill_after(process: subprocess.Popen[bytes], run_dir: Path, frames: int, delay: float) -> bool:
    """Kill a training `delay` seconds after it has reached `frames`. Return whether it was still running."""
    while process.poll() is None and frames_of(run_dir) < frames:
        time.sleep(0.005)
    time.sleep(delay)
    was_running = process.poll() is None
    if was_running:
        kill(process)
    return was_running


def finish(process: subprocess.Popen[bytes], seconds: float = 600.0) -> int:
    """Wait for a training and return its exit code; kill it if it takes too long."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        return -1


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of `metrics.csv` without times."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        return [{name: value for name, value in row.items() if value and name[:5] != "time/"} for row in rows]


def events_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the scalars of TensorBoard without times."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name[:5] != "time/"]
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in names}


def state_of(path: Path) -> dict[str, Any]:
    """Return the parts of a checkpoint that must be equal."""
    checkpoint = with_collector(load_checkpoint(path))
    checkpoint["torchppo"].pop("config")
    evaluations = checkpoint["callbacks"]["EvaluateAndSave"]
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "torchppo", "collector")} | {
        "evaluations": evaluations
    }


def differences(run_dir: Path, expected: Path) -> Iterator[str]:
    """Yield what differs between two complete runs."""
    yield from different(rows_of(run_dir), rows_of(expected), "metrics.csv")
    yield from different(events_of(run_dir), events_of(expected), "tensorboard")
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (state_of(folder / "checkpoints" / name) for folder in (run_dir, expected))
        yield from different(first, second, name)
