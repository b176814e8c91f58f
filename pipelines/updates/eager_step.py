"""The complete eager optimizer step: loss, backward, clip, step."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, NamedTuple, Protocol

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..distributed import averaged
from .skipped import StepMetrics

logger = logging.getLogger("torchppo")

CRITIC_LOSSES = ("loss_critic", "loss_value")  # of PPO losses, and of TorchRL's ReinforceLoss


class LossWeights(nn.Module):
    """Weights of the policy losses and the critic losses. A weight is 0 while its network is frozen.

    Args:
        others: names of critic losses besides `CRITIC_LOSSES`. All other losses are policy losses.

    """

    policy: Tensor
    critic: Tensor

    def __init__(self, others: Iterable[str] = ()) -> None:
        super().__init__()
        self.critic_losses = {*CRITIC_LOSSES, *others}
        self.register_buffer("policy", torch.ones(()), persistent=False)
        self.register_buffer("critic", torch.ones(()), persistent=False)


class StepOwner(Protocol):
    """The members of the LightningModule that a step uses."""

    objective: nn.Module
    max_grad_norm: float
    grad_norm: Tensor
    loss_weights: LossWeights

    @property
    def losses(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def optimizers(self) -> Any: ...

    def manual_backward(self, loss: Tensor) -> None: ...


class StoppingRule(NamedTuple):
    """Forbids a step if a metric of its minibatch, averaged over all ranks, is above a limit."""

    metric: str
    limit: float

    @classmethod
    def of(cls, objective: Any, limit: float | None) -> StoppingRule | None:
        """Return the rule for the objective's `stopping_metric`, or `None` without a limit.

        Args:
            objective: the objective. Its attribute `stop_above`, if it exists, is its own limit.
            limit: the limit of the update rule.

        Raises:
            ConfigurationError: if both have a limit.

        """
        own = getattr(objective, "stop_above", None)
        if own is not None and limit is not None:
            raise ConfigurationError(
                f"update.target_kl has no effect with {type(objective).__name__}, which has its own stopping rule; set "
                "update.target_kl=null"
            )
        limit = limit if own is None else own
        return None if limit is None else cls(getattr(objective, "stopping_metric", "kl_approx"), limit)

    def forbids(self, value: Tensor) -> bool:
        """Compare the mean of the metric over all ranks with the limit, so that all ranks make the same decision."""
        return bool(value > self.limit)


class EagerStep:
    """An optimizer step through Lightning, so that its strategy, precision plugin and hooks apply.

    Args:
        ppo: the LightningModule.
        rule: decides whether a step is skipped. `None` takes every step.
        losses: replacement for `ppo.losses`, such as a compiled version.

    """

    def __init__(self, ppo: StepOwner, rule: StoppingRule | None, *, losses: Any = None) -> None:
        self.ppo = ppo
        self.rule = rule
        self.losses = ppo.losses if losses is None else losses
        self._is_checked = False

    def __call__(self, batch: TensorDictBase, indices: Tensor) -> StepMetrics | None:
        """Take one step.

        Args:
            batch: a rollout `[rows]`; a row is a frame, or a sequence for recurrent policies.
            indices: the rows of the minibatch.

        Returns:
            The losses and metrics of the minibatch, detached scalars, or `None` if `rule` forbids the step. If
            `grad_norm` is not finite, the step was skipped: it changed neither parameters nor the optimizer's state.

        """
        losses = self.losses(batch[indices])
        check_losses(losses, self.rule)
        if self.rule is not None:
            (value,) = averaged([(losses[self.rule.metric] * self.ppo.loss_weights.policy).detach()])
            if self.rule.forbids(value):
                return None
        optimizer = self.ppo.optimizers()
        optimizer.zero_grad()
        self.ppo.manual_backward(total_loss(losses, self.ppo.loss_weights))
        if not self._is_checked:
            self._is_checked = True
            check_connected(self.ppo.objective, {param: param.grad for param in self.ppo.losses.parameters()})
        for group in self.ppo.optimizer.param_groups:
            if not group.get("trainable", True):
                for param in group["params"]:
                    param.grad = None  # Adam skips it; a gradient of zero would still decay its moments
        optimizer.step()  # Lightning calls `clip_gradients` in between, in `PPO.on_before_optimizer_step`
        metrics = {**scalars(losses), "grad_norm": self.ppo.grad_norm}
        return StepMetrics([*metrics], torch.stack([*metrics.values()]))


def clip_gradients(ppo: StepOwner) -> Tensor:
    """Clip the global norm of the gradients to `max_grad_norm`; return the norm before clipping.

    If the norm is not finite, remove the gradients, so that the optimizer does nothing. All ranks have the same norm.
    """
    norm = nn.utils.clip_grad_norm_(ppo.losses.parameters(), ppo.max_grad_norm)
    if not norm.isfinite():
        for param in ppo.losses.parameters():
            param.grad = None
    return norm


def total_loss(losses: TensorDictBase, weights: LossWeights) -> Tensor:
    """Sum all `loss_*` entries. A weight of 0 disables the losses of the policy, or those of the critic.

    If the sum is not finite, all gradients are NaN.
    """
    parts: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, loss in losses.items():
        if name.startswith("loss_"):
            parts[name in weights.critic_losses].append(loss)
    critic, policy = (reduce(torch.add, part) if part else 0.0 for part in parts.values())
    total: Tensor = weights.critic * critic + weights.policy * policy
    return total * (0.0 * total.detach() + 1.0)  # times 1, or times NaN


def scalars(losses: TensorDictBase) -> dict[str, Tensor]:
    """Return every entry detached and averaged; metrics of TorchRL's losses may have several elements."""
    values = {name: value.detach().float() for name, value in losses.items()}
    return {name: value.mean() if value.dim() else value for name, value in values.items()}


def check_losses(losses: Any, rule: StoppingRule | None) -> None:
    """Raise a ConfigurationError if an objective lacks a loss, or the metric that early stopping reads."""
    if not isinstance(losses, TensorDictBase | Mapping):
        raise ConfigurationError(
            f"the objective returned {type(losses).__name__}; return a TensorDict of losses (loss_...) and metrics"
        )
    if not any(name.startswith("loss_") for name in losses.keys()):  # noqa: SIM118
        names = ", ".join(losses.keys())
        raise ConfigurationError(f"the objective returned no loss_* entry, only {names}; name its losses loss_...")
    for name, loss in losses.items():
        if name.startswith("loss_") and loss.numel() != 1:
            raise ConfigurationError(f"{name} of the objective has the shape {tuple(loss.shape)}; return its mean")
    if rule is not None and rule.metric not in losses.keys():  # noqa: SIM118
        raise ConfigurationError(
            f"update.target_kl needs an objective that returns {rule.metric}; set update.target_kl=null"
        )


def check_connected(objective: Any, gradients: Mapping[nn.Parameter, Tensor | None]) -> None:
    """Check that the losses depend on the parameters, and warn about parameters without a gradient.

    Args:
        objective: the objective.
        gradients: the gradient of every parameter; `None` where the losses do not depend on it.

    Raises:
        ConfigurationError: if the losses do not depend on any parameter of the policy outside the critic.

    """
    critic = {*objective.critic_network.parameters()}  # a recurrent actor also runs the critic
    policy = [param for param in objective.actor_network.parameters() if param.requires_grad and param not in critic]
    if policy and all(gradients.get(param) is None for param in policy):
        raise ConfigurationError(
            f"objective={type(objective).__name__} has no gradient with respect to the policy, which would not learn; "
            "compute its losses from actor_network, without detach() or no_grad()"
        )
    parameters = {name: param for name, param in objective.named_parameters() if param.requires_grad}
    unconnected = [name for name, param in parameters.items() if gradients.get(param) is None]
    if unconnected:
        logger.warning(
            "torchppo: the losses do not depend on %d of %d parameters, such as %s, which will not learn",
            *(len(unconnected), len(parameters), unconnected[0]),
        )
