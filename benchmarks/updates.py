"""Measure the duration of an optimizer step with eager, traced and compiled steps (compile=false, trace, true).

    python benchmarks/updates.py                        # on the device that Lightning chooses
    python benchmarks/updates.py --only pong pong_bf16 -- trainer.accelerator=cpu

Each mode trains repeatedly on one rollout, in a separate process. The first update, which compiles and warms up, is
not counted. On CUDA, compiled steps are replayed as CUDA graphs. Words after `--` are overrides. Writes updates.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
MODES = ("false", "trace", "true")
UPDATES = 5


class Rollouts:
    """Repeats one rollout. Has a length, because Lightning prefetches from loaders without one.

    Args:
        rollout: `[num_envs, time]`.
        seconds: `PPO.seconds`; its entry `update` after the first update is stored as `first`.

    """

    def __init__(self, rollout: Any, seconds: dict[str, float]) -> None:
        self.first = 0.0
        self._rollout = rollout
        self._seconds = seconds

    def __len__(self) -> int:
        return UPDATES + 1

    def __iter__(self) -> Iterator[Any]:
        yield self._rollout.clone()
        self.first = self._seconds["update"]
        for _ in range(UPDATES):
            yield self._rollout.clone()


def run(name: str, mode: str, overrides: list[str]) -> dict[str, float | str]:
    """Measure one mode on one workload in this process."""
    import warnings

    import torch

    from torchppo.benchmarks.workloads import WORKLOADS, configuration  # type: ignore[import-not-found, unused-ignore]
    from torchppo.pipelines.build import build_trainer, build_training
    from torchppo.pipelines.run_files.progress import silence_lightning

    warnings.simplefilter("ignore")
    silence_lightning()
    torch.set_num_threads(1)
    work = WORKLOADS[name]
    frames = f"total_frames={(UPDATES + 1) * work.frames}"
    cfg = configuration(work, (f"compile={mode}", frames, "collector.double_buffer=false", *overrides))
    trainer, training = build_trainer(cfg, []), build_training(cfg, 0)
    rollout = next(iter(training.collector))
    training.close()
    rollouts = Rollouts(rollout, training.ppo.seconds)
    trainer.fit(training.ppo, train_dataloaders=rollouts)
    device = trainer.strategy.root_device
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "milliseconds": 1e3 * (training.ppo.seconds["update"] - rollouts.first) / (UPDATES * work.steps),
        "device": device_name,
    }


def measure(name: str, mode: str, overrides: list[str]) -> dict[str, float | str]:
    """Run `run(name, mode, overrides)` in a new process."""
    command = [sys.executable, __file__, "--run", name, mode, "--", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} with compile={mode} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float | str] = json.loads(done.stdout.strip().splitlines()[-1])
    print(name, f"compile={mode}", result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", default=["halfcheetah_1", "halfcheetah_8", "pong", "pong_bf16"], help="workloads"
    )
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    separator = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, overrides = parser.parse_args(sys.argv[1:separator]), sys.argv[separator + 1 :]
    if arguments.run:
        name, mode = arguments.run
        print(json.dumps(run(name, mode, overrides)))
        return
    table = Table(title="milliseconds per optimizer step")
    for column in ("workload", "device", *(f"compile={mode}" for mode in MODES)):
        table.add_column(column)
    report = {}
    for name in arguments.only:
        report[name] = {mode: measure(name, mode, overrides) for mode in MODES}
        cells = (f"{report[name][mode]['milliseconds']:.3f}" for mode in MODES)
        table.add_row(name, str(report[name]["true"]["device"]), *cells)
    Console().print(table)
    (HERE / "updates.json").write_text(json.dumps({"date": date.today().isoformat(), **report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
