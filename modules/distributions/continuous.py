"""Distributions of continuous actions.

PyTorch and TorchRL do not have these distributions, or their own versions cannot be compiled. Every distribution has a
`deterministic_sample` and can be traced into a single graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributions as D  # noqa: N812
from torch.nn.functional import softplus

from .action import Shape


class SquashedNormal(D.Independent[D.Normal]):
    """The distribution of actions a = low + (high - low) (tanh(u) + 1) / 2 with u Gaussian.

    Samples are u, not a, so the tanh is never inverted. Densities are those of the action, in its units. The KL
    divergence is that of the Gaussians, because a bijection does not change it.

    Source: Haarnoja et al. 2018, "Soft actor-critic", appendix C.

    Args:
        loc: Mean of u, `[*, n]`.
        scale: Standard deviation of u, `[*, n]`.
        low: Lower bounds of the n actions.
        high: Upper bounds of the n actions.

    """

    def __init__(self, loc: Tensor, scale: Tensor, low: Sequence[float], high: Sequence[float], **kwargs: Any) -> None:
        super().__init__(D.Normal(loc, scale, **kwargs), 1, **kwargs)
        self._log_half_range = sum(math.log((upper - lower) / 2) for lower, upper in zip(low, high, strict=True))

    def log_slope(self, value: Tensor) -> Tensor:
        """Compute log |da/du|, with log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)).

        Shapes: `[*, n] -> [*]`.
        """
        return 2 * (math.log(2) - value - softplus(-2 * value)).sum(-1) + self._log_half_range

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of the action for u = `value`.

        Shapes: `[*, n] -> [*]`.
        """
        return super().log_prob(value) - self.log_slope(value)  # type: ignore[no-untyped-call]

    def entropy(self) -> Tensor:
        """Return H(u) + E[log |da/du|], `[*]`, where the expectation is estimated from one sample."""
        return super().entropy() + self.log_slope(self.rsample())  # type: ignore[no-untyped-call]

    @property
    def deterministic_sample(self) -> Tensor:
        """The median."""
        return self.base_dist.loc


class IndependentBeta(D.Independent[D.Beta]):
    """Independent beta variables in (0, 1).

    Densities are those of the variables, not of actions that they are scaled to.

    Source: Chou, Maturana and Scherer 2017, "Improving stochastic policy gradients ... using the beta distribution".

    Args:
        alpha: `[*, n]`, above 1 for a single peak.
        beta: `[*, n]`, above 1 for a single peak.

    """

    def __init__(self, alpha: Tensor, beta: Tensor, **kwargs: Any) -> None:
        super().__init__(D.Beta(alpha, beta, **kwargs), 1, **kwargs)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return a ratio x / (x + y) of gamma variables, `[*sample_shape, *, n]`.

        The sample is clamped to values with a finite density. PyTorch's implementation is an `autograd.Function`, for
        which the compiler prints a warning.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        parameters = self.base_dist.concentration1, self.base_dist.concentration0
        x, y = (torch._standard_gamma(parameter.expand(shape)) for parameter in parameters)
        ratio = x / (x + y)
        margin = torch.finfo(ratio.dtype).eps
        return ratio.clamp(margin, 1 - margin)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return a sample without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def deterministic_sample(self) -> Tensor:
        """The mean; the mode can be anywhere if the distribution is almost uniform."""
        return self.base_dist.mean


class StateDependentNoise(D.Independent[D.Normal]):
    """A Gaussian whose samples use noise that persists over steps (generalized state-dependent exploration).

    Source: Raffin et al. 2021, "Smooth exploration for robotic reinforcement learning", eq. 4 to 7.

    Args:
        loc: Mean, `[*, n]`.
        scale: Standard deviation of the perturbation over all possible noise, `[*, n]`.
        perturbation: Perturbation by the current noise, `[*, n]`.

    """

    def __init__(self, loc: Tensor, scale: Tensor, perturbation: Tensor, **kwargs: Any) -> None:
        super().__init__(D.Normal(loc, scale, **kwargs), 1, **kwargs)
        self._perturbation = perturbation

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return `loc + perturbation`, which is the same for every call, `[*sample_shape, *, n]`."""
        sample = self.base_dist.loc + self._perturbation
        return sample.expand(torch.Size(sample_shape) + sample.shape)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return a sample without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def deterministic_sample(self) -> Tensor:
        """The mean."""
        return self.base_dist.loc
