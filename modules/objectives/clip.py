"""The clipped PPO objective."""

from __future__ import annotations

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from ...errors import ConfigurationError
from .ppo_loss import PPOLoss, probability_ratio


class ClipPPOLoss(PPOLoss):
    """The clipped objective.

    Source: Schulman et al. 2017, eq. 7 and 9.

    Args:
        actor_network: See `PPOLoss`.
        critic_network: See `PPOLoss`.
        clip_epsilon: Distance of the probability ratio from 1 at which it is clipped.
        entropy_coeff: See `PPOLoss`.
        critic_coeff: See `PPOLoss`.
        clip_value: See `PPOLoss`.

    Raises:
        ConfigurationError: If `clip_epsilon` is not positive; see also `PPOLoss`.

    """

    clip_epsilon: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        clip_epsilon: float = 0.2,
        entropy_coeff: float = 0.0,
        critic_coeff: float = 0.5,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(
            actor_network, critic_network, entropy_coeff=entropy_coeff, critic_coeff=critic_coeff, clip_value=clip_value
        )
        if clip_epsilon <= 0:
            raise ConfigurationError(f"objective.clip_epsilon={clip_epsilon} must be positive; 0.2 is usual")
        self.register_buffer("clip_epsilon", torch.tensor(float(clip_epsilon)), persistent=False)

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """Return the negative of `clipped_surrogate`."""
        return -clipped_surrogate(log_ratio, advantage, self.clip_epsilon)

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return `clip_fraction`, the fraction of samples with |r - 1| > epsilon."""
        return {"clip_fraction": (log_ratio.expm1().abs() > self.clip_epsilon).float().mean()}


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip_epsilon: Tensor) -> Tensor:
    """Compute min(r A, clip(r, 1 - epsilon, 1 + epsilon) A), with r = exp(log_ratio), which is maximized.

    Source: Schulman et al. 2017, eq. 7. Shapes: `[batch], [batch], [] -> [batch]`.
    """
    ratio = probability_ratio(log_ratio)
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon) * advantage)
