"""Sends signals to trainings in every phase, with one and two ranks, and checks what they leave behind.

    python benchmarks/reliability/signals.py                    # every case, with the results in signals.csv
    python benchmarks/reliability/signals.py video "2 ranks"    # cases whose name contains one of the words

Every training must end with the exit code of the signal, within the time limit, without a traceback, a process of its
own or a file outside of its directory, and with a valid checkpoint of the frames in summary.json. After SIGUSR1, the
same command continues the run to its end.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

from torchppo.errors import CheckpointError
from torchppo.pipelines.saving.plain_checkpoints import load_checkpoint

ENVIRONMENT = """
import time
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv


class Pausing(CartPoleEnv):
    '''CartPole that pauses in steps, renderings or its construction, and writes the file `pausing` when it does.'''

    def __init__(self, seconds=0.0, after=0, where="step", **options):
        self.seconds, self.after, self.where, self.steps = seconds, after, where, 0
        self.pause("init")
        super().__init__(**options)

    def pause(self, where):
        if self.seconds and where == self.where and self.steps >= self.after:
            Path("pausing").touch()
            time.sleep(self.seconds)

    def step(self, action):
        self.steps += 1
        self.pause("step")
        return super().step(action)

    def render(self):
        self.pause("render")
        return super().render()


gymnasium.register("Pausing-v0", entry_point=Pausing, max_episode_steps=200)
"""
WORDS = (
    *("experiment=cartpole", "env.id=signal_env:Pausing-v0", "run_dir=run", "logger=csv", "eval.stop_at=null"),
    *("eval.video=false", "compile=false", "eval.episodes=2", "total_frames=4096", "trainer.accelerator=cpu"),
)
RANKS = ("trainer.devices=2", "trainer.strategy=ddp")
ENDLESS = "total_frames=100_000_000"
SLOW = (ENDLESS, "env.num_envs=2", "update.minibatch_size=64", "+env.after=300", "+eval.env.seconds=0")
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 75}


class Case(NamedTuple):
    """One phase of a training.

    Attributes:
        words: overrides.
        ready: the training is in this phase when this file exists in its folder; `None` waits for `delay` only.
        delay: seconds until the signal is sent.
        limit: seconds after the signal until the training must have ended.
        has_run: whether a checkpoint and a summary must exist.
        to: who receives the signal: `main`, `group` or `rank 1`.
        again: whether a second signal is sent after half a second.
        starter: `srun` or `torchrun`; empty if rank 0 starts the other ranks.
        lost: rollouts that the checkpoint may lack: a state is saved in memory as often as that takes 1 % of the time.
        continues: after SIGUSR1, the same command trains to this number of frames; 0 if it is not run again.

    """

    words: tuple[str, ...] = ()
    ready: str | None = "run/metrics.csv"
    delay: float = 0.5
    limit: float = 20.0
    has_run: bool = True
    to: str = "main"
    again: bool = False
    continues: int = 0
    lost: int = 0
    starter: str = ""


FAST = (ENDLESS,)
CASES = {
    "start of Python": Case(ready=None, delay=0.4, has_run=False),
    "imports": Case(ready=None, delay=1.2, has_run=False),
    "construction": Case(("+env.seconds=30", "+env.where=init"), "pausing", has_run=False),
    "start of workers": Case(("+env.seconds=3", "+env.where=init", "env.num_workers=2"), "pausing", has_run=False),
    "rollouts": Case(FAST),
    "rollouts, workers": Case((*FAST, "env.num_workers=2"), to="group"),
    "slow rollout": Case((*SLOW, "+env.seconds=0.3"), "pausing", lost=30),
    "slow rollout, workers": Case((*SLOW, "+env.seconds=0.3", "env.num_workers=2"), "pausing", lost=30, to="group"),
    "step that does not return": Case((*SLOW, "+env.seconds=1000"), "pausing", lost=30),
    "step that does not return, again": Case((*SLOW, "+env.seconds=1000"), "pausing", limit=3.0, again=True, lost=30),
    "compilation": Case((*FAST, "compile=true"), "run/config.yaml", limit=20.0),
    "evaluation": Case((*FAST, "eval.every_frames=256", "+env.seconds=0", "+eval.env.seconds=0.5"), "pausing"),
    "last evaluation": Case(("total_frames=512", "+env.seconds=0", "+eval.env.seconds=0.5"), "pausing"),
    "short training": Case(("total_frames=40_960", "eval.every_frames=null"), continues=40_960),
    "video": Case(
        ("total_frames=512", "eval.video=true", "+env.seconds=0.2", "+env.where=render", "env.num_workers=0"), "pausing"
    ),
    "video, group": Case(
        ("total_frames=512", "eval.video=true", "+env.seconds=0.2", "+env.where=render"), "pausing", to="group"
    ),
    "2 ranks: rollouts": Case((*RANKS, *FAST)),
    "2 ranks: rollouts, rank 1": Case((*RANKS, *FAST), to="rank 1"),
    "2 ranks: slow rollout, group": Case((*RANKS, *SLOW, "+env.seconds=0.3"), "pausing", lost=30, to="group"),
    "2 ranks: slow rollout, rank 1": Case((*RANKS, *SLOW, "+env.seconds=0.3"), "pausing", lost=30, to="rank 1"),
    "2 ranks: compilation, rank 1": Case((*RANKS, *FAST, "compile=true"), "run/config.yaml", limit=20.0, to="rank 1"),
    "srun: rollouts, rank 1": Case((*RANKS, *FAST), to="rank 1", starter="srun"),
    "srun: slow rollout, rank 1": Case(
        (*RANKS, *SLOW, "+env.seconds=0.3"), "pausing", lost=30, to="rank 1", starter="srun"
    ),
    "torchrun: slow rollout, rank 1": Case(
        (*RANKS, *SLOW, "+env.seconds=0.3"), "pausing", lost=30, to="rank 1", starter="torchrun"
    ),
    "2 ranks: evaluation, rank 1": Case(
        (*RANKS, *FAST, "eval.every_frames=512", "+env.seconds=0", "+eval.env.seconds=0.5"), "pausing", to="rank 1"
    ),
}


def main() -> None:
    selected = [name for name in CASES if not sys.argv[1:] or any(word in name for word in sys.argv[1:])]
    rows, path = [], Path(__file__).with_suffix(".csv")
    if path.exists() and len(selected) < len(CASES):
        rows = [*csv.DictReader(path.read_text().splitlines())]
    for name in selected:
        for number in SIGNALS:
            row = run(name, number)
            print(*row.values(), sep="  ", flush=True)
            rows = [one for one in rows if (one["case"], one["signal"]) != (name, number.name)]
            rows.append({key: str(value) for key, value in row.items()})
            rows.sort(key=lambda one: [*CASES].index(one["case"]))
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    failed = sum(row["faults"] != "" for row in rows)
    print(f"{len(rows)} trainings, {failed} with faults ({platform.machine()}, {os.cpu_count()} cores)")


def run(name: str, number: signal.Signals) -> dict[str, object]:
    """Train, send a signal, and return what was found."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "signal_env.py").write_text(ENVIRONMENT)
        command = command_of(case)
        with (place / "output.txt").open("w") as output:
            process = subprocess.Popen(
                command, cwd=place, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment()
            )
        start = time.monotonic()
        while case.ready and not (place / case.ready).exists() and process.poll() is None:
            if time.monotonic() > start + 300:
                break
            time.sleep(0.05)
        time.sleep(case.delay)
        seconds, code = end(process, number, case)
        time.sleep(0.1)
        found = [*faults(place, case, number, code, seconds), *left_behind(process.pid)]
        if case.continues and number == signal.SIGUSR1:
            again = subprocess.run(command, cwd=place, env=environment(), capture_output=True, text=True, check=False)
            end_of_run = json.loads((place / "run/summary.json").read_text())
            if (again.returncode, end_of_run["exit"], end_of_run["frames"]) != (0, "completed", case.continues):
                found.append(f"the requeued command: {again.returncode}, {end_of_run}, {again.stderr[-300:]}")
        frames = json.loads(summary.read_text())["frames"] if (summary := place / "run/summary.json").exists() else ""
    return {
        "date": date.today().isoformat(),
        "case": name,
        "signal": number.name,
        "exit": code,
        "seconds": round(seconds, 1),
        "frames": frames,
        "faults": "; ".join(found),
    }


SRUN = """
export SLURM_NTASKS=2 SLURM_NTASKS_PER_NODE=2 SLURM_JOB_NAME=job SLURM_JOB_ID=77 SLURM_NODEID=0 SLURM_NODELIST=localhost
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
wait $first; code=$?
wait $second; [ $? = $code ] && exit $code
exit 99
"""
"""Starts two ranks as srun does, and exits with their code, or with 99 if their codes differ."""


def command_of(case: Case) -> list[str]:
    words = ["-m", "torchppo", "train", *WORDS, *case.words]
    if case.starter == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *words]
    command = [sys.executable, *words]
    return ["sh", "-c", SRUN, "sh", *command] if case.starter == "srun" else command


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}


def end(process: subprocess.Popen[bytes], number: signal.Signals, case: Case) -> tuple[float, int | None]:
    """Send the signal; return the seconds until the end, and the exit code."""
    start = time.monotonic()
    for pause in (0.5, 0.0) if case.again else (0.0,):
        if process.poll() is None:
            if case.to == "group":
                os.killpg(process.pid, number)
            else:
                os.kill(rank_1(process.pid, case) if case.to == "rank 1" else process.pid, number)
        time.sleep(pause)
    try:
        return -start + (process.wait(timeout=case.limit + 30), time.monotonic())[1], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return case.limit + 30, None


def rank_1(pid: int, case: Case) -> int:
    """Return the process that a rank 0 has launched, or the second one of a starter."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ranks = [int(one) for one in children if "torchppo" in Path(f"/proc/{one}/cmdline").read_text()]
    return ranks[1 if case.starter else 0]


def faults(place: Path, case: Case, number: signal.Signals, code: int | None, seconds: float) -> Iterator[str]:
    output = (place / "output.txt").read_text()
    if code != (1 if case.starter == "torchrun" else SIGNALS[number]):  # torchrun has its own exit code
        yield f"exit {code}: {output[-300:]!r}"
    if seconds > case.limit:
        yield f"{seconds:.1f} seconds"
    if "Traceback" in output and case.starter != "torchrun":
        yield f"a traceback: {output[-1000:]!r}"
    known = {"signal_env.py", "output.txt", "run", "pausing", "__pycache__"}
    if others := {path.name for path in place.iterdir()} - known:
        yield f"files {others}"
    if not case.has_run:
        return
    try:
        frames = load_checkpoint(place / "run/checkpoints/last.ckpt")["torchppo"]["frames"]
        summary = json.loads((place / "run/summary.json").read_text())
    except (CheckpointError, OSError) as error:
        yield str(error)
        return
    name = "requeue" if number == signal.SIGUSR1 else number.name
    if (summary["exit"], summary["frames"]) != (name, frames):
        yield f"the summary has {summary['exit']} and {summary['frames']} frames, the checkpoint {frames}"
    path = place / "run/metrics.csv"
    steps = [int(row["step"]) for row in csv.DictReader(path.read_text().splitlines())] if path.exists() else []
    if steps and frames < steps[-1] - case.lost * 64:
        yield f"the checkpoint has {frames} of {steps[-1]} frames"


def left_behind(group: int) -> Iterator[str]:
    """Return the processes of a group; kill them."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = path.with_name("cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            os.kill(int(path.parent.name), signal.SIGKILL)
            yield f"a process is left: {command[:80]}"


if __name__ == "__main__":
    main()
