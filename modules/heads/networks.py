"""Networks of action heads: from features to distribution parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..features.bodies import orthogonal_

GAIN = 0.01
"""Gain of the last layer of the policy, so that the initial actions hardly depend on the observation."""

MIN_LOG_STD, MAX_LOG_STD = -20.0, 2.0

Parameters = tuple[Tensor, ...]
"""Parameters of a distribution, in the order of `Head.param_keys`."""


class ScaleLimits(NamedTuple):
    """Limits of the logarithm of a scale."""

    low: float = -math.inf
    high: float = math.inf

    def apply(self, log_std: Tensor) -> Tensor:
        """Clamp `log_std`. The gradient is that of an unclamped value, so a value outside of the limits can return."""
        if self == NO_LIMITS:
            return log_std
        return log_std + (log_std.clamp(self.low, self.high) - log_std).detach()


NO_LIMITS = ScaleLimits()


class StateIndependentScale(nn.Module):
    """Computes the mean from the features. The scale is one learned or fixed parameter per action.

    Args:
        head: Network `[*, features] -> [*, num_actions]` of the mean.
        num_actions: Number of action dimensions.
        log_std: Initial logarithm of the scale.
        limits: Limits of the logarithm of the scale.
        is_fixed: Whether the scale keeps its initial value.

    """

    log_std: Tensor

    def __init__(
        self,
        head: nn.Module,
        num_actions: int,
        log_std: float,
        limits: ScaleLimits = NO_LIMITS,
        *,
        is_fixed: bool = False,
    ) -> None:
        super().__init__()
        self.head = head
        self.limits = limits
        initial = torch.full((num_actions,), float(log_std))
        if is_fixed:
            self.register_buffer("log_std", initial)
        else:
            self.log_std = nn.Parameter(initial)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: `[*, features] -> loc [*, num_actions], scale [*, num_actions]`."""
        loc = self.head(features)
        return loc, self.limits.apply(self.log_std).exp().expand_as(loc)


class StateDependentScale(nn.Module):
    """Computes mean and scale from the features; the scale starts near `exp(log_std)`."""

    def __init__(self, width: int, num_actions: int, log_std: float, limits: ScaleLimits = NO_LIMITS) -> None:
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, 2 * num_actions), GAIN)
        self.limits = limits
        nn.init.constant_(self.linear.bias[num_actions:], log_std)  # type: ignore[index]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: `[*, width] -> loc [*, num_actions], scale [*, num_actions]`."""
        loc, log_std = self.linear(features).chunk(2, -1)
        return loc, self.limits.apply(log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)).exp()


class BetaParameters(nn.Module):
    """Computes the parameters of a beta distribution from the features.

    Both are greater than 1, so that the distribution has a single peak and its density is 0 at the bounds.
    """

    def __init__(self, width: int, num_actions: int) -> None:
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, 2 * num_actions), GAIN)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: `[*, width] -> alpha [*, num_actions], beta [*, num_actions]`."""
        alpha, beta = (1 + nn.functional.softplus(self.linear(features))).chunk(2, -1)
        return alpha, beta


class StateDependentExploration(nn.Module):
    """Computes a mean and a perturbation that is a linear function of the features (gSDE).

    The noise does not pass gradients to the features.

    Source: Raffin et al. 2021, "Smooth exploration for robotic reinforcement learning".

    Args:
        width: Number of features.
        num_actions: Number of action dimensions.
        log_std: Initial logarithm of the scale of the noise weights.

    """

    def __init__(self, width: int, num_actions: int, log_std: float) -> None:
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, num_actions), GAIN)
        self.log_std = nn.Parameter(torch.full((width, num_actions), float(log_std)))

    def forward(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the distribution parameters.

        Args:
            features: `[*, width]`.
            noise: Standard normal noise weights, `[*, width, num_actions]`. They are scaled by the current `log_std`,
                even if they were drawn before an update. `None` means no perturbation.

        Returns:
            `loc`, `scale` and `perturbation`, `[*, num_actions]` each.

        """
        loc = self.linear(features)
        detached = features.detach()
        std = self.log_std.exp()
        scale = (detached.square() @ std.square() + 1e-6).sqrt()
        perturbation = (
            torch.zeros_like(loc) if noise is None else (detached.unsqueeze(-2) @ (noise * std.detach())).squeeze(-2)
        )
        return loc, scale, perturbation


class ResampleNoise(nn.Module):
    """Draws new standard normal noise when an episode begins, and with `probability` at every other step."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, noise: Tensor, is_init: Tensor) -> Tensor:
        """Shapes: `[*, width, num_actions], [*, 1] -> [*, width, num_actions]`."""
        is_new = is_init | (torch.rand_like(is_init, dtype=noise.dtype) < self.probability)
        return torch.where(is_new.unsqueeze(-1), torch.randn_like(noise), noise)


class ScaleParameters(nn.Module):
    """Scales the parameters of a Gaussian to the range of an action.

    A mean of -1 or 1 becomes a bound, and a scale of 1 becomes a quarter of the range. The bounds are two standard
    deviations from the center if the scale is 1.

    Args:
        network: Network whose first output is the mean. Its other outputs are scales or perturbations.
        center: Center of the range, `[n]`.
        half_range: Half the width of the range, `[n]`.
        is_scaled: Whether an entry is scaled; the parameters of other entries are unchanged, bool `[n]`.

    """

    center: Tensor
    half_range: Tensor
    unit: Tensor

    def __init__(self, network: nn.Module, center: Tensor, half_range: Tensor, is_scaled: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("center", center.where(is_scaled, 0.0), persistent=False)
        self.register_buffer("half_range", half_range.where(is_scaled, 1.0), persistent=False)
        self.register_buffer("unit", (half_range / 2).where(is_scaled, 1.0), persistent=False)

    def forward(self, features: Tensor, *args: Tensor | None, **kwargs: Tensor | None) -> Parameters:
        """Shapes: `[*, width] -> [*, n]` for every parameter."""
        loc, *others = self.network(features, *args, **kwargs)
        return (self.center + self.half_range * loc, *(self.unit * other for other in others))


class ConcatHeads(nn.Module):
    """Applies several networks to the same features and concatenates their outputs."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, features: Tensor) -> Parameters:
        """Return the parameters of all networks for the features `[*, width]`."""
        return tuple(parameter for network in self.networks for parameter in network(features))
