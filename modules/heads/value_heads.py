"""Value heads: from features to a state value, and the error that is minimized."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torchrl.data import TensorSpec

from ...errors import ConfigurationError
from ..features.bodies import FullPrecision, orthogonal_
from ..normalizers import Reduce, RunningMoments, no_reduce

if TYPE_CHECKING:
    from .action_heads import Head


class ValueHead(nn.Module, ABC):
    """Base class of value heads, which are built from the number of features.

    Attributes:
        out_keys: Keys of the outputs of `forward`. The first is `state_value`, the only one of most heads.
        supports_clipping: Whether `error` supports `clip_value`.
        collected_keys: Entries of a minibatch that `error` also reads, with their values at collection.

    """

    out_keys: ClassVar[list[str]] = ["state_value"]
    supports_clipping: ClassVar[bool] = False
    collected_keys: ClassVar[list[str]] = []

    def setup(self, action_spec: TensorSpec, head: Head) -> None:
        """Create the layers that depend on the actions. Called once, before `forward`. Most heads have no such layers.

        Args:
            action_spec: Batched spec of the action.
            head: The head of the policy.

        Raises:
            ConfigurationError: If the value head does not support these actions.

        """

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map features `[*, width]` to the outputs; `state_value` is `[*, 1]`, in units of the reward."""

    @abstractmethod
    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        """Compute the error of every sample.

        Args:
            predicted: Outputs of `forward` and entries of `collected_keys`, by key.
            target: Value targets, `[batch, 1]`.
            old_value: State values at collection, `[batch, 1]`.
            clip_value: See `squared_error`. Always `None` if `supports_clipping` is false.

        Returns:
            Errors, `[batch, 1]`.

        """

    def update(self, value_target: Tensor, reduce: Reduce = no_reduce) -> None:
        """Update statistics with the value targets of a rollout. Most heads have none and do nothing.

        This is called once per rollout, after the last optimizer step.
        """


class SquaredErrorValue(ValueHead):
    """Predicts the mean return by minimizing the squared error."""

    supports_clipping = True

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = last_layer(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: `[*, width] -> [*, 1]`."""
        value: Tensor = self.layer(features)
        return value

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        return squared_error(predicted["state_value"], target, old_value, clip_value)


class HuberValue(ValueHead):
    """Predicts the return with the Huber loss, so that outliers have a bounded gradient.

    Source: Huber 1964; the same as `torch.nn.functional.huber_loss`.

    Args:
        width: Number of features.
        delta: Error at which the loss changes from quadratic to linear, in units of the reward.

    Raises:
        ConfigurationError: If `delta` is not positive.

    """

    supports_clipping = True

    def __init__(self, width: int, delta: float = 1.0) -> None:
        super().__init__()
        if delta <= 0:
            raise ConfigurationError(f"critic.head.delta={delta} must be positive; 1.0 is usual")
        self.delta = delta
        self.layer = last_layer(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: `[*, width] -> [*, 1]`."""
        value: Tensor = self.layer(features)
        return value

    def loss(self, error: Tensor) -> Tensor:
        """Compute e^2 / 2 if |e| <= delta, otherwise delta (|e| - delta / 2)."""
        small = error.abs().clamp(max=self.delta)
        return small * (error.abs() - 0.5 * small)

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        return clipped_error(self.loss, predicted["state_value"], target, old_value, clip_value)


class PopArtValue(ValueHead):
    """Predicts values on a normalized scale, and keeps its outputs unchanged when the statistics change (PopArt).

    Source: van Hasselt et al. 2016, algorithm 1; the bounds of the standard deviation are those of Hessel et al. 2019.

    Args:
        width: Number of features.
        beta: Fraction of the statistics that every rollout replaces. With 0, all targets count equally.

    Raises:
        ConfigurationError: If `beta` is outside [0, 1).

    """

    supports_clipping = True
    mean: Tensor
    std: Tensor

    def __init__(self, width: int, beta: float = 0.1) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise ConfigurationError(f"critic.head.beta={beta} must lie within [0, 1); 0.1 is usual")
        self.beta = beta
        self.layer = last_layer(width, 1)
        self.moments = RunningMoments()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: `[*, width] -> [*, 1]`."""
        value: Tensor = self.layer(features) * self.std + self.mean
        return value

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        """Compute the squared error on the normalized scale; `clip_value` is in units of the reward."""
        return squared_error(predicted["state_value"], target, old_value, clip_value) / self.std.square()

    def update(self, value_target: Tensor, reduce: Reduce = no_reduce) -> None:
        """Update the statistics, and rescale the layer so that the predicted values stay the same.

        Both change in place, because optimizers and compiled graphs keep references to the tensors.
        """
        reduce(self.moments.measure(value_target), self._merge)

    @torch.no_grad()
    def _merge(self, measured: Tensor) -> None:
        old_mean, old_std = self.mean.clone(), self.std.clone()
        self.moments.count.mul_(1 - self.beta)
        self.moments.merge(measured)
        self.mean.copy_(self.moments.mean)
        self.std.copy_(self.moments.var.sqrt().clamp(1e-4, 1e6))
        weight, bias = self.layer.parameters()
        # Use the rounded statistics, because `forward` uses them too.
        weight.copy_(weight.double() * old_std / self.std)
        bias.copy_((bias.double() * old_std + old_mean - self.mean) / self.std)


def last_layer(width: int, num_outputs: int) -> FullPrecision:
    """Build a linear layer in full precision, with orthogonal weights of gain 1."""
    return FullPrecision(orthogonal_(nn.Linear(width, num_outputs), gain=1.0))


def squared_error(value: Tensor, target: Tensor, old_value: Tensor, clip_value: float | None) -> Tensor:
    """Compute (V - R)^2, or with `clip_value` max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2).

    Source: Value clipping of OpenAI Baselines' ppo2.

    Args:
        value: Predicted values, `[batch, 1]`.
        target: Value targets, `[batch, 1]`.
        old_value: State values at collection, `[batch, 1]`.
        clip_value: Largest change of a value that is not clipped. `None` disables clipping.

    Returns:
        Errors, `[batch, 1]`.

    Raises:
        ValueError: If the shapes of `value` and `target` differ.

    """
    return clipped_error(torch.square, value, target, old_value, clip_value)


def clipped_error(
    loss: Callable[[Tensor], Tensor], value: Tensor, target: Tensor, old_value: Tensor, clip_value: float | None
) -> Tensor:
    """Compute l(V - R), or with `clip_value` max(l(V - R), l(V_old + clip(V - V_old, -c, c) - R)).

    The generalization of `squared_error` to any elementwise loss l.
    """
    check_shapes(value, target)
    error = loss(value - target)
    if clip_value is None:
        return error
    clipped = old_value + (value - old_value).clamp(-clip_value, clip_value)
    return torch.maximum(error, loss(clipped - target))


def check_shapes(value: Tensor, target: Tensor) -> None:
    """Raise ValueError if the shapes differ, because broadcasting would compare every value with every target."""
    if value.shape != target.shape:
        raise ValueError(f"state_value {list(value.shape)} and value_target {list(target.shape)} differ in shape")
