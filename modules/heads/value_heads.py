"""Value heads: from features to a value, and how far off it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError
from ..features.bodies import FullPrecision, orthogonal_
from ..normalizers import Reduce, RunningMoments, alone


class ValueHead(nn.Module, ABC):
    """The last layer of a critic, made from the width of the features and the options of its kind."""

    out_keys: ClassVar[list[str]]
    clips: ClassVar[bool] = True
    """Whether `error` knows of a `clip_value`."""

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`[*, width]` to the tensors of `out_keys`; the first is `state_value` `[*, 1]` in the reward's units."""

    @abstractmethod
    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        """What is minimised in every sample.

        Args:
            predicted: what `forward` returned, under `out_keys`.
            target: `[batch, 1]`.
            old_value: `state_value` when the rollout was collected, `[batch, 1]`.
            clip_value: see `squared_error`; none where `clips` is false.

        Returns:
            `[batch, 1]`.

        """

    @abstractmethod
    def update(self, value_target: Tensor, reduce: Reduce = alone) -> None:
        """Take a rollout's targets `[*]` into the statistics, once, after the optimiser's last step."""


def check_shapes(value: Tensor, target: Tensor) -> None:
    """Raise ValueError where broadcasting would compare every value with every target."""
    if value.shape != target.shape:
        raise ValueError(f"state_value {list(value.shape)} and value_target {list(target.shape)} differ in shape")


def clipped_error(
    loss: Callable[[Tensor], Tensor], value: Tensor, target: Tensor, old_value: Tensor, clip_value: float | None
) -> Tensor:
    """l(V - R), or with `clip_value` max(l(V - R), l(V_old + clip(V - V_old, -c, c) - R)): all `[batch, 1]`.

    Source: the value clipping of OpenAI Baselines' ppo2.
    """
    check_shapes(value, target)
    error = loss(value - target)
    if clip_value is None:
        return error
    clipped = old_value + (value - old_value).clamp(-clip_value, clip_value)
    return torch.maximum(error, loss(clipped - target))


def squared_error(value: Tensor, target: Tensor, old_value: Tensor, clip_value: float | None) -> Tensor:
    """(V - R)^2, or with `clip_value` max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2).

    Source: the value clipping of OpenAI Baselines' ppo2. Shapes: all `[batch, 1]`.

    Raises:
        ValueError: if the shapes differ; broadcasting would compare every value with every target.

    """
    return clipped_error(torch.square, value, target, old_value, clip_value)


def last_layer(width: int, num_outputs: int) -> FullPrecision:
    """A linear layer, orthogonal of gain 1, in full precision."""
    return FullPrecision(orthogonal_(nn.Linear(width, num_outputs), gain=1.0))


class SquaredErrorValue(ValueHead):
    """The mean of the returns, by squared error."""

    out_keys: ClassVar[list[str]] = ["state_value"]

    def __init__(self, width: int) -> None:
        """One output."""
        super().__init__()
        self.layer = last_layer(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`[*, width] -> state_value [*, 1]`."""
        value: Tensor = self.layer(features)
        return value

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        """`squared_error`: `[batch, 1]`."""
        return squared_error(predicted["state_value"], target, old_value, clip_value)

    def update(self, value_target: Tensor, reduce: Reduce = alone) -> None:
        """Nothing to learn."""


class HuberValue(ValueHead):
    """Half the squared error up to `delta`, and linear beyond, so that no outlier has a large gradient.

    Source: Huber 1964, as `torch.nn.functional.huber_loss`.
    """

    out_keys: ClassVar[list[str]] = ["state_value"]

    def __init__(self, width: int, delta: float = 1.0) -> None:
        """Be linear from an error of `delta` on, in units of the reward."""
        super().__init__()
        if delta <= 0:
            raise ConfigurationError(f"critic.head.delta={delta} must be positive; 1.0 is usual")
        self.delta = delta
        self.layer = last_layer(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`[*, width] -> state_value [*, 1]`."""
        value: Tensor = self.layer(features)
        return value

    def loss(self, error: Tensor) -> Tensor:
        """e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2): `[*] -> [*]`."""
        small = error.abs().clamp(max=self.delta)
        return small * (error.abs() - 0.5 * small)

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        """`clipped_error` of `loss`: `[batch, 1]`."""
        return clipped_error(self.loss, predicted["state_value"], target, old_value, clip_value)

    def update(self, value_target: Tensor, reduce: Reduce = alone) -> None:
        """Nothing to learn."""


class PopArtValue(ValueHead):
    """A value normalised to the targets' mean and standard deviation, whose outputs do not change when those do.

    Source: van Hasselt et al. 2016, algorithm 1; Hessel et al. 2019 for the bounds of the standard deviation.
    """

    out_keys: ClassVar[list[str]] = ["state_value"]

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, beta: float = 0.1) -> None:
        """Forget the part `beta` of what is known with every rollout; 0: the moments of all targets ever seen."""
        super().__init__()
        if not 0 <= beta < 1:
            raise ConfigurationError(f"critic.head.beta={beta} must lie within [0, 1); 0.1 is usual")
        self.beta = beta
        self.layer = last_layer(width, 1)
        self.moments = RunningMoments()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, features: Tensor) -> Tensor:
        """`[*, width] -> state_value [*, 1]`."""
        value: Tensor = self.layer(features) * self.std + self.mean
        return value

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        """`squared_error` on the normalised scale; `clip_value` is in units of the reward: `[batch, 1]`."""
        return squared_error(predicted["state_value"], target, old_value, clip_value) / self.std.square()

    @torch.no_grad()
    def update(self, value_target: Tensor, reduce: Reduce = alone) -> None:
        """Move the moments and the layer together, in place: optimisers and graphs keep hold of both."""
        old_mean, old_std = self.mean.clone(), self.std.clone()
        self.moments.count.mul_(1 - self.beta)
        self.moments.update(value_target, reduce)
        self.mean.copy_(self.moments.mean)
        self.std.copy_(self.moments.var.sqrt().clamp(1e-4, 1e6))
        weight, bias = self.layer.parameters()
        # From the rounded moments, which are what `forward` sees.
        weight.copy_(weight.double() * old_std / self.std)
        bias.copy_((bias.double() * old_std + old_mean - self.mean) / self.std)
