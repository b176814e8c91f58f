"""The objective with an adaptive KL penalty."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor

from ...errors import ConfigurationError
from ..normalizers import Reduce, alone
from .ppo_loss import PPOLoss, ratio_of


@runtime_checkable
class Adaptive(Protocol):
    """An objective with a coefficient that the measured KL moves, once per rollout."""

    def adapt(self, rollout: TensorDictBase, reduce: Reduce) -> None:
        """Change the coefficient after the last epoch on `rollout`."""


class KLPENPPOLoss(PPOLoss):
    """The objective with an adaptive KL penalty (Schulman et al. 2017, eq. 8).

    `beta` changes in `adapt` alone, once per rollout: doubled where the KL over the whole rollout is above
    1.5 x `dtarg`, halved where it is below `dtarg` / 1.5, and kept within bounds.

    Args:
        actor_network: see `PPOLoss`.
        critic_network: see `PPOLoss`.
        beta: initial weight of the penalty.
        dtarg: target of the KL per rollout, in nats.
        beta_min: smallest weight.
        beta_max: largest weight.
        entropy_coeff: see `PPOLoss`.
        critic_coeff: see `PPOLoss`.
        clip_value: see `PPOLoss`.

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
        """Add the penalty; `beta` is a state of the training and saved with it."""
        super().__init__(
            actor_network, critic_network, entropy_coeff=entropy_coeff, critic_coeff=critic_coeff, clip_value=clip_value
        )
        if not 0 < beta_min <= beta <= beta_max:
            raise ConfigurationError(
                f"objective.beta={beta} must lie within beta_min={beta_min} and beta_max={beta_max}, both positive"
            )
        if dtarg <= 0:
            raise ConfigurationError(f"objective.dtarg={dtarg} must be positive")
        self.dtarg = dtarg
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.register_buffer("beta", torch.tensor(float(beta)))

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """-(r A - beta KL(old || new))."""
        return self.beta * kl - ratio_of(log_ratio) * advantage

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """`beta`, the weight of the penalty."""
        return {"beta": self.beta.clone()}

    @torch.no_grad()
    def adapt(self, rollout: TensorDictBase, reduce: Reduce = alone) -> None:
        """Move `beta` by the mean KL over all states of `rollout`, as `forward` reads them, and all ranks."""
        _, _, kl = self.compare(rollout.copy())
        total, count = reduce(torch.stack([kl.sum(), kl.new_tensor(float(kl.numel()))]))
        self.beta.copy_(self.adapted(total / count))

    def adapted(self, kl: Tensor) -> Tensor:
        """The next `beta` after a rollout whose mean KL was `kl`: `[] -> []`."""
        factor = torch.where(kl > 1.5 * self.dtarg, 2.0, torch.where(kl < self.dtarg / 1.5, 0.5, 1.0))
        return (self.beta * factor).clamp(self.beta_min, self.beta_max)
