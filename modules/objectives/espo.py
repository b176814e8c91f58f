"""The objective of early stopping policy optimization (ESPO)."""

from __future__ import annotations

from typing import Any, ClassVar

from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from ...errors import ConfigurationError
from ..distributions.action import probability_ratio, ratio_metrics
from .ppo_loss import PPOLoss


class ESPOLoss(PPOLoss):
    """Early stopping policy optimization: the unclipped objective with a stopping rule for the ratios r.

    The update ends on all ranks before the first step whose minibatch has a mean |r - 1| above `delta`.

    Source: Sun et al. 2022, "You may not need ratio clipping in PPO".

    Args:
        actor_network: See `PPOLoss`.
        critic_network: See `PPOLoss`.
        delta: Limit of the mean deviation of the ratios.
        options: See `PPOLoss`.

    Raises:
        ConfigurationError: If `delta` is not positive; see also `PPOLoss`.

    """

    metric_keys: ClassVar[tuple[str, ...]] = ("ratio_deviation", "ESS", "max_ratio", "mean_ratio")
    stopping_metric: ClassVar[str] = "ratio_deviation"

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        delta: float = 0.25,
        **options: Any,
    ) -> None:
        if not delta > 0:
            raise ConfigurationError(f"objective.delta={delta} must be positive; 0.25 is usual")
        super().__init__(actor_network, critic_network, **options)
        self.stop_above = float(delta)

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return `ratio_deviation`, the mean |r - 1|, and `ratio_metrics`."""
        deviation = (probability_ratio(log_ratio) - 1).abs().mean()
        return {"ratio_deviation": deviation, **ratio_metrics(log_ratio)}
