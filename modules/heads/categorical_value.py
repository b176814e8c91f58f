"""A value head that predicts a histogram of the return."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import ConfigurationError
from ..normalizers import Reduce, alone
from .value_heads import ValueHead, check_shapes, last_layer

MARGIN = 4.0
"""Standard deviations that a histogram goes on beyond the values it is for: a Gaussian cut off at its mean would
have another mean, and no prediction could reach the ends."""


class CategoricalValue(ValueHead):
    """A histogram of the return over equal bins, by cross-entropy; its mean is the value.

    Targets become Gaussian histograms (HL-Gauss: Farebrother et al. 2024, "Stop regressing"), or with
    `sigma_ratio=0` weights of the two nearest bins (Schrittwieser et al. 2020).

    Args:
        width: of the features.
        num_bins: the number of bins.
        v_min: smallest value, in units of the reward; smaller targets count as this.
        v_max: largest value.
        sigma_ratio: standard deviation of the Gaussian in bins.
        symlog: whether bins are equal in sign(x) log(1 + |x|) (Hafner et al. 2023) instead of in x; weights and mean
            are those of x itself, or the value of a return that varies would be too small. Needs `sigma_ratio=0`.

    Raises:
        ConfigurationError: if the range is empty, the bins too few for it, or `symlog` asked for a Gaussian.

    """

    out_keys: ClassVar[list[str]] = ["state_value", "value_logits"]
    clips: ClassVar[bool] = False

    centres: Tensor

    def __init__(
        self,
        width: int,
        num_bins: int = 101,
        v_min: float = -100.0,
        v_max: float = 100.0,
        sigma_ratio: float = 0.75,
        symlog: bool = False,
    ) -> None:
        """Lay out the bins."""
        super().__init__()
        if not v_min < v_max:
            raise ConfigurationError(f"critic.head.v_min={v_min} must be below critic.head.v_max={v_max}")
        if sigma_ratio < 0:
            raise ConfigurationError(f"critic.head.sigma_ratio={sigma_ratio} must not be negative; 0.75 is usual")
        if symlog and sigma_ratio:
            raise ConfigurationError(
                f"critic.head.symlog=true needs critic.head.sigma_ratio=0, not {sigma_ratio}, or symlog=false: a "
                "Gaussian over bins that grow has another mean"
            )
        self.sigma_ratio = sigma_ratio
        self.symlog = symlog
        self._margin = MARGIN * sigma_ratio
        num_inner = num_bins - 1 - 2 * self._margin
        if num_inner <= 0:
            least = math.floor(2 + 2 * self._margin)
            raise ConfigurationError(f"critic.head.num_bins={num_bins} must be at least {least}; 101 is usual")
        ends = torch.tensor([v_min, v_max], dtype=torch.float64)
        low, high = (symmetric_log(ends) if symlog else ends).tolist()
        self._bin_width = (high - low) / num_inner
        self._first = low - self._margin * self._bin_width
        centres = self._first + self._bin_width * torch.arange(num_bins, dtype=torch.float64)
        in_units = symmetric_exp(centres) if symlog else centres
        self.register_buffer("centres", in_units.to(torch.get_default_dtype()), persistent=False)
        self.layer = last_layer(width, num_bins)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, width] -> state_value [*, 1], value_logits [*, num_bins]`."""
        logits: Tensor = self.layer(features)
        return (logits.softmax(-1) * self.centres).sum(-1, keepdim=True), logits

    def histogram(self, target: Tensor) -> Tensor:
        """The probabilities to learn: `[*, 1] -> [*, num_bins]`."""
        num_bins = len(self.centres)
        place = ((symmetric_log(target) if self.symlog else target) - self._first) / self._bin_width
        place = place.clamp(self._margin, num_bins - 1 - self._margin)
        if self.symlog:
            below = place.long().clamp(max=num_bins - 2)
            low, high = self.centres[below], self.centres[below + 1]
            place = below + ((target - low) / (high - low)).clamp(0, 1)
        return gaussian_histogram(place, num_bins, self.sigma_ratio) if self.sigma_ratio else two_hot(place, num_bins)

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        """-sum_i p_i log q_i, of the target's p and the predicted q: `[batch, 1]`."""
        check_shapes(predicted["state_value"], target)
        return -(self.histogram(target) * predicted["value_logits"].log_softmax(-1)).sum(-1, keepdim=True)

    def update(self, value_target: Tensor, reduce: Reduce = alone) -> None:
        """Nothing to learn."""


def gaussian_histogram(place: Tensor, num_bins: int, sigma: float) -> Tensor:
    """What of a Gaussian lies in every bin, the i-th of which is [i - 1/2, i + 1/2], relative to what lies in all.

    Source: Farebrother et al. 2024, section 3.1. Shapes: `[*, 1] -> [*, num_bins]`.
    """
    edges = torch.arange(num_bins + 1, device=place.device) - 0.5
    cdf = ((edges - place) / (math.sqrt(2) * sigma)).erf()
    return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])


def two_hot(place: Tensor, num_bins: int) -> Tensor:
    """Weights of the two nearest bins, whose mean is `place`: p_i = max(0, 1 - |place - i|).

    Source: Schrittwieser et al. 2020, appendix F. Shapes: `[*, 1] -> [*, num_bins]`.
    """
    return (1 - (place - torch.arange(num_bins, device=place.device)).abs()).clamp(min=0)


def symmetric_log(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|) (Hafner et al. 2023): `[*] -> [*]`."""
    return x.sign() * x.abs().log1p()


def symmetric_exp(x: Tensor) -> Tensor:
    """The inverse of `symmetric_log`: `[*] -> [*]`."""
    return x.sign() * x.abs().expm1()
