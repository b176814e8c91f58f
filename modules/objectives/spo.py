"""The objective of simple policy optimization (SPO)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from ...errors import ConfigurationError
from ..distributions.action import MAX_LOG_RATIO, clip_fraction, ratio_metrics
from .ppo_loss import PPOLoss


class SPOLoss(PPOLoss):
    """Simple policy optimization: a quadratic penalty keeps the ratio r near [1 - eps, 1 + eps].

    The maximum of r A - |A| (r - 1)^2 / (2 eps) is at r = 1 + eps sign(A). Unlike the clipped objective, it has a
    gradient outside of the range.

    Source: Xie et al. 2025, "Simple policy optimization".

    Args:
        actor_network: See `PPOLoss`.
        critic_network: See `PPOLoss`.
        epsilon: Distance of the optimal ratio from 1 (eps), stored in a buffer.
        options: See `PPOLoss`.

    Raises:
        ConfigurationError: If `epsilon` is not positive; see also `PPOLoss`.

    """

    metric_keys: ClassVar[tuple[str, ...]] = ("clip_fraction", "ESS", "max_ratio", "mean_ratio")
    epsilon: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        epsilon: float = 0.2,
        **options: Any,
    ) -> None:
        if not epsilon > 0:
            raise ConfigurationError(f"objective.epsilon={epsilon} must be positive; 0.2 is usual")
        super().__init__(actor_network, critic_network, **options)
        self.register_buffer("epsilon", torch.tensor(float(epsilon)), persistent=False)

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """Return -(r A - |A| (r - 1)^2 / (2 eps))."""
        ratio = log_ratio.clamp(max=MAX_LOG_RATIO / 2).exp()  # so that its square is finite
        return advantage.abs() * (ratio - 1).square() / (2 * self.epsilon) - ratio * advantage

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return `clip_fraction`, the fraction of ratios outside of the range, and `ratio_metrics`."""
        return {"clip_fraction": clip_fraction(log_ratio, self.epsilon, self.epsilon), **ratio_metrics(log_ratio)}
