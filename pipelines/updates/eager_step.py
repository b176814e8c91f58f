"""The complete eager optimizer step: loss, backward, clip, step."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..distributed import num_ranks, summed


class StepOwner(Protocol):
    """The members of the LightningModule that a step uses."""

    objective: nn.Module
    policy_weight: Tensor
    critic_weight: Tensor
    max_grad_norm: float
    grad_norm: Tensor

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def optimizers(self) -> Any: ...

    def manual_backward(self, loss: Tensor) -> None: ...


class EagerStep:
    """An optimizer step that goes through Lightning, so that its strategy, precision plugin and hooks apply.

    Args:
        ppo: the LightningModule.
        max_kl: skip the step if the minibatch's KL is larger; `None` disables the check.
        is_scaled: whether the precision plugin scales the loss, as float16 needs.
        objective: called instead of `ppo.objective`, such as its compiled version.

    """

    def __init__(self, ppo: StepOwner, max_kl: float | None, *, is_scaled: bool = False, objective: Any = None) -> None:
        self.ppo = ppo
        self.max_kl = max_kl
        self.is_scaled = is_scaled
        self.objective = ppo.objective if objective is None else objective
        self._last_norm = torch.zeros(())

    def __call__(self, batch: TensorDictBase, indices: Tensor) -> dict[str, Tensor] | None:
        """Take one step.

        Args:
            batch: a rollout `[rows]`; a row is a frame, or a sequence for recurrent policies.
            indices: the rows of the minibatch.

        Returns:
            The losses and metrics of the minibatch, detached scalars, or `None` if its KL exceeds `max_kl`.

        """
        losses = self.objective(batch[indices])
        check_losses(losses, self.max_kl)
        if self.max_kl is not None and exceeds_kl(losses["kl_approx"] * self.ppo.policy_weight, self.max_kl):
            return None
        optimizer = self.ppo.optimizers()
        optimizer.zero_grad()
        self.ppo.manual_backward(total_loss(losses, self.ppo.policy_weight, self.ppo.critic_weight))
        for group in self.ppo.optimizer.param_groups:
            if not group.get("trainable", True):
                for param in group["params"]:
                    param.grad = None  # Adam skips it; a gradient of zero would still decay its moments
        optimizer.step()  # Lightning calls `clip_gradients` in between, in `PPO.on_before_optimizer_step`
        return {**scalars(losses), "grad_norm": self._grad_norm()}

    def _grad_norm(self) -> Tensor:
        norm = self.ppo.grad_norm
        if self.is_scaled:  # with a loss scale, gradients may overflow, and the step is then skipped
            norm = torch.where(norm.isfinite(), norm, self._last_norm.to(norm.device))
            self._last_norm = norm
        return norm


def clip_gradients(ppo: StepOwner) -> Tensor:
    """Clip the global norm of the gradients to `max_grad_norm`; return the norm before clipping."""
    return nn.utils.clip_grad_norm_(ppo.objective.parameters(), ppo.max_grad_norm)


def total_loss(losses: TensorDictBase, policy_weight: Tensor, critic_weight: Tensor) -> Tensor:
    """Sum all `loss_*` entries. A weight of 0 disables the critic's loss or all the others."""
    policy = sum(loss for key, loss in losses.items() if key.startswith("loss_") and key != "loss_critic")
    critic = losses.get("loss_critic", 0.0)
    return critic_weight * critic + policy_weight * policy


def scalars(losses: TensorDictBase) -> dict[str, Tensor]:
    """Return every entry detached and averaged; metrics of TorchRL's losses may have several elements."""
    return {name: value.detach().float().mean() for name, value in losses.items()}


def check_losses(losses: TensorDictBase, max_kl: float | None) -> None:
    """Raise a ConfigurationError if an objective lacks a loss, or the metric that early stopping reads."""
    if not any(name.startswith("loss_") for name in losses.keys()):  # noqa: SIM118 - a TensorDict iterates over rows
        names = ", ".join(losses.keys())
        raise ConfigurationError(f"the objective returned no loss_* entry, only {names}; name its losses loss_...")
    if max_kl is not None and "kl_approx" not in losses.keys():  # noqa: SIM118
        raise ConfigurationError(
            "update.target_kl needs an objective that returns kl_approx; set update.target_kl=null"
        )


def exceeds_kl(kl: Tensor, max_kl: float) -> bool:
    """Compare the mean KL of all ranks with its limit, so that all ranks make the same decision."""
    return bool(summed(kl.detach()) / num_ranks() > max_kl)
