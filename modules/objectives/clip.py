"""The clipped PPO objective."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torchrl.objectives as torchrl_objectives
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from ...errors import ConfigurationError
from ..distributions.action import clip_fraction, probability_ratio, ratio_metrics
from .ppo_loss import PPOLoss


class ClipPPOLoss(PPOLoss, torchrl_objectives.ClipPPOLoss):
    """The clipped objective, a subclass of `torchrl.objectives.ClipPPOLoss`.

    Source: Schulman et al. 2017, eq. 7 and 9; for `dual_clip` Ye et al. 2020, eq. 5.

    Args:
        actor_network: See `PPOLoss`.
        critic_network: See `PPOLoss`.
        clip_epsilon: Distance of the probability ratio from 1 at which it is clipped. A pair contains the
            distances below and above 1 (Yu et al. 2025, eq. 10), stored in the buffers `clip_epsilon_low` and
            `clip_epsilon_high`.
        dual_clip: Largest ratio c > 1 that counts for a negative advantage A: the surrogate is at least c A. `None`
            means no limit.
        options: See `PPOLoss`.

    Raises:
        ConfigurationError: If `clip_epsilon` is not positive, the lower distance is not below 1, or `dual_clip` is not
            above 1; see also `PPOLoss`.

    """

    metric_keys: ClassVar[tuple[str, ...]] = ("clip_fraction", "ESS", "max_ratio", "mean_ratio")
    clip_epsilon: Tensor
    clip_epsilon_low: Tensor
    clip_epsilon_high: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        clip_epsilon: float | tuple[float, float] = 0.2,
        dual_clip: float | None = None,
        **options: Any,
    ) -> None:
        is_pair = isinstance(clip_epsilon, tuple | list)
        try:
            epsilons = [float(one) for one in clip_epsilon] if is_pair else [float(clip_epsilon)]  # type: ignore[union-attr, arg-type]
        except (TypeError, ValueError):  # not numbers
            epsilons = []
        if min(epsilons, default=0) <= 0 or (is_pair and (len(epsilons) != 2 or epsilons[0] >= 1)):
            raise ConfigurationError(
                f"objective.clip_epsilon={clip_epsilon} must be positive, or a pair [low, high] with low < 1; 0.2 is "
                "usual"
            )
        if dual_clip is not None and not dual_clip > 1:
            raise ConfigurationError(
                f"objective.dual_clip={dual_clip} must be above 1, or null for no limit; 3 is usual"
            )
        super().__init__(
            actor_network, critic_network, clip_epsilon=tuple(epsilons) if is_pair else epsilons[0], **options
        )
        self.dual_clip = dual_clip

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """Return the negative of `clipped_surrogate`, or of max(`clipped_surrogate`, c A) where A < 0."""
        surrogate = clipped_surrogate(log_ratio, advantage, *self._epsilons())
        if self.dual_clip is None:
            return -surrogate
        return -torch.where(advantage < 0, torch.maximum(surrogate, self.dual_clip * advantage), surrogate)

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return `clip_fraction`, the fraction of samples where the ratio is clipped, and `ratio_metrics`."""
        return {"clip_fraction": clip_fraction(log_ratio, *self._epsilons()), **ratio_metrics(log_ratio)}

    def _epsilons(self) -> tuple[Tensor, Tensor]:
        if self._asymmetric_clip:
            return self.clip_epsilon_low, self.clip_epsilon_high
        return self.clip_epsilon, self.clip_epsilon


def clipped_surrogate(
    log_ratio: Tensor, advantage: Tensor, clip_epsilon: Tensor, clip_epsilon_high: Tensor | None = None
) -> Tensor:
    """Compute min(r A, clip(r, 1 - low, 1 + high) A), with r = exp(log_ratio), which is maximized.

    Without `clip_epsilon_high`, `clip_epsilon` is both `low` and `high`.

    Source: Schulman et al. 2017, eq. 7. Shapes: `[batch, 1], [batch, 1], [], [] -> [batch, 1]`.
    """
    ratio = probability_ratio(log_ratio)
    high = clip_epsilon if clip_epsilon_high is None else clip_epsilon_high
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_epsilon, 1 + high) * advantage)
