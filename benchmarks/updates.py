"""Milliseconds of an optimiser step, as a graph and eagerly, on a rollout that is already there.

    python benchmarks/updates.py                        # on the device that Lightning chooses
    python benchmarks/updates.py --only pong pong_bf16 -- trainer.accelerator=cpu

On CUDA a compiled graph is recorded and replayed. Every way trains on the same rollout in a process of its own; the
first update, which compiles and warms up, is not counted. Writes updates.json.
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
WAYS = ("false", "trace", "true")
UPDATES = 5


class Rollouts:
    """The same one again and again, of a known number, so that Lightning does not prefetch.

    `first` is how many seconds the first update took.
    """

    def __init__(self, rollout: Any, clock: dict[str, float]) -> None:
        self.first = 0.0
        self._rollout = rollout
        self._clock = clock

    def __len__(self) -> int:
        return UPDATES + 1

    def __iter__(self) -> Iterator[Any]:
        yield self._rollout.clone()
        self.first = self._clock["update"]
        for _ in range(UPDATES):
            yield self._rollout.clone()


def run(name: str, way: str, overrides: list[str]) -> dict[str, float | str]:
    """One way of one workload in this process."""
    import warnings

    import torch

    from torchppo.benchmarks.workloads import WORKLOADS, configuration  # type: ignore[import-not-found, unused-ignore]
    from torchppo.pipelines.build import build_trainer, build_training
    from torchppo.pipelines.train import silence_lightning

    warnings.simplefilter("ignore")
    silence_lightning()
    torch.set_num_threads(1)
    work = WORKLOADS[name]
    frames = f"total_frames={(UPDATES + 1) * work.frames}"
    cfg = configuration(work, (f"compile={way}", frames, "collector.double_buffer=false", *overrides))
    trainer, training = build_trainer(cfg, []), build_training(cfg, 0)
    rollout = next(iter(training.collector))
    training.env.close()
    rollouts = Rollouts(rollout, training.ppo.seconds)
    trainer.fit(training.ppo, train_dataloaders=rollouts)
    device = trainer.strategy.root_device
    name_of = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "milliseconds": 1e3 * (training.ppo.seconds["update"] - rollouts.first) / (UPDATES * work.steps),
        "device": name_of,
    }


def measure(name: str, way: str, overrides: list[str]) -> dict[str, float | str]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--run", name, way, "--", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} with compile={way} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float | str] = json.loads(done.stdout.strip().splitlines()[-1])
    print(name, f"compile={way}", figures, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["halfcheetah_1", "halfcheetah_8", "pong", "pong_bf16"])
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, overrides = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    if arguments.run:
        name, way = arguments.run
        print(json.dumps(run(name, way, overrides)))
        return
    table = Table(title="milliseconds of an optimiser step")
    for column in ("workload", "device", *(f"compile={way}" for way in WAYS)):
        table.add_column(column)
    report = {}
    for name in arguments.only:
        report[name] = {way: measure(name, way, overrides) for way in WAYS}
        cells = (f"{report[name][way]['milliseconds']:.3f}" for way in WAYS)
        table.add_row(name, str(report[name]["true"]["device"]), *cells)
    Console().print(table)
    (HERE / "updates.json").write_text(json.dumps({"date": date.today().isoformat(), **report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
