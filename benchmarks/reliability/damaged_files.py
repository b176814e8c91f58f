"""Interrupts saves, damages checkpoints and fills the disk, and checks that a valid checkpoint always remains.

    python benchmarks/reliability/damaged_files.py --output benchmarks/reliability/damaged_files.csv

- Each save is killed after each of its calls of the file system, and in the middle of its writes. With a power loss,
  what was written and not synced is lost too.
- Bits of `last.ckpt` are flipped, and the file is cut off.
- A limit of the size of files stops a training as a full disk does.
"""

from __future__ import annotations

import argparse
import builtins
import csv
import datetime
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from torchppo.benchmarks.reliability.runs import SMALL, finish, start  # type: ignore[import-not-found, unused-ignore]
from torchppo.errors import CheckpointError
from torchppo.pipelines.resume.verify import different
from torchppo.pipelines.saving.files import save_checkpoint
from torchppo.pipelines.saving.last_checkpoint import LastCheckpoint
from torchppo.pipelines.saving.plain_checkpoints import load_checkpoint, newest_checkpoint

CALLS = ("replace", "rename", "link", "unlink", "remove", "fsync", "open", "close", "mkdir")
TRAIN = ("train", "experiment=cartpole", *SMALL, "compile=false", "total_frames=5120", "checkpoint.every_frames=128")


class SavingTrainer:
    """Saves a checkpoint as Lightning's Trainer does."""

    is_global_zero = True
    train_dataloader = None

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def save_checkpoint(self, path: Path) -> None:
        TorchCheckpointIO().save_checkpoint(self.content, path)


class Killer:
    """Kills this process after a number of calls of the file system.

    Args:
        number: of the call.
        loses_data: whether what was not synced is lost.

    """

    def __init__(self, number: int, *, loses_data: bool) -> None:
        self.remaining = number
        self.loses_data = loses_data
        self.unsynced: set[str] = set()

    def count(self) -> None:
        self.remaining -= 1
        if self.remaining < 0:
            for path in self.unsynced if self.loses_data else ():
                if Path(path).exists():
                    os.truncate(path, Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Replace functions of `os`, and `open`, by ones that count."""
        for name in CALLS:
            setattr(os, name, self.counted(getattr(os, name), name))
        builtins.open = io.open = self.open

    def counted(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            path = str(Path(f"/proc/self/fd/{args[0]}").readlink() if name == "fsync" else args[0])
            result = call(*args, **kwargs)
            if path in self.unsynced and name in ("replace", "rename"):
                self.unsynced.add(str(args[1]))
            if name in ("replace", "rename", "fsync"):
                self.unsynced.discard(path)
            self.count()
            return result

        return counting

    def open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        opened = OPEN(file, mode, *args, **kwargs)
        if not set(mode) & set("wa+x"):
            return opened
        self.unsynced.add(str(file))
        self.count()
        return CountingFile(opened, self.count)


class CountingFile:
    """A file whose writes are made in two halves and counted."""

    def __init__(self, file: Any, count: Callable[[], None]) -> None:
        self._file, self._count = file, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> CountingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._count()

    def write(self, data: Any) -> int:
        data = bytes(data)
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self._file.write(part)
            self._file.flush()
            self._count()
        return len(data)


OPEN = io.open


def train_once(folder: Path) -> dict[str, Any]:
    """Train and return the content of `last.ckpt`."""
    run_dir = folder / "run"
    if code := finish(start([*TRAIN, "total_frames=512", f"run_dir={run_dir}"], folder / "log")):
        sys.exit(f"the training ended with exit code {code}: {(folder / 'log').read_text()}")
    return load_checkpoint(run_dir / "checkpoints" / "last.ckpt")


def kills(content: dict[str, Any], folder: Path) -> Iterator[tuple[str, bool]]:
    """Kill a save of `last.ckpt` and of `best.ckpt` after every call; yield what was tested and whether it passed."""
    for name in ("last.ckpt", "best.ckpt"):
        for loses_data in (False, True):
            for number in range(200):
                place = Path(tempfile.mkdtemp(dir=folder))
                for old, frames in (("previous.ckpt", 1), ("last.ckpt", 2), ("best.ckpt", 2)):
                    save_checkpoint(SavingTrainer(numbered(content, frames)), place / old)  # type: ignore[arg-type]
                if (pid := os.fork()) == 0:
                    trainer: Any = SavingTrainer(numbered(content, 3))
                    Killer(number, loses_data=loses_data).install()
                    if name == "last.ckpt":
                        LastCheckpoint(place, None, None).save(trainer, 3)
                    else:
                        save_checkpoint(trainer, place / name)
                    os._exit(0)
                _, status = os.waitpid(pid, 0)
                found = newest_checkpoint(place / name)[1] if name == "last.ckpt" else load_checkpoint(place / name)
                frames = found["torchppo"]["frames"]
                same = not [*different(found, numbered(content, frames), "")]
                yield f"kill {'and power loss ' if loses_data else ''}in a save of {name}", frames in (2, 3) and same
                shutil.rmtree(place)
                if status == 0:
                    break


def numbered(content: dict[str, Any], frames: int) -> dict[str, Any]:
    return {**content, "torchppo": {**content["torchppo"], "frames": frames}}


def damages(content: dict[str, Any], path: Path, count: int) -> Iterator[tuple[str, bool]]:
    """Flip bits of a checkpoint and cut it off; yield what was tested and whether it was refused or is equal."""
    generator, original = random.Random(0), path.read_bytes()
    ends = [*range(150), *(generator.randrange(len(original)) for _ in range(count))]  # the first ones near the end
    for number in range(count):
        damaged = bytearray(original)
        if number % 2:
            damaged[-1 - ends[number]] ^= 1 << generator.randrange(8)
        else:
            del damaged[len(damaged) - ends[number] - 1 :]
        path.write_bytes(damaged)
        try:
            passed = not [*different(load_checkpoint(path), content, "")]
        except CheckpointError:
            passed = True
        yield "flipped bit" if number % 2 else "truncation", passed
    path.write_bytes(original)


FIT = """
import sys
from lightning import Trainer
import torchppo
from torchppo.errors import TorchPPOError
damaged, valid = sys.argv[1:]
ppo = torchppo.PPO.load_from_checkpoint(valid)
env = torchppo.load_policy(valid).make_env(num_envs=4, seed=1)
collector = torchppo.Collector(env, ppo.actor, frames_per_env=32, total_frames=640)
ppo.total_frames = 640
try:
    Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False).fit(
        ppo, train_dataloaders=collector, ckpt_path=damaged, weights_only=True
    )
except TorchPPOError:
    sys.exit(5)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}"[:200])
"""


def damaged_commands(run_dir: Path, count: int) -> Iterator[tuple[str, bool]]:
    """Read damaged checkpoints through `eval`, `resume` and `fit`; exit code 5 means that they are refused."""
    generator, path = random.Random(1), run_dir / "checkpoints" / "last.ckpt"
    valid, original = path.with_name("best.ckpt"), path.read_bytes()
    path.with_name("previous.ckpt").unlink(missing_ok=True)
    for number in range(count):
        damaged = bytearray(original)
        place = generator.randrange(len(damaged))
        if number % 2:
            damaged[place] ^= 1 << generator.randrange(8)
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        for name, words in (
            ("eval", ["-m", "torchppo", "eval", str(path)]),
            ("fit", ["-c", FIT, str(path), str(valid)]),
        ):
            done = subprocess.run([sys.executable, *words], capture_output=True, check=False)
            # Lightning itself reports a file that it cannot read.
            yield f"damaged checkpoint through {name}", done.returncode == 5 or (name == "fit" and done.returncode == 1)
        done = subprocess.run([sys.executable, "-m", "torchppo", "resume", str(path)], capture_output=True, check=False)
        yield "damaged checkpoint through resume", done.returncode == 5 and len(done.stderr.splitlines()) == 1
    path.write_bytes(original)


def full_disk(folder: Path, size: int) -> Iterator[tuple[str, bool]]:
    """Limit the size of files of a training after its first checkpoint."""
    run_dir, log = folder / f"full{size}", folder / f"full{size}.log"
    path = run_dir / "checkpoints" / "last.ckpt"
    process = start([*TRAIN, "total_frames=100_000", f"run_dir={run_dir}"], log)
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
    code = finish(process)
    lines = [line for line in log.read_text().splitlines() if line.startswith(("torchppo:", "Traceback"))]
    yield "full disk: exit code 74", code == 74
    yield "full disk: one line", len(lines) == 1 and lines[0].startswith("torchppo:")
    try:
        yield "full disk: the old checkpoint loads", bool(newest_checkpoint(run_dir)[1])
    except CheckpointError:
        yield "full disk: the old checkpoint loads", False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damages", type=int, default=400, help="bit flips and truncations in process")
    parser.add_argument("--commands", type=int, default=10, help="damaged files through eval, resume and fit")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("damaged_files.csv"))
    args = parser.parse_args()
    counts: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        content = train_once(folder)
        path = folder / "run" / "checkpoints" / "last.ckpt"
        for results in (
            kills(content, folder),
            damages(content, path, args.damages),
            *(full_disk(folder, size) for size in (2_000, 20_000)),
            damaged_commands(folder / "run", args.commands),
        ):
            for what, passed in results:
                count = counts.setdefault(what, [0, 0])
                count[0] += 1
                count[1] += passed
            print(counts, flush=True)
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["date", "test", "cases", "passed"])
        writer.writerows([datetime.date.today(), what, *count] for what, count in counts.items())


if __name__ == "__main__":
    main()
