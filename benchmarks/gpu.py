"""Measure training on a GPU: eager, compiled, compiled with CUDA graphs, and with a minimal loop for comparison.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --rollouts 2    # a trial without a GPU

The environments return random arrays with the shapes of HalfCheetah-v5 and Atari games. They take almost no time, so
the results show the speed of the device. The minimal loop (`lean`) is `peers/gpu_loop.py`, with the same networks,
minibatches and optimizer steps. Each run is a separate process. Writes gpu.json: frames per second after the first two
rollouts, and the seconds of these two rollouts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

HERE = Path(__file__).parent
MODES = ("eager", "compiled", "cuda_graphs", "lean")
WARM_UP = 2  # rollouts that compile


class Shape(NamedTuple):
    """Sizes of a training."""

    observation: spaces.Box
    action: spaces.Space[Any]
    num_envs: int
    frames_per_env: int
    minibatch_size: int
    epochs: int
    policy: str


SHAPES = {
    "halfcheetah": Shape(
        observation=spaces.Box(-np.inf, np.inf, (17,), np.float32),
        action=spaces.Box(-1.0, 1.0, (6,), np.float32),
        num_envs=8,
        frames_per_env=2048,
        minibatch_size=2048,
        epochs=10,
        policy="mlp",
    ),
    "atari": Shape(spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6), 8, 128, 256, 4, "cnn"),
}


class Shaped(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Environments that return random arrays. Episodes are truncated after 1,000 steps.

    Args:
        num_envs: number of environments.
        shape: a key of `SHAPES`.

    """

    def __init__(self, num_envs: int, shape: str) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space, self.single_action_space = SHAPES[shape].observation, SHAPES[shape].action
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space.seed(0)
        self._observations = [self.observation_space.sample() for _ in range(16)]
        self._rewards = np.random.default_rng(0).normal(size=(16, num_envs))
        self._steps, self._none = np.zeros(num_envs, np.int64), np.zeros(num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._steps[(options or {}).get("reset_mask", slice(None))] = 0
        return self._observations[0], {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._steps += 1
        index = int(self._steps[0]) % 16
        return self._observations[index], self._rewards[index], self._none, self._steps >= 1000, {}


def ours(name: str, mode: str, device: str, rollouts: int, tick: Callable[[], None]) -> None:
    from lightning import Callback

    from torchppo.pipelines.build import build_trainer, build_training
    from torchppo.pipelines.cli.config import compose
    from torchppo.pipelines.run_files.progress import silence_lightning

    silence_lightning()
    if mode == "compiled":
        from torchppo.pipelines.compiled import graph

        vars(graph)["CudaGraph"] = lambda kernel, *_: kernel  # launch from Python
    shape = SHAPES[name]
    total = rollouts * shape.num_envs * shape.frames_per_env
    words = (
        *("env.id=torchppo.benchmarks.gpu.Shaped", f"+env.shape={name}", "env.vectorization=native"),
        *(f"env.num_envs={shape.num_envs}", f"collector.frames_per_env={shape.frames_per_env}"),
        *(f"update.minibatch_size={shape.minibatch_size}", f"update.epochs={shape.epochs}"),
        *(f"policy={shape.policy}", f"total_frames={total}", "logger=[]", f"compile={str(mode != 'eager').lower()}"),
        *(f"trainer.accelerator={'gpu' if device == 'cuda' else device}", "trainer.devices=1"),
    )

    class Timer(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            tick()

    cfg = compose([*words])
    trainer = build_trainer(cfg, [Timer()])
    training = build_training(cfg, 0)
    trainer.fit(training.ppo, train_dataloaders=training.collector)


def run(name: str, mode: str, device: str, rollouts: int) -> dict[str, float]:
    """Run one mode in this process."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    shape, times = SHAPES[name], [time.perf_counter()]

    def tick() -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    if mode == "lean":
        from torchppo.benchmarks.peers.gpu_loop import train

        train(shape, Shaped(shape.num_envs, name), device, WARM_UP + rollouts, tick)
    else:
        ours(name, mode, device, WARM_UP + rollouts, tick)
    return {
        "frames_per_second": rollouts * shape.num_envs * shape.frames_per_env / (times[-1] - times[WARM_UP]),
        "warm_up_seconds": times[WARM_UP] - times[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--rollouts", type=int, default=20, help="rollouts that are measured")
    parser.add_argument("--run", nargs=2, metavar=("SHAPE", "MODE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        name, mode = arguments.run
        print(json.dumps(run(name, mode, arguments.device, arguments.rollouts)))
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU; use --device cpu for a trial")
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    report: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine, "torch": torch.__version__}
    for name in SHAPES:
        report[name] = {}
        for mode in MODES:
            options = ["--device", arguments.device, "--rollouts", str(arguments.rollouts), "--run", name, mode]
            done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, check=True)
            report[name][mode] = json.loads(done.stdout.splitlines()[-1])
            print(name, mode, report[name][mode], flush=True)
            if arguments.device == "cuda":
                (HERE / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
