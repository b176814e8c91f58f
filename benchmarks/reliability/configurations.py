"""Runs every configuration of `tests/pipelines/cli/test_configurations.py` through the real command line.

    python benchmarks/reliability/configurations.py result.csv

One row per line: the decision of the test, exit code, seconds, CPU seconds (which other jobs hardly change), lines of
output, and whether this is as decided. A line that is refused must exit with 2 in at most 3 lines without a
traceback; a sound line must train.
"""

from __future__ import annotations

import csv
import importlib.util
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEST = Path(__file__).parents[2] / "tests" / "pipelines" / "cli" / "test_configurations.py"
TIMEOUT = 300


def main(result: Path) -> int:
    spec = importlib.util.spec_from_file_location("test_configurations", TEST)
    assert spec is not None
    assert spec.loader is not None
    lines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lines)
    decisions = {"refused": lines.REFUSED, "sound": lines.SOUND}
    rows, wrong = [], 0
    for decision, group in decisions.items():
        for line in group:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            code, seconds, text = run([*lines.BASE, *shlex.split(line)])
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            num_lines = len(text.splitlines())
            is_right = (
                code == 0 if decision == "sound" else code == 2 and num_lines <= 3
            ) and "Traceback (most" not in text
            wrong += not is_right
            shown = line.encode("unicode_escape").decode()[:80]
            rows.append([shown, decision, code, f"{seconds:.2f}", f"{cpu:.2f}", num_lines, "yes" if is_right else "NO"])
            print(*rows[-1], sep=" | ", flush=True)
    with result.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["line", "decision", "exit code", "seconds", "CPU seconds", "lines of output", "as decided"])
        writer.writerows(rows)
    print(f"{len(rows) - wrong} of {len(rows)} lines as decided")
    return int(wrong > 0)


def run(words: list[str]) -> tuple[int, float, str]:
    """Train in an empty folder; return the exit code, the duration, and the output. 124 is the code of a hang."""
    command = [sys.executable, "-m", "torchppo", "train", *words]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return 124, time.monotonic() - start, ""
    return done.returncode, time.monotonic() - start, done.stdout + done.stderr


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
