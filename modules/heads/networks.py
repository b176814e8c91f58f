"""The networks of heads: from features to the parameters of a distribution, and from its samples to actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..features.bodies import orthogonal_

GAIN = 0.01
LOWEST_LOG_STD, HIGHEST_LOG_STD = -20.0, 2.0

Parameters = tuple[Tensor, ...]


class StateIndependentScale(nn.Module):
    """A mean from the features and one learned scale for every action, the same in all states."""

    def __init__(self, head: nn.Module, num_actions: int, log_std: float) -> None:
        """Start every scale at `exp(log_std)`."""
        super().__init__()
        self.head = head
        self.log_std = nn.Parameter(torch.full((num_actions,), log_std))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, features] -> loc [*, actions], scale [*, actions]`."""
        loc = self.head(features)
        return loc, self.log_std.exp().expand_as(loc)


class StateDependentScale(nn.Module):
    """A mean and a scale from the features."""

    def __init__(self, width: int, num_actions: int, log_std: float) -> None:
        """Start every scale near `exp(log_std)`."""
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, 2 * num_actions), GAIN)
        nn.init.constant_(self.linear.bias[num_actions:], log_std)  # type: ignore[index]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, width] -> loc [*, actions], scale [*, actions]`."""
        loc, log_std = self.linear(features).chunk(2, -1)
        return loc, log_std.clamp(LOWEST_LOG_STD, HIGHEST_LOG_STD).exp()


class Concentrations(nn.Module):
    """Both concentrations of a beta distribution, above 1: it has one peak and falls to zero at the bounds."""

    def __init__(self, width: int, num_actions: int) -> None:
        """Start nearly symmetric."""
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, 2 * num_actions), GAIN)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, width] -> alpha [*, actions], beta [*, actions]`."""
        alpha, beta = (1 + nn.functional.softplus(self.linear(features))).chunk(2, -1)
        return alpha, beta


class StateDependentExploration(nn.Module):
    """A mean, and noise that is a linear function of the features, which it does not train (gSDE)."""

    def __init__(self, width: int, num_actions: int, log_std: float) -> None:
        """Start every scale of the noise's weights at `exp(log_std)`."""
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, num_actions), GAIN)
        self.log_std = nn.Parameter(torch.full((width, num_actions), log_std))

    def forward(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`[*, width], noise [*, width, actions] -> loc, scale, perturbation`, `[*, actions]` each; no noise: zeros.

        The noise is standard, and has the scale that is learnt by now also where it was drawn before an update.
        """
        loc = self.linear(features)
        fixed = features.detach()
        std = self.log_std.exp()
        scale = (fixed.square() @ std.square() + 1e-6).sqrt()
        perturbation = (
            torch.zeros_like(loc) if noise is None else (fixed.unsqueeze(-2) @ (noise * std.detach())).squeeze(-2)
        )
        return loc, scale, perturbation


class Redraw(nn.Module):
    """Standard normal noise, drawn anew where an episode begins and with `probability` at every other step."""

    def __init__(self, probability: float) -> None:
        """Keep the probability."""
        super().__init__()
        self.probability = probability

    def forward(self, noise: Tensor, is_init: Tensor) -> Tensor:
        """`[*, width, actions], [*, 1] -> [*, width, actions]`."""
        anew = is_init | (torch.rand_like(is_init, dtype=noise.dtype) < self.probability)
        return torch.where(anew.unsqueeze(-1), torch.randn_like(noise), noise)


class IntoBounds(nn.Module):
    """From fractions of the way between two bounds to actions."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        """Keep the bounds, `[n]` each; not saved: the environment owns them."""
        super().__init__()
        self.register_buffer("low", low.clone(), persistent=False)
        self.register_buffer("high", high.clone(), persistent=False)

    def forward(self, fraction: Tensor) -> Tensor:
        """`[*, n]` in [0, 1] to `[*, n]` within the bounds, in their type."""
        action = self.low + (self.high - self.low) * fraction
        return action.to(self.low.dtype).clamp(self.low, self.high)  # rounding may have left them


class TanhFraction(nn.Module):
    """From a real number to a fraction."""

    def forward(self, value: Tensor) -> Tensor:
        """(tanh(u) + 1) / 2: `[*] -> [*]`."""
        return (value.tanh() + 1) / 2


class ConcatHeads(nn.Module):
    """Several networks over the same features."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Keep their order."""
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, features: Tensor) -> Parameters:
        """`[*, width] ->` the parameters of all, one network's after the other's."""
        return tuple(parameter for network in self.networks for parameter in network(features))


class SplitAction(nn.Module):
    """From one flat sample to the action of every leaf.

    Args:
        shapes: of every leaf's action.
        dtypes: of every leaf's action.
        to_actions: from every leaf's sample to its action.

    """

    def __init__(
        self, shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype], to_actions: Sequence[nn.Module]
    ) -> None:
        """Keep the order of the leaves."""
        super().__init__()
        self.shapes = list(shapes)
        self.dtypes = list(dtypes)
        self.to_actions = nn.ModuleList(to_actions)

    def forward(self, sample: Tensor) -> tuple[Tensor, ...]:
        """`[*, sum of sizes] ->` `[*, *shape]` of every leaf."""
        parts = sample.split([shape.numel() for shape in self.shapes], -1)
        leaves = zip(parts, self.shapes, self.dtypes, self.to_actions, strict=True)
        return tuple(to(part.reshape(part.shape[:-1] + shape)).to(dtype) for part, shape, dtype, to in leaves)
