"""Modules that convert the samples of action heads to actions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ToBounds(nn.Module):
    """Base class of modules that map to the range between two bounds.

    The bounds are not saved in checkpoints, because the environment defines them.

    Args:
        low: Lower bounds, `[n]`.
        high: Upper bounds, `[n]`.

    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low.clone(), persistent=False)
        self.register_buffer("high", high.clone(), persistent=False)


class ScaleToBounds(ToBounds):
    """Maps [0, 1] to the range between the bounds."""

    def forward(self, fraction: Tensor) -> Tensor:
        """Shapes: `[*, n] -> [*, n]`, in the dtype of the bounds."""
        action = self.low + (self.high - self.low) * fraction
        return action.to(self.low.dtype).clamp(self.low, self.high)  # rounding can exceed the bounds


class TanhToUnitInterval(nn.Module):
    """Maps real numbers to [0, 1] with (tanh(u) + 1) / 2."""

    def forward(self, value: Tensor) -> Tensor:
        return (value.tanh() + 1) / 2


class BinToUnitInterval(nn.Module):
    """Maps bin indices from 0 to `num_bins` - 1 to [0, 1]."""

    def __init__(self, num_bins: int) -> None:
        super().__init__()
        self.num_bins = num_bins

    def forward(self, index: Tensor) -> Tensor:
        return index / (self.num_bins - 1)


class RoundToBounds(ToBounds):
    """Rounds numbers to the nearest integers within the bounds, which are int64."""

    def forward(self, value: Tensor) -> Tensor:
        """Shapes: `[*, n] -> int64 [*, n]`."""
        return value.round().long().clamp(self.low, self.high)


class AddOffset(nn.Module):
    """Adds an offset to integers.

    Args:
        offset: int64 `[n]`.

    """

    offset: Tensor

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("offset", offset.clone(), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """Shapes: `[*, n] -> [*, n]`."""
        return value + self.offset


class SplitAction(nn.Module):
    """Splits a flat sample into the actions of all leaves.

    Args:
        shapes: Action shape of every leaf.
        dtypes: Action dtype of every leaf.
        to_actions: For every leaf, a module from its flat sample to its flat action.

    """

    def __init__(
        self, shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype], to_actions: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.shapes = list(shapes)
        self.dtypes = list(dtypes)
        self.to_actions = nn.ModuleList(to_actions)

    def forward(self, sample: Tensor) -> tuple[Tensor, ...]:
        """Shapes: `[*, sum of sizes]`, to `[*, *shape]` for every leaf."""
        parts = sample.split([shape.numel() for shape in self.shapes], -1)
        leaves = zip(parts, self.shapes, self.dtypes, self.to_actions, strict=True)
        return tuple(
            to_action(part).reshape(part.shape[:-1] + shape).to(dtype) for part, shape, dtype, to_action in leaves
        )
