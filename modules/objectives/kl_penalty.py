"""The PPO objective with an adaptive KL penalty."""

from __future__ import annotations

from typing import Any, ClassVar

import torchrl.objectives as torchrl_objectives
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from ...errors import ConfigurationError
from ..adaptive_controllers import AdaptiveBeta
from ..controllers import Controller
from ..distributions.action import probability_ratio
from .ppo_loss import PPOLoss


class KLPENPPOLoss(PPOLoss, torchrl_objectives.KLPENPPOLoss):
    """The objective with an adaptive KL penalty, a subclass of `torchrl.objectives.KLPENPPOLoss`.

    `beta` is a buffer that the loss only reads. `PPO` calls the controller `controllers["beta"]`, which changes `beta`
    once per rollout. TorchRL's class changes it in every forward pass, so that it depends on the number of minibatches.

    Source: Schulman et al. 2017, eq. 8.

    Args:
        actor_network: See `PPOLoss`.
        critic_network: See `PPOLoss`.
        beta: Initial weight of the penalty.
        dtarg: Target of the KL divergence per rollout, in nats.
        increment: Factor of `beta` if the KL divergence is above 1.5 x `dtarg`. If both factors are 1, `beta` is
            constant and has no controller.
        decrement: Factor of `beta` if the KL divergence is below `dtarg` / 1.5.
        beta_min: Smallest weight.
        beta_max: Largest weight.
        options: See `PPOLoss`.

    Raises:
        ConfigurationError: If `beta` is outside its bounds, or another argument is out of range; see also `PPOLoss`.

    """

    metric_keys: ClassVar[tuple[str, ...]] = ("beta",)
    beta: Tensor
    controllers: dict[str, Controller]

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        beta: float = 1.0,
        dtarg: float = 0.01,
        increment: float = 2.0,
        decrement: float = 0.5,
        beta_min: float = 1e-3,
        beta_max: float = 1e3,
        **options: Any,
    ) -> None:
        if not 0 < beta_min <= beta <= beta_max:
            raise ConfigurationError(
                f"objective.beta={beta} must lie within beta_min={beta_min} and beta_max={beta_max}, and all must be "
                "positive"
            )
        controller = AdaptiveBeta(dtarg, increment=increment, decrement=decrement, minimum=beta_min, maximum=beta_max)
        super().__init__(
            actor_network,
            critic_network,
            beta=float(beta),
            dtarg=dtarg,
            increment=increment,
            decrement=decrement,
            **options,
        )
        self.register_buffer("beta", self.beta)  # saved, because the controller changes it
        self.controllers = {} if increment == decrement == 1 else {"beta": controller}

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """Return -(r A - beta KL(old || new))."""
        return self.beta * kl - probability_ratio(log_ratio) * advantage

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return `beta`, the weight of the penalty."""
        return {"beta": self.beta.clone()}
