"""The clipped PPO objective."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torchrl.objectives as torchrl_objectives
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from ...errors import ConfigurationError
from .ppo_loss import PPOLoss, probability_ratio


class ClipPPOLoss(PPOLoss, torchrl_objectives.ClipPPOLoss):
    """The clipped objective, a subclass of `torchrl.objectives.ClipPPOLoss`.

    Source: Schulman et al. 2017, eq. 7 and 9.

    Args:
        actor_network: See `PPOLoss`.
        critic_network: See `PPOLoss`.
        clip_epsilon: Distance of the probability ratio from 1 at which it is clipped. A pair contains the
            distances below and above 1 (Yu et al. 2025, eq. 10), stored in the buffers `clip_epsilon_low` and
            `clip_epsilon_high`.
        options: See `PPOLoss`.

    Raises:
        ConfigurationError: If `clip_epsilon` is not positive, or the lower distance is not below 1; see also `PPOLoss`.

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
        super().__init__(
            actor_network, critic_network, clip_epsilon=tuple(epsilons) if is_pair else epsilons[0], **options
        )

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """Return the negative of `clipped_surrogate`."""
        return -clipped_surrogate(log_ratio, advantage, *self._epsilons())

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return TorchRL's metrics of the ratios r.

        They are `clip_fraction` (the fraction of samples where r is clipped), `ESS` (the effective sample size
        (sum r)^2 / sum r^2, divided by the number of samples), `max_ratio` and `mean_ratio`.
        """
        low, high = self._epsilons()
        difference, ratio = log_ratio.expm1(), probability_ratio(log_ratio)
        is_clipped = difference.abs() > high if low is high else (difference > high) | (difference < -low)
        scaled = ratio / ratio.max()  # the square of a large ratio is infinite
        return {
            "clip_fraction": is_clipped.float().mean(),
            "ESS": scaled.mean().square() / scaled.square().mean(),
            "max_ratio": ratio.max(),
            "mean_ratio": ratio.mean(),
        }

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
