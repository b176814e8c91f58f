"""The clipped objective with rollback (PPO-RB and Truly PPO)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from ...errors import ConfigurationError
from ..distributions.action import clip_fraction, probability_ratio, ratio_metrics
from .ppo_loss import PPOLoss


class RollbackPPOLoss(PPOLoss):
    """The clipped objective, with a gradient toward the range where the clipped objective is constant.

    Outside of [1 - eps, 1 + eps], (1 + alpha) (1 +- eps) - alpha r replaces the clipped ratio. Its slope in r is -alpha
    (PPO-RB). With `max_kl`, the KL divergence decides instead (Truly PPO): where KL(old || new) is
    at least `max_kl` and r A > A, the objective is r A - alpha (KL - `max_kl`), else it is r A. The constant
    alpha `max_kl`, which the paper omits, makes the objective continuous.

    Source: Wang et al. 2019, "Truly proximal policy optimization".

    Args:
        actor_network: See `PPOLoss`.
        critic_network: See `PPOLoss`.
        clip_epsilon: Distance of the ratio from 1 at which the rollback begins (eps), stored in a buffer.
        alpha: Slope of the rollback; with `max_kl`, weight of the KL divergence.
        max_kl: KL divergence of a state at which the rollback begins, in nats. `None` uses `clip_epsilon`.
        options: See `PPOLoss`.

    Raises:
        ConfigurationError: If a value is not positive; see also `PPOLoss`.

    """

    metric_keys: ClassVar[tuple[str, ...]] = ("clip_fraction", "ESS", "max_ratio", "mean_ratio")
    clip_epsilon: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        clip_epsilon: float = 0.2,
        alpha: float = 0.3,
        max_kl: float | None = None,
        **options: Any,
    ) -> None:
        for name, value, usual in (
            ("clip_epsilon", clip_epsilon, 0.2),
            ("alpha", alpha, 0.3),
            ("max_kl", max_kl, 0.03),
        ):
            if value is not None and not value > 0:
                raise ConfigurationError(f"objective.{name}={value} must be positive; {usual} is usual")
        super().__init__(actor_network, critic_network, **options)
        self.register_buffer("clip_epsilon", torch.tensor(float(clip_epsilon)), persistent=False)
        self.alpha = alpha
        self.max_kl = max_kl

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """Return the negative of the objective."""
        ratio = probability_ratio(log_ratio)
        if self.max_kl is not None:
            is_outside = (kl >= self.max_kl) & (ratio * advantage > advantage)
            return torch.where(is_outside, self.alpha * (kl - self.max_kl), 0.0) - ratio * advantage
        nearest = ratio.detach().clamp(1 - self.clip_epsilon, 1 + self.clip_epsilon)
        rolled_back = (1 + self.alpha) * nearest - self.alpha * ratio
        counted = torch.where(ratio == nearest, ratio, rolled_back)
        return -torch.minimum(ratio * advantage, counted * advantage)

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return `clip_fraction`, the fraction of ratios outside of the range, and `ratio_metrics`."""
        epsilon = self.clip_epsilon
        return {"clip_fraction": clip_fraction(log_ratio, epsilon, epsilon), **ratio_metrics(log_ratio)}
