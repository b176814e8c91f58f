"""A custom objective: dual-clip PPO (Ye et al. 2020, eq. 5), which also bounds the loss of actions with A < 0.

An objective maps a minibatch to scalars: `loss_*`, whose sum is minimized, and metrics. Derive from `PPOLoss` to
replace only the policy loss; it adds the value loss, the entropy bonus and the KL divergence.

    python examples/own_objective.py
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
    """The clipped objective, bounded from below by `dual_clip` * A where A < 0."""

    clip_epsilon: Tensor

    def __init__(
        self, actor_network: Any, critic_network: Any, *, clip_epsilon: float, dual_clip: float, **options: Any
    ) -> None:
        super().__init__(actor_network, critic_network, **options)
        # A buffer, so that controller.clip_epsilon applies.
        self.register_buffer("clip_epsilon", torch.tensor(clip_epsilon), persistent=False)
        self.dual_clip = dual_clip

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        surrogate = clipped_surrogate(log_ratio, advantage, self.clip_epsilon)
        return -torch.where(advantage < 0, torch.maximum(surrogate, self.dual_clip * advantage), surrogate)

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        return {"bounded_fraction": (log_ratio.exp() > self.dual_clip).float().mean()}


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains objective/dual_clip.yaml, which names DualClipPPOLoss
    sys.exit(main(["train", "experiment=cartpole", "objective=dual_clip", "--config-dir", str(conf), *sys.argv[1:]]))
