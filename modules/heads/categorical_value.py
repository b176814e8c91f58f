"""A value head that predicts a histogram of the return and learns by classification."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import ConfigurationError
from ..normalizers import Reduce, RunningMoments, no_reduce
from .value_heads import ValueHead, check_shapes, last_layer

MARGIN = 4.0
"""Number of standard deviations by which the bins extend beyond `v_min` and `v_max`.

Without a margin, the Gaussian of a target near the ends would be cut off, and its mean would not be the target.
"""


class CategoricalValue(ValueHead):
    """Predicts a histogram of the return over equal bins with a cross-entropy loss; the value is its mean.

    Targets become Gaussian histograms (HL-Gauss: Farebrother et al. 2024, "Stop regressing"), or with
    `sigma_ratio=0` the weights of the two nearest bins (two-hot: Schrittwieser et al. 2020).

    Args:
        width: Number of features.
        num_bins: Number of bins.
        v_min: Smallest value, in units of the reward. Smaller targets are clamped.
        v_max: Largest value, in units of the reward. Larger targets are clamped.
        sigma_ratio: Standard deviation of the Gaussian, in bins.
        symlog: Whether the bins are equal in sign(x) log(1 + |x|) (Hafner et al. 2023) instead of x. Weights and mean
            are still computed in x, because otherwise the values of stochastic returns would be too small. Requires
            `sigma_ratio=0`.

    Raises:
        ConfigurationError: If the range is empty, there are too few bins, or `symlog` is used with a Gaussian.

    """

    out_keys: ClassVar[list[str]] = ["state_value", "value_logits"]

    centers: Tensor

    def __init__(
        self,
        width: int,
        num_bins: int = 101,
        v_min: float = -100.0,
        v_max: float = 100.0,
        sigma_ratio: float = 0.75,
        symlog: bool = False,
    ) -> None:
        super().__init__()
        if not v_min < v_max:
            raise ConfigurationError(f"critic.head.v_min={v_min} must be below critic.head.v_max={v_max}")
        if sigma_ratio < 0:
            raise ConfigurationError(f"critic.head.sigma_ratio={sigma_ratio} must not be negative; 0.75 is usual")
        if symlog and sigma_ratio:
            raise ConfigurationError(
                f"critic.head.symlog=true needs critic.head.sigma_ratio=0, not {sigma_ratio}; change one of them, "
                "because the mean of a Gaussian over bins of different widths is not the target"
            )
        self.sigma_ratio = sigma_ratio
        self.symlog = symlog
        self._margin = MARGIN * sigma_ratio
        num_inner_bins = num_bins - 1 - 2 * self._margin
        if num_inner_bins <= 0:
            minimum = math.floor(2 + 2 * self._margin)
            raise ConfigurationError(f"critic.head.num_bins={num_bins} must be at least {minimum}; 101 is usual")
        limits = torch.tensor([v_min, v_max], dtype=torch.float64)
        low, high = (symmetric_log(limits) if symlog else limits).tolist()
        self._bin_width = (high - low) / num_inner_bins
        self._first_center = low - self._margin * self._bin_width
        centers = self._first_center + self._bin_width * torch.arange(num_bins, dtype=torch.float64)
        reward_centers = symmetric_exp(centers) if symlog else centers
        self.register_buffer("centers", reward_centers.to(torch.get_default_dtype()), persistent=False)
        self.layer = last_layer(width, num_bins)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: `[*, width] -> state_value [*, 1], value_logits [*, num_bins]`."""
        logits: Tensor = self.layer(features)
        return (logits.softmax(-1) * self.centers).sum(-1, keepdim=True), logits

    def histogram(self, target: Tensor) -> Tensor:
        """Compute the target probabilities.

        Shapes: `[*, 1] -> [*, num_bins]`.
        """
        num_bins = len(self.centers)
        position = ((symmetric_log(target) if self.symlog else target) - self._first_center) / self._bin_width
        position = position.clamp(self._margin, num_bins - 1 - self._margin)
        if self.symlog:
            index = position.long().clamp(max=num_bins - 2)
            low, high = self.centers[index], self.centers[index + 1]
            position = index + ((target - low) / (high - low)).clamp(0, 1)
        if self.sigma_ratio:
            return gaussian_histogram(position, num_bins, self.sigma_ratio)
        return two_hot(position, num_bins)

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        """Compute the cross-entropy -sum_i p_i log q_i of the target p and the prediction q."""
        check_shapes(predicted["state_value"], target)
        return -(self.histogram(target) * predicted["value_logits"].log_softmax(-1)).sum(-1, keepdim=True)


class AdaptiveCategoricalValue(CategoricalValue):
    """A `CategoricalValue` whose bins span `num_stds` standard deviations on both sides of the mean target.

    The bins are fixed on the scale (target - mean) / standard deviation, with running statistics over all ranks.
    Predictions move with the bins when the statistics change, because the layer predicts logits; `PopArtValue` keeps
    its predictions. Chang et al. 2026, "Learning the supports for categorical critic in reinforcement learning", learn
    the bounds by gradient descent instead, which needs a learning rate in units of the return.

    Args:
        width: Number of features.
        num_bins: Number of bins.
        num_stds: Distance of the first and last bin from the mean, in standard deviations. Targets beyond them are
            clamped.
        sigma_ratio: See `CategoricalValue`.
        beta: Fraction of the statistics that is discarded with each rollout. With 0, all targets count equally.

    Raises:
        ConfigurationError: If `num_stds` is not positive, or `beta` is outside [0, 1); see also `CategoricalValue`.

    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, width: int, num_bins: int = 101, num_stds: float = 5.0, sigma_ratio: float = 0.75, beta: float = 0.1
    ) -> None:
        if not num_stds > 0:
            raise ConfigurationError(f"critic.head.num_stds={num_stds} must be positive; 5 is usual")
        if not 0 <= beta < 1:
            raise ConfigurationError(f"critic.head.beta={beta} must lie within [0, 1); 0.1 is usual")
        super().__init__(width, num_bins, -num_stds, num_stds, sigma_ratio)
        self.beta = beta
        self.moments = RunningMoments()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: `[*, width] -> state_value [*, 1], value_logits [*, num_bins]`."""
        value, logits = super().forward(features)
        return value * self.std + self.mean, logits

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        """Compute the cross-entropy of the normalized target; see `CategoricalValue`."""
        return super().error(predicted, (target - self.mean) / self.std, old_value, clip_value)

    def update(self, value_target: Tensor, reduce: Reduce = no_reduce) -> None:
        """Update the statistics, in place."""
        reduce(self.moments.measure(value_target), self._merge)

    @torch.no_grad()
    def _merge(self, measured: Tensor) -> None:
        self.moments.count.mul_(1 - self.beta)
        self.moments.merge(measured)
        self.mean.copy_(self.moments.mean)
        self.std.copy_(self.moments.var.sqrt().clamp(1e-4, 1e6))


def gaussian_histogram(position: Tensor, num_bins: int, sigma: float) -> Tensor:
    """Integrate a Gaussian over bins [i - 1/2, i + 1/2] and normalize the result.

    Source: Farebrother et al. 2024, section 3.1. Shapes: `[*, 1] -> [*, num_bins]`.

    Args:
        position: Mean of the Gaussian, in bins.
        num_bins: Number of bins.
        sigma: Standard deviation, in bins.

    """
    edges = torch.arange(num_bins + 1, device=position.device) - 0.5
    cdf = ((edges - position) / (math.sqrt(2) * sigma)).erf()
    return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])


def two_hot(position: Tensor, num_bins: int) -> Tensor:
    """Compute the weights of the two nearest bins, whose mean is `position`: p_i = max(0, 1 - |position - i|).

    Source: Schrittwieser et al. 2020, appendix F. Shapes: `[*, 1] -> [*, num_bins]`.
    """
    return (1 - (position - torch.arange(num_bins, device=position.device)).abs()).clamp(min=0)


def symmetric_log(x: Tensor) -> Tensor:
    """Compute sign(x) log(1 + |x|) (Hafner et al. 2023)."""
    return x.sign() * x.abs().log1p()


def symmetric_exp(x: Tensor) -> Tensor:
    """Compute the inverse of `symmetric_log`."""
    return x.sign() * x.abs().expm1()
