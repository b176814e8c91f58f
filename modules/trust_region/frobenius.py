"""Trust region with the Frobenius norm."""

from __future__ import annotations

import torch
from torch import Tensor

from .trust_region import TrustRegion, mahalanobis, mixed


class FrobeniusTrustRegion(TrustRegion):
    """Bounds the squared Frobenius norm of the change of the covariance.

    The distance of the mean is (m - m_old)^T S_old^-1 (m - m_old), that of the covariance |S - S_old|_F^2. The
    projections mix the old and the new mean, and the old and the new covariance. The distance of a categorical
    distribution is |p - p_old|^2, and its projection mixes the probabilities.

    Source: Otto et al. 2021, section 4.1. The projection of categorical distributions is ours.

    Args:
        mean_bound: See `TrustRegion`.
        cov_bound: See `TrustRegion`; in units of the action to the power of 4.
        alpha: See `TrustRegion`.

    Raises:
        ConfigurationError: If a value is out of range.

    """

    def __init__(self, *, mean_bound: float = 0.03, cov_bound: float = 1e-3, alpha: float = 8.0) -> None:
        super().__init__(mean_bound=mean_bound, cov_bound=cov_bound, alpha=alpha)

    def gaussian_distances(
        self, loc: Tensor, scale: Tensor, old_loc: Tensor, old_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        of_cov = (scale.square() - old_scale.square()).square().sum(-1)
        return mahalanobis(loc, old_loc, old_scale), of_cov

    def project_scale(self, scale: Tensor, old_scale: Tensor, distance: Tensor) -> Tensor:
        variance = mixed(scale.square(), old_scale.square(), distance, self.cov_bound)
        return torch.where((distance > self.cov_bound).unsqueeze(-1), variance.sqrt(), scale)

    def categorical_distance(self, logits: Tensor, old_logits: Tensor) -> Tensor:
        return (logits.exp() - old_logits.exp()).square().sum(-1)

    def project_logits(self, logits: Tensor, old_logits: Tensor, distance: Tensor) -> Tensor:
        probs = mixed(logits.exp(), old_logits.exp(), distance, self.mean_bound)
        projected = probs.clamp_min(torch.finfo(probs.dtype).tiny).log()  # of choices that a mask forbids
        return torch.where((distance > self.mean_bound).unsqueeze(-1), projected, logits)
