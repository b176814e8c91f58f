"""Compare 50 optimizer steps of every objective in graphs with eager steps.

    python benchmarks/objective_steps.py
    python benchmarks/objective_steps.py --objectives spo espo --envs CartPole-v1 --no-compiled

The losses, the metrics and the norm of the gradient of each traced step are bitwise those of the objective and of
autograd for the same weights. After all steps, the weights of traced and compiled steps equal those of eager steps to
1e-5; they are not bitwise equal, because graphs clip the gradient and run Adam on one vector. Prints one line for each
objective and environment, writes it to a CSV file, and exits with 1 if a difference is too large. A run without
`--objectives` takes about 20 minutes, most of which are compilation.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import torch
from lightning import Callback, seed_everything
from tensordict import TensorDictBase

from torchppo.pipelines.build import build_trainer, build_training
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.eager_step import scalars, total_loss

OBJECTIVES = (
    *("clip", "clip objective.dual_clip=3", "clip objective.clip_epsilon=[0.2,0.28]"),
    *("clip objective.max_importance_ratio=1.1", "clip objective.importance_quantile=0.9"),
    *("kl_penalty", "kl_penalty_fixed", "unclipped", "spo", "espo", "rollback", "rollback objective.max_kl=0.001"),
    *("ppo_ewma", "ppo_ewma objective.importance_quantile=0.9", "a2c", "reinforce"),
    *("clip trust_region=frobenius", "clip trust_region=wasserstein", "clip trust_region=kl"),
    "clip critic=quadratic_advantage",
)
ENVS = ("CartPole-v1", "Pendulum-v1")
UNSUPPORTED = dict.fromkeys(("clip trust_region=wasserstein", "clip critic=quadratic_advantage"), ("CartPole-v1",))
"""Environments that a setting does not support, because their actions are discrete."""
NUM_STEPS = 50  # 5 rollouts, 2 epochs of 5 minibatches
SETTINGS = (
    *("env.num_envs=4", "collector.frames_per_env=40", "update.minibatch_size=32", "update.epochs=2", "logger=[]"),
    *(
        "total_frames=800",
        "trainer.accelerator=cpu",
        "policy.body.num_cells=[16]",
        "optimizer.lr=3e-3",
        "eval.episodes=0",
    ),
)


def train(objective: str, env_id: str, compile_: str) -> tuple[torch.Tensor, int, int]:
    """Return all parameters and buffers after the training, the number of steps, and the number of equal steps."""
    seed_everything(0, verbose=False)
    words = [
        f"objective={objective.split(maxsplit=1)[0]}",
        *objective.split()[1:],
        f"env.id={env_id}",
        f"compile={compile_}",
    ]
    cfg = compose([*SETTINGS, *words, "run_dir=unused"])
    training = build_training(cfg, rank=0)
    ppo, num_equal = training.ppo, [0]
    take_step = ppo.step

    def step(rows: TensorDictBase, indices: torch.Tensor) -> Mapping[str, torch.Tensor] | None:
        expected = eager_metrics(ppo, rows[indices])
        found = take_step(rows, indices)
        num_equal[0] += found is not None and all(torch.equal(found[name], expected[name]) for name in expected)
        return found

    ppo.step = step  # type: ignore[method-assign]
    trainer = build_trainer(cfg, list[Callback]())
    trainer.fit(ppo, train_dataloaders=training.collector)
    training.close()
    weights = torch.cat([value.flatten().float() for value in ppo.state_dict().values()])
    return weights, trainer.global_step, num_equal[0]


def eager_metrics(ppo: PPO, minibatch: TensorDictBase) -> dict[str, torch.Tensor]:
    """Return the losses and metrics of a minibatch, and the norm of the gradient as one vector."""
    with torch.enable_grad():
        losses = ppo.losses(minibatch)
        parameters = [param for param in ppo.losses.parameters() if param.requires_grad]
        gradients = torch.autograd.grad(total_loss(losses, ppo.loss_weights), parameters)
    return {**scalars(losses), "grad_norm": torch.cat([gradient.flatten() for gradient in gradients]).norm()}


def compare(objective: str, env_id: str, modes: tuple[str, ...]) -> dict[str, str | int]:
    """Train eagerly and in the modes, and return a row of the CSV file."""
    weights, steps, _ = train(objective, env_id, "false")
    is_good = bool(weights.isfinite().all())
    row: dict[str, str | int] = {
        "date": date.today().isoformat(),
        "objective": objective,
        "env": env_id,
        "steps": steps,
    }
    for mode in modes:
        others, num_steps, num_equal = train(objective, env_id, mode)
        difference = float((others - weights).abs().max())
        is_good &= num_steps == steps and difference <= 1e-5 and (mode != "trace" or num_equal == steps)
        row |= {f"{mode}_bitwise_steps": num_equal, f"{mode}_difference": f"{difference:.1e}"}
    return {**row, "result": "ok" if is_good else "DIFFERS"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES))
    parser.add_argument("--envs", nargs="+", default=list(ENVS))
    parser.add_argument("--no-compiled", action="store_true", help="compare traced steps only")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "objective_steps.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    modes = ("trace",) if arguments.no_compiled else ("trace", "true")
    results = []
    for objective in arguments.objectives:
        for env_id in arguments.envs:
            if env_id in UNSUPPORTED.get(objective, ()):
                continue
            results.append(compare(objective, env_id, modes))
            print(*results[-1].values(), flush=True)
            with arguments.output.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(results[0]))
                writer.writeheader()
                writer.writerows(results)
    return int(any(row["result"] != "ok" for row in results))


if __name__ == "__main__":
    sys.exit(main())
