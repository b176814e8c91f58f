"""The part of a critic that an objective runs, and the error of its values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, TensorDictSequential
from torch import Tensor
from torchrl.objectives.utils import distance_loss

from ...errors import ConfigurationError
from ..heads.value_heads import ValueHead, clipped_error


def unshared_critic(actor: ProbabilisticTensorDictSequential, critic: TensorDictModuleBase) -> TensorDictModuleBase:
    """Return the part of the critic that the actor does not run."""
    if not isinstance(critic, TensorDictSequential):
        return critic
    actor_modules = set(actor.modules())
    return TensorDictSequential(*[module for module in critic.module if module not in actor_modules])


def get_value_error(critic: TensorDictModuleBase, clip_value: float | None, loss_type: str) -> Callable[..., Tensor]:
    """Return the `error` method of the critic's `ValueHead`, or an elementwise error if it has none.

    Args:
        critic: Writes `state_value`.
        clip_value: See `PPOLoss`.
        loss_type: The error of a critic without a `ValueHead`: `l2`, `l1` or `smooth_l1`.

    Raises:
        ConfigurationError: If the head does not support `clip_value` or `loss_type`.

    """
    heads = [module for module in critic.modules() if isinstance(module, ValueHead)]
    if not heads:
        loss = torch.square if loss_type == "l2" else partial(elementwise_loss, loss_type)
        return lambda predicted, *args: clipped_error(loss, predicted["state_value"], *args)
    name = type(heads[-1]).__name__
    if clip_value is not None and not heads[-1].supports_clipping:
        raise ConfigurationError(
            f"objective.clip_value={clip_value} is not supported by {name}; set it to null, or use critic=mse"
        )
    if loss_type != "l2":
        raise ConfigurationError(
            f"objective.loss_critic_type={loss_type} does not apply to {name}, which has its own loss; remove it and "
            "choose the loss with critic=mse, huber, ..."
        )
    return heads[-1].error


def elementwise_loss(loss_type: str, error: Tensor) -> Tensor:
    """Apply one of TorchRL's distances to errors `[batch, 1]`."""
    distance: Tensor = distance_loss(error, torch.zeros_like(error), loss_type)
    return distance
