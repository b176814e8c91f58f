"""Kills trainings at random times with SIGKILL, continues them, and compares the results bit by bit.

    python benchmarks/reliability/kill_resume.py --kills 5 --output benchmarks/reliability/kill_resume.csv
    python benchmarks/reliability/kill_resume.py --kills 5 --ranks 2 --configurations cartpole-eager-in_process ...

Every configuration is trained once without interruption. Another run of it is killed several times and continued with
`torchppo resume` after every kill. Rows are appended to the output; configurations that it already has with as many
kills and ranks are skipped.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import random
import shutil
import tempfile
from pathlib import Path

from torchppo.benchmarks.reliability.runs import configurations, differences, finish, frames_of, kill_after, start

FIELDS = ("date", "configuration", "ranks", "kills", "without_checkpoint", "killed_at", "equal", "differs")


def measure(name: str, words: list[str], args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Train a configuration with and without kills, and return a row of the results."""
    generator = random.Random(f"{args.seed} {name} {args.ranks}")
    expected, run_dir = folder / "expected", folder / "killed"
    row = {"date": datetime.date.today(), "configuration": name, "ranks": args.ranks, "kills": 0, "equal": False}
    if args.ranks > 1:
        words = [*words, f"trainer.devices={args.ranks}", "trainer.strategy=ddp"]
    train = ["train", *words]
    if code := finish(start([*train, f"run_dir={expected}"], folder / "expected.log")):
        return {**row, "differs": f"the training ended with exit code {code}"}
    total, without = frames_of(expected), 0
    places: list[int] = []
    for target in sorted(generator.randint(0, total) for _ in range(args.kills)):
        has_checkpoint = (run_dir / "checkpoints" / "last.ckpt").exists()
        if not has_checkpoint:
            without += len(places) > 0
            shutil.rmtree(run_dir, ignore_errors=True)
        command = ["resume", str(run_dir)] if has_checkpoint else [*train, f"run_dir={run_dir}"]
        process = start(command, folder / "killed.log")
        if not kill_after(process, run_dir, target, generator.uniform(0.0, 0.1)):
            break  # the run has ended
        places.append(frames_of(run_dir))
    has_checkpoint = (run_dir / "checkpoints" / "last.ckpt").exists()
    command = ["resume", str(run_dir)] if has_checkpoint else [*train, f"run_dir={run_dir}"]
    code = finish(start(command, folder / "killed.log"))
    found = [f"exit code {code}"] if code else list(differences(run_dir, expected))
    return {
        **row,
        "kills": len(places),
        "without_checkpoint": without,
        "killed_at": " ".join(map(str, places)),
        "equal": not found,
        "differs": "; ".join(found[:5]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", nargs="*", default=list(configurations()))
    parser.add_argument("--kills", type=int, default=5, help="kills of each configuration")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the kills")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("kill_resume.csv"))
    parser.add_argument("--keep", type=Path, help="folder for the runs that differ")
    args = parser.parse_args()
    rows = list(csv.DictReader(args.output.open(newline=""))) if args.output.exists() else []
    done = {(row["configuration"], row["ranks"]) for row in rows if int(row["kills"]) >= args.kills}
    for name in args.configurations:
        if (name, str(args.ranks)) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, configurations()[name], args, Path(folder))
            if args.keep and not row["equal"]:
                shutil.copytree(folder, args.keep / name, dirs_exist_ok=True)
        is_new = not args.output.exists()
        with args.output.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
