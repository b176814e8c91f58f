"""A critic of Q(s, a) with an advantage that is quadratic in the action; experimental."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchrl.data import TensorSpec
from torchrl.modules import IndependentNormal

from ...errors import ConfigurationError
from ..features.bodies import FullPrecision, orthogonal_
from .action_heads import Head
from .networks import GAIN, ScaleParameters
from .value_heads import ValueHead, check_shapes, last_layer


class QuadraticAdvantageValue(ValueHead):
    """Predicts Q(s, a) = V(s) + A(s, a), where A is quadratic in the action and has the mean 0 under the policy.

    A(s, a) = -(q(a) - E[q(a')]) / 2, q(a) = (a - mu(s))^T P(s) (a - mu(s)), P(s) = L(s) L(s)^T

    V, mu and L are linear functions of the features; L is a lower triangular matrix with a positive diagonal. The error
    is (Q(s, a) - R)^2 for the action taken and its value target R. The expectation is that of the Gaussian policy at
    collection, with mean m and standard deviations sigma: E[q(a')] = q(m) + sum_ij L_ij^2 sigma_i^2. The mean of A is
    therefore 0, so the V with the smallest error is the value of the policy, as with the squared error of V. A explains
    a part of the variance of the returns. Estimators use only V.

    Experimental: we do not know of published results for PPO.

    Source: Gu et al. 2016, "Continuous deep Q-learning with model-based acceleration" (NAF), eq. 3 to 5. There, Q is
    learned off-policy, and V is the value of the best action mu.

    Args:
        width: Number of features.
        initial_curvature: Diagonal of P at the start, in units of the reward per squared unit of the action.

    Raises:
        ConfigurationError: If `initial_curvature` is not positive.

    """

    out_keys: ClassVar[list[str]] = ["state_value", "best_action", "curvature"]
    collected_keys: ClassVar[list[str]] = ["action", "loc", "scale"]

    def __init__(self, width: int, initial_curvature: float = 0.01) -> None:
        super().__init__()
        if not initial_curvature > 0:
            raise ConfigurationError(
                f"critic.head.initial_curvature={initial_curvature} must be positive; 0.01 is usual"
            )
        self.width = width
        self.initial_curvature = initial_curvature
        self.layer = last_layer(width, 1)

    def setup(self, action_spec: TensorSpec, head: Head) -> None:
        """Make the layers of mu and L.

        Raises:
            ConfigurationError: If the policy is not a Gaussian distribution of one action with bounds near [-1, 1].

        """
        distribution = head.distribution_class
        is_normal = isinstance(distribution, partial) and distribution.func is IndependentNormal
        if not is_normal or head.to_action is not None:
            raise ConfigurationError(
                "critic=quadratic_advantage needs one continuous action with a Gaussian policy; use head=gaussian or "
                "gaussian_state_dependent, or another critic, such as critic=mse"
            )
        if isinstance(head.network, ScaleParameters):
            raise ConfigurationError(
                "critic=quadratic_advantage needs action bounds near [-1, 1]; rescale the actions with Gymnasium's "
                "RescaleAction, or use another critic, such as critic=mse"
            )
        size = action_spec.shape[-1]
        self.action = FullPrecision(orthogonal_(nn.Linear(self.width, size), GAIN))
        self.matrix = FullPrecision(Factor(self.width, size, math.sqrt(self.initial_curvature)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shapes: `[*, width] -> V [*, 1], mu [*, n], L [*, n, n]`."""
        return self.layer(features), self.action(features), self.matrix(features)

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        check_shapes(predicted["state_value"], target)
        best, factor = predicted["best_action"], predicted["curvature"]
        mean_form = quadratic_form(predicted["loc"] - best, factor)
        spread = (factor * predicted["scale"].unsqueeze(-1)).square().sum((-2, -1)).unsqueeze(-1)
        advantage = -0.5 * (quadratic_form(predicted["action"] - best, factor) - mean_form - spread)
        return (predicted["state_value"] + advantage - target).square()


class Factor(nn.Module):
    """Computes lower triangular matrices with a positive diagonal, which starts near `diagonal`."""

    def __init__(self, width: int, size: int, diagonal: float) -> None:
        super().__init__()
        self.size = size
        self.offset = math.log(math.expm1(diagonal))
        self.linear = orthogonal_(nn.Linear(width, size * size), GAIN)

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: `[*, width] -> [*, size, size]`."""
        entries = self.linear(features).unflatten(-1, (self.size, self.size))
        diagonal = nn.functional.softplus(entries.diagonal(dim1=-2, dim2=-1) + self.offset)
        factor: Tensor = entries.tril(-1) + torch.diag_embed(diagonal)
        return factor


def quadratic_form(difference: Tensor, factor: Tensor) -> Tensor:
    """Compute d^T L L^T d: `[*, n], [*, n, n] -> [*, 1]`. A matrix product would have less precision under autocast."""
    return (factor * difference.unsqueeze(-1)).sum(-2).square().sum(-1, keepdim=True)
