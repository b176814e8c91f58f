"""A custom objective: soft clipping with a sigmoid of the probability ratio (P3O; Chen et al. 2022).

An objective maps a minibatch to scalars: `loss_*`, whose sum is minimized, and metrics. Derive from `PPOLoss` to
replace only the policy loss; it adds the value loss, the entropy bonus and the KL divergence.

    python examples/own_objective.py
"""

import sys
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchppo.modules.distributions.action import probability_ratio
from torchppo.modules.objectives.ppo_loss import PPOLoss
from torchppo.pipelines.cli.main import main


class SoftClipPPOLoss(PPOLoss):
    """Maximizes 4 / t sigmoid(t (r - 1)) A, whose gradient equals that of r A at r = 1 and vanishes far from it."""

    metric_keys: ClassVar[tuple[str, ...]] = ("saturated_fraction",)
    temperature: Tensor

    def __init__(self, actor_network: Any, critic_network: Any, *, temperature: float, **options: Any) -> None:
        super().__init__(actor_network, critic_network, **options)
        # A buffer, so that controller.temperature applies.
        self.register_buffer("temperature", torch.tensor(temperature), persistent=False)

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        scaled = self.temperature * (probability_ratio(log_ratio) - 1)
        return -4 / self.temperature * scaled.sigmoid() * advantage

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        is_saturated = (self.temperature * log_ratio.expm1()).abs() > 2
        return {"saturated_fraction": is_saturated.float().mean()}


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains objective/soft_clip.yaml, which names SoftClipPPOLoss
    sys.exit(main(["train", "experiment=cartpole", "objective=soft_clip", "--config-dir", str(conf), *sys.argv[1:]]))
