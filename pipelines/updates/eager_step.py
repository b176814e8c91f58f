"""One optimiser step from one minibatch: eager through Lightning, or one graph."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..distributed import num_ranks, summed


class Learner(Protocol):
    """What a step needs of the LightningModule."""

    objective: nn.Module
    policy_weight: Tensor
    critic_weight: Tensor
    grad_norm: Tensor
    max_grad_norm: float

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser itself."""

    def optimizers(self) -> Any:
        """The optimiser, wrapped by Lightning."""

    def manual_backward(self, loss: Tensor) -> None:
        """Backward through the strategy and the precision plugin."""


def total_loss(losses: TensorDictBase, policy_weight: Tensor, critic_weight: Tensor) -> Tensor:
    """The sum of all `loss_*`, the critic's and the others' each with a weight that is 0 where they do not learn."""
    policy = sum(loss for key, loss in losses.items() if key.startswith("loss_") and key != "loss_critic")
    critic = losses.get("loss_critic", 0.0)  # an objective may have none
    return critic_weight * critic + policy_weight * policy


class EagerStep:
    """Loss, backward and step through Lightning, so that every strategy, precision and hook takes part."""

    def __init__(self, ppo: Learner, kl_limit: float | None, *, is_scaled: bool) -> None:
        """Take no step of the policy where the KL is above `kl_limit`; a critic that learns alone changes none.

        With a loss scale gradients may overflow, after which it is smaller.
        """
        self.ppo = ppo
        self.kl_limit = kl_limit
        self.is_scaled = is_scaled
        self.names: list[str] = []
        self._last_norm = torch.zeros(())

    def __call__(self, data: dict[NestedKey, Tensor], indices: Tensor) -> Tensor | None:
        """Take one step.

        Args:
            data: a rollout, tensors `[rows, ...]`; a row is a frame, or a sequence of them.
            indices: the rows of the minibatch.

        Returns:
            The metrics called `names`, on the device; none if no step was taken.

        """
        ppo = self.ppo
        losses = ppo.objective(minibatch(data, indices))
        self.names = names_of(losses, self.kl_limit)
        if self.kl_limit is not None and exceeds(losses["kl_approx"] * ppo.policy_weight, self.kl_limit):
            return None
        optimizer: Any = ppo.optimizers()
        optimizer.zero_grad()
        ppo.manual_backward(total_loss(losses, ppo.policy_weight, ppo.critic_weight))
        for group in ppo.optimizer.param_groups:
            if not group.get("learns", True):
                for param in group["params"]:
                    param.grad = None  # zeros would wear the moments out
        optimizer.step()  # ppo.on_before_optimizer_step clips, after a loss scale is taken back
        return torch.cat([stacked(losses).detach(), self._norm().reshape(1)])

    def _norm(self) -> Tensor:
        """The gradients' norm; where a loss scale was too large, which takes no step, the one of the last step."""
        norm = self.ppo.grad_norm
        if self.is_scaled:
            self._last_norm = norm = torch.where(norm.isfinite(), norm, self._last_norm.to(norm.device))
        return norm


def names_of(losses: TensorDictBase, kl_limit: float | None) -> list[str]:
    """What a step reports, in its order.

    Raises:
        ConfigurationError: if the objective has no loss, or there is a limit of the KL and it does not say it.

    """
    names: list[str] = [*losses.keys()]
    if not any(name.startswith("loss_") for name in names):
        raise ConfigurationError(f"the objective wrote no loss_*, but {', '.join(names)}")
    if kl_limit is not None and "kl_approx" not in names:
        raise ConfigurationError("update.target_kl needs an objective that reports kl_approx; set it to null for none")
    return [*names, "grad_norm"]


def minibatch(data: dict[NestedKey, Tensor], indices: Tensor) -> TensorDict:
    """The rows of a rollout that `indices` name."""
    return TensorDict({key: tensor[indices] for key, tensor in data.items()}, indices.shape)


def stacked(losses: TensorDictBase) -> Tensor:
    """Losses and metrics in one tensor, in their order; of one with several entries, as TorchRL's may be, the mean."""
    return torch.stack([value.float().mean() for value in losses.values()])


def exceeds(kl: Tensor, limit: float) -> bool:
    """Whether the KL is above its limit on average over all ranks, so that all of them decide alike."""
    return bool(summed(kl.detach()) / num_ranks() > limit)
