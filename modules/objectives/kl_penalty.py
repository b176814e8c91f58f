"""The PPO objective with an adaptive KL penalty."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from ...errors import ConfigurationError
from ..normalizers import Reduce, no_reduce
from .ppo_loss import PPOLoss, probability_ratio


@runtime_checkable
class Adaptive(Protocol):
    """An objective with a coefficient that adapts to the measured KL divergence."""

    def adapt(self, rollout: TensorDictBase, reduce: Reduce) -> None:
        """Change the coefficient; called once per rollout, after the last epoch.

        Args:
            rollout: The rollout, with the inputs of `PPOLoss.forward`.
            reduce: Sums a tensor over all ranks.

        """


class KLPENPPOLoss(PPOLoss):
    """The objective with an adaptive KL penalty.

    `beta` changes only in `adapt`, once per rollout. It is doubled if the mean KL divergence of the rollout is above
    1.5 x `dtarg`, halved if it is below `dtarg` / 1.5, and clamped to its bounds. It is part of the state dict.

    Source: Schulman et al. 2017, eq. 8.

    Args:
        actor_network: See `PPOLoss`.
        critic_network: See `PPOLoss`.
        beta: Initial weight of the penalty.
        dtarg: Target of the KL divergence per rollout, in nats.
        beta_min: Smallest weight.
        beta_max: Largest weight.
        entropy_coeff: See `PPOLoss`.
        critic_coeff: See `PPOLoss`.
        clip_value: See `PPOLoss`.

    Raises:
        ConfigurationError: If `beta` is outside its bounds, or a bound or `dtarg` is not positive; see also `PPOLoss`.

    """

    beta: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        beta: float = 1.0,
        dtarg: float = 0.01,
        beta_min: float = 1e-3,
        beta_max: float = 1e3,
        entropy_coeff: float = 0.0,
        critic_coeff: float = 0.5,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(
            actor_network, critic_network, entropy_coeff=entropy_coeff, critic_coeff=critic_coeff, clip_value=clip_value
        )
        if not 0 < beta_min <= beta <= beta_max:
            raise ConfigurationError(
                f"objective.beta={beta} must lie within beta_min={beta_min} and beta_max={beta_max}, and all must be "
                "positive"
            )
        if dtarg <= 0:
            raise ConfigurationError(f"objective.dtarg={dtarg} must be positive; 0.01 is usual")
        self.dtarg = dtarg
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.register_buffer("beta", torch.tensor(float(beta)))

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """Return -(r A - beta KL(old || new))."""
        return self.beta * kl - probability_ratio(log_ratio) * advantage

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return `beta`, the weight of the penalty."""
        return {"beta": self.beta.clone()}

    @torch.no_grad()
    def adapt(self, rollout: TensorDictBase, reduce: Reduce = no_reduce) -> None:
        """Adapt `beta` to the mean KL divergence over all states of `rollout` and all ranks."""
        _, _, kl = self.compare(rollout.copy())
        total, count = reduce(torch.stack([kl.sum(), kl.new_tensor(float(kl.numel()))]))
        self.beta.copy_(self.next_beta(total / count))

    def next_beta(self, kl: Tensor) -> Tensor:
        """Return `beta` for the next rollout from the mean KL divergence of this one, both scalar tensors."""
        factor = torch.where(kl > 1.5 * self.dtarg, 2.0, torch.where(kl < self.dtarg / 1.5, 0.5, 1.0))
        return (self.beta * factor).clamp(self.beta_min, self.beta_max)
