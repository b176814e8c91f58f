"""Trust region with the KL divergence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .trust_region import TrustRegion, mahalanobis

MIN_LOG_STEP, NUM_POINTS, NUM_GRIDS, NUM_NEWTON_STEPS = -30.0, 32, 2, 3
"""Options of the search for a step in [exp(-30), 1]. The error is 3 % after the grids and 1e-9 after Newton's steps."""


class KLTrustRegion(TrustRegion):
    """Bounds KL(pi || pi_old).

    The distance of the mean is (m - m_old)^T S_old^-1 (m - m_old) / 2, and that of the covariance is the rest of the
    KL divergence, (log |S_old| - log |S| + tr(S_old^-1 S) - n) / 2. The projected mean is a mix of the old and the new
    mean. The projected covariance has the precision t S^-1 + (1 - t) S_old^-1, and the projection of a categorical
    distribution the logits t log p + (1 - t) log p_old, with the largest t for which the bound holds. The gradient of t
    is that of the implicit function that defines it.

    Source: Otto et al. 2021, section 4.3, where t = 1 / (1 + eta) with the multiplier eta. The projection of
    categorical distributions is the same dual problem.

    Args:
        mean_bound: See `TrustRegion`; in nats.
        cov_bound: See `TrustRegion`; in nats.
        alpha: See `TrustRegion`.

    Raises:
        ConfigurationError: If a value is out of range.

    """

    def __init__(self, *, mean_bound: float = 0.03, cov_bound: float = 1e-3, alpha: float = 8.0) -> None:
        super().__init__(mean_bound=mean_bound, cov_bound=cov_bound, alpha=alpha)

    def gaussian_distances(
        self, loc: Tensor, scale: Tensor, old_loc: Tensor, old_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_ratio = 2 * (scale / old_scale).log()
        return 0.5 * mahalanobis(loc, old_loc, old_scale), 0.5 * (log_ratio.expm1() - log_ratio).sum(-1)

    def project_scale(self, scale: Tensor, old_scale: Tensor, distance: Tensor) -> Tensor:
        excess = (old_scale / scale).square() - 1  # of the precision, relative to the old one

        def divergence(step: Tensor) -> Tensor:
            x = step.unsqueeze(-1) * excess
            return 0.5 * (x.log1p() - x / (1 + x)).sum(-1)

        def slope(step: Tensor) -> Tensor:
            return 0.5 * step * (excess / (1 + step.unsqueeze(-1) * excess)).square().sum(-1)

        is_outside = distance > self.cov_bound
        step = largest_step(divergence, slope, self.cov_bound, is_outside).unsqueeze(-1)
        return torch.where(is_outside.unsqueeze(-1), old_scale * (1 + step * excess).rsqrt(), scale)

    def categorical_distance(self, logits: Tensor, old_logits: Tensor) -> Tensor:
        return (logits.exp() * (logits - old_logits)).sum(-1)

    def project_logits(self, logits: Tensor, old_logits: Tensor, distance: Tensor) -> Tensor:
        change = logits - old_logits

        def mix(step: Tensor) -> Tensor:
            return (old_logits + step.unsqueeze(-1) * change).log_softmax(-1)

        def divergence(step: Tensor) -> Tensor:
            return self.categorical_distance(mix(step), old_logits)

        def slope(step: Tensor) -> Tensor:
            probs = mix(step).exp()
            centered = change - (probs * change).sum(-1, keepdim=True)
            return step * (probs * centered.square()).sum(-1)

        is_outside = distance > self.mean_bound
        step = largest_step(divergence, slope, self.mean_bound, is_outside)
        return torch.where(is_outside.unsqueeze(-1), mix(step), logits)


def largest_step(
    divergence: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], bound: float, is_outside: Tensor
) -> Tensor:
    """Solve divergence(t) = bound for t in (0, 1), where the divergence increases from 0.

    Grids and Newton steps use a logarithmic scale, on which the divergence is almost linear. A grid evaluates its
    points at once; a bisection would run ten times as many operations in sequence. The last Newton step has the
    gradient of the implicit function, dt = -d(divergence) / slope.

    Args:
        divergence: Of t `[*]`, for every sample; t may have another dimension in front.
        slope: Derivative of `divergence` with respect to t.
        bound: Value of the divergence.
        is_outside: Where divergence(1) is above the bound, `[*]`. The result is arbitrary elsewhere.

    Returns:
        t, `[*]`.

    """
    with torch.no_grad():
        zero = torch.zeros_like(divergence(torch.ones_like(is_outside, dtype=torch.float32)))
        points = torch.arange(1, NUM_POINTS, device=zero.device).view(-1, *[1] * zero.dim())
        low, width = zero + MIN_LOG_STEP, -MIN_LOG_STEP
        for _ in range(NUM_GRIDS):
            width /= NUM_POINTS
            is_inside = divergence((low + width * points).exp()) <= bound
            low = low + width * is_inside.sum(0)
        high, log_step = low + width, low + width / 2
        for _ in range(NUM_NEWTON_STEPS):
            step = log_step.exp()
            value = divergence(step)
            change = (value / bound).log() * value / (step * slope(step))
            log_step = torch.minimum(torch.maximum(log_step - change, low), high).where(is_outside, zero)
        step = log_step.exp()
        derivative = slope(step).where(is_outside, zero + 1)
    return step - (divergence(step) - bound).where(is_outside, zero) / derivative
