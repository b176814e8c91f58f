"""Your own objective: the dual clip of Ye et al. 2020 (eq. 5), which also bounds the loss of bad actions.

An objective reads a minibatch and returns `loss_*` scalars, whose sum is minimised, and metrics. Whoever wants
only another policy loss derives from PPOLoss, which brings the value loss, the entropy bonus and the KL monitor.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchppo.modules.objectives.clip import clipped_surrogate
from torchppo.modules.objectives.ppo_loss import PPOLoss
from torchppo.pipelines.cli.main import main


class DualClipPPOLoss(PPOLoss):
    """The clipped objective, and for A < 0 no less than `dual_clip` x A."""

    clip_epsilon: Tensor

    def __init__(
        self, actor_network: Any, critic_network: Any, *, clip_epsilon: float, dual_clip: float, **options: Any
    ) -> None:
        super().__init__(actor_network, critic_network, **options)
        self.register_buffer("clip_epsilon", torch.tensor(clip_epsilon), persistent=False)  # a schedule can move it
        self.dual_clip = dual_clip

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        surrogate = clipped_surrogate(log_ratio, advantage, self.clip_epsilon)
        return -torch.where(advantage < 0, torch.maximum(surrogate, self.dual_clip * advantage), surrogate)

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        return {"bounded_fraction": (log_ratio.exp() > self.dual_clip).float().mean()}


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # objective/dual_clip.yaml names the class above
    sys.exit(main(["train", "experiment=cartpole", "objective=dual_clip", "--config-dir", str(conf), *sys.argv[1:]]))
