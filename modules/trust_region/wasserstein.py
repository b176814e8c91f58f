"""Trust region with the Wasserstein distance."""

from __future__ import annotations

from torch import Tensor

from ...errors import ConfigurationError
from .trust_region import TrustRegion, mahalanobis, mixed


class WassersteinTrustRegion(TrustRegion):
    """Bounds the squared 2-Wasserstein distance of Gaussians, in units of the old standard deviation.

    The distance of the mean is (m - m_old)^T S_old^-1 (m - m_old). That of a diagonal covariance is
    sum_i (s_i / s_old,i - 1)^2 with the standard deviations s. The projections mix the old and the new mean, and the
    old and the new standard deviations.

    Source: Otto et al. 2021, section 4.2.

    Args:
        mean_bound: See `TrustRegion`.
        cov_bound: See `TrustRegion`.
        alpha: See `TrustRegion`.

    Raises:
        ConfigurationError: If a value is out of range, or the distribution is not Gaussian.

    """

    def __init__(self, *, mean_bound: float = 0.085, cov_bound: float = 5e-5, alpha: float = 8.0) -> None:
        super().__init__(mean_bound=mean_bound, cov_bound=cov_bound, alpha=alpha)

    def gaussian_distances(
        self, loc: Tensor, scale: Tensor, old_loc: Tensor, old_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        return mahalanobis(loc, old_loc, old_scale), (scale / old_scale - 1).square().sum(-1)

    def project_scale(self, scale: Tensor, old_scale: Tensor, distance: Tensor) -> Tensor:
        return mixed(scale, old_scale, distance, self.cov_bound)

    def categorical_distance(self, logits: Tensor, old_logits: Tensor) -> Tensor:
        raise ConfigurationError(
            "trust_region=wasserstein needs continuous actions, because choices have no distances; use trust_region=kl "
            "or frobenius"
        )

    def project_logits(self, logits: Tensor, old_logits: Tensor, distance: Tensor) -> Tensor:
        return self.categorical_distance(logits, old_logits)
