"""Train every choice of nine groups with two ranks, and compare their weights.

    python benchmarks/two_ranks.py
    python benchmarks/two_ranks.py --groups objective update

The groups are objectives, trust regions, updates, estimators, critics, controllers of the learning rate, intrinsic
rewards, memories and symmetries. Each training has two rollouts of different data on each rank, with eager and with
traced steps. After it, all parameters, normalizers, coefficients and states of the optimizer must be equal on both
ranks, and different from those at the start. The two processes train one choice after the other. Writes one row per
training to a CSV file, and exits with 1 if two ranks differ or a training fails. Takes about 10 minutes.
"""

from __future__ import annotations

import argparse
import csv
import os
import socket
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, seed_everything
from tensordict import TensorDictBase
from torch import Tensor, distributed

from torchppo.errors import TorchPPOError
from torchppo.pipelines.build import build_trainer, build_training
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.keys.reference import CONF
from torchppo.pipelines.components.instantiate import seed_for_rank

GROUPS = (
    *("objective", "trust_region", "update", "estimator", "critic", "controller", "intrinsic", "memory", "symmetry"),
)
SETTINGS = (
    *("env.num_envs=2", "collector.frames_per_env=32", "update.minibatch_size=32", "update.epochs=2"),
    *("total_frames=256", "policy.body.num_cells=[16]", "optimizer.lr=3e-3", "eval.episodes=0", "logger=[]"),
    *("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "run_dir=unused"),
)
MORE = {
    "update=ppg": ("update.num_rollouts=2", "update.auxiliary_epochs=1"),
    "symmetry=mirror": ("ppo.symmetry.mirror._target_=two_ranks.mirror", "ppo.symmetry.mirror_coeff=0.1"),
    "controller=target_entropy": ("objective.entropy_coeff=0.01",),
    **{f"intrinsic={name}": ("env.id=FrozenLake-v1",) for name in ("count", "e3b", "icm", "noveld", "rnd")},
}
"""Further overrides of a choice. The environment of the others is Pendulum-v1."""
EAGER_ONLY = ("objective=torchrl_kl_penalty",)
"""Choices that cannot be traced."""


def mirror(data: TensorDictBase) -> TensorDictBase:
    """Mirror a pendulum."""
    data["observation"] = data["observation"] * torch.tensor([1.0, -1.0, -1.0])
    data["action"] = -data["action"]
    return data


def choices(group: str) -> list[str]:
    """Return the choices of a group, such as `objective=clip`."""
    return [f"{group}={path.stem}" for path in sorted((CONF / group).glob("*.yaml"))]


def overrides(choice: str) -> list[str]:
    """Return the overrides of a choice. `target_entropy` controls the entropy coefficient, others the learning rate."""
    group, _, name = choice.partition("=")
    key = "entropy_coeff" if name == "target_entropy" else "lr"
    word = f"controller@controller.{key}={name}" if group == "controller" else choice
    return [*SETTINGS, "env.id=Pendulum-v1", *MORE.get(choice, ()), word]


def on_both_ranks(tensor: Tensor) -> tuple[Tensor, Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(2)]
    distributed.all_gather(parts, tensor.contiguous())
    return parts[0], parts[1]


def values_of(ppo: Any) -> Tensor:
    """Return all parameters, buffers of floats and states of the optimizer as one vector."""
    tensors = [*ppo.parameters(), *ppo.buffers()]
    tensors += [value for state in ppo.optimizer.state.values() for value in state.values()]
    tensors += [torch.tensor(float(group["lr"])) for group in ppo.optimizer.param_groups]
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors if tensor.is_floating_point()])


def train(choice: str, mode: str) -> dict[str, Any]:
    """Train two rollouts and compare the ranks; return a part of a row of the CSV file."""
    cfg = compose([*overrides(choice), f"compile={mode}"])
    trainer = build_trainer(cfg, list[Callback]())
    seed_everything(seed_for_rank(0, trainer.global_rank), verbose=False)
    training = build_training(cfg, trainer.global_rank)
    ppo, learn, data = training.ppo, training.ppo.training_step, list[bool]()
    start = torch.cat([param.detach().flatten() for param in ppo.parameters()])

    def training_step(rollout: TensorDictBase) -> None:
        data.append(torch.equal(*on_both_ranks(rollout["observation"])))
        learn(rollout)

    ppo.training_step = training_step  # type: ignore[method-assign]
    trainer.fit(ppo, train_dataloaders=training.collector)
    training.close()
    first, second = on_both_ranks(values_of(ppo))
    moved = float((torch.cat([param.detach().flatten() for param in ppo.parameters()]) - start).abs().max())
    difference = float((first - second).abs().max())
    is_good = difference == 0 and len(data) == 2 and not any(data) and moved > 0
    return {"rollouts": len(data), "difference": difference, "result": "ok" if is_good else "DIFFERS"}


def run_rank(names: list[str], output: Path) -> int:
    """Train all choices on this rank; rank 0 writes the results."""
    torch.set_num_threads(1)
    results = []
    for choice in names:
        for mode in ("false",) if choice in EAGER_ONLY else ("false", "trace"):
            row: dict[str, Any] = {"date": date.today().isoformat(), "choice": choice, "compile": mode}
            try:
                row |= train(choice, mode)
            except TorchPPOError as error:
                row |= {"rollouts": 0, "difference": "", "result": str(error)}
            results.append(row)
            if os.environ["LOCAL_RANK"] == "0":
                print(*row.values(), flush=True)
                with output.open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                    writer.writerows(results)
    return int(any(row["result"] != "ok" for row in results))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--choices", nargs="+", help="only these, such as objective=clip")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "two_ranks.csv")
    arguments = parser.parse_args()
    names = arguments.choices or [choice for group in arguments.groups for choice in choices(group)]
    if "LOCAL_RANK" in os.environ:
        return run_rank(names, arguments.output)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    processes = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **ranks, "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    return max(process.wait() for process in processes)


if __name__ == "__main__":
    sys.exit(main())
