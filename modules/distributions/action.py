"""Action distributions that PyTorch and TorchRL lack, as `torch.distributions` that compile into their graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributions as D  # noqa: N812
from torch.nn.functional import one_hot, softplus

Shape = torch.Size | list[int] | tuple[int, ...]


class Categorical(D.Categorical):
    """PyTorch's categorical distribution with a sample that compiles into its graph, unlike `torch.multinomial`."""

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """The largest of `logits - log(-log(u))`, with u uniform (Gumbel-max): int64 `[*sample_shape, *]`."""
        shape = self._extended_shape(torch.Size(sample_shape)) + self.logits.shape[-1:]
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        positive = uniform.clamp_min(torch.finfo(uniform.dtype).tiny)  # at u = 0 a masked choice would be the largest
        return (self.logits - (-positive.log()).log()).argmax(-1)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable choice."""
        return self.logits.argmax(-1)


@D.register_kl(Categorical, Categorical)  # type: ignore[untyped-decorator]
def kl_of_choices(old: Categorical, new: Categorical) -> Tensor:
    """sum_i p_i (log p_i - log q_i), finite for all logits: PyTorch's is not once a q_i rounds to 0. `[*]`."""
    return (old.probs * (old.logits - new.logits)).sum(-1)


class OneHotCategorical(Categorical):
    """The same choice as a vector of zeros and a one, as many TorchRL environments take it: int64 `[*, n]`."""

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """`[*sample_shape, *, n]`."""
        return one_hot(super().sample(sample_shape), self.logits.shape[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """`[*, n] -> [*]`."""
        return super().log_prob(value.argmax(-1))  # type: ignore[no-untyped-call]

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable choice."""
        return one_hot(self.logits.argmax(-1), self.logits.shape[-1])


class MultiCategorical(D.Independent[Categorical]):
    """Independent categorical choices, the i-th among `nvec[i]`.

    Args:
        logits: `[*, sum(nvec)]`, one block after the other.
        nvec: the number of choices of every factor.

    Actions are int64 `[*, len(nvec)]`; log-probabilities, entropies and KLs are sums over the factors.

    """

    def __init__(self, logits: Tensor, nvec: Sequence[int], **kwargs: Any) -> None:
        """Pad the blocks to one width with logits that no choice ever has."""
        padded = logits.new_full((*logits.shape[:-1], len(nvec), max(nvec)), torch.finfo(logits.dtype).min / 2)
        for factor, block in enumerate(logits.split(list(nvec), -1)):
            padded[..., factor, : nvec[factor]] = block
        super().__init__(Categorical(logits=padded, **kwargs), 1, **kwargs)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable choice of every factor."""
        return self.base_dist.logits.argmax(-1)


def masked_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits of which only allowed choices are ever sampled; entropies and KLs under one mask stay finite.

    Where nothing is allowed, everything is equally likely, except `MultiCategorical`'s padding, which is lower still.

    Args:
        logits: `[*, n]`.
        mask: `[*, n]`, bool or integers, zero where a choice is forbidden.

    Source: Huang & Ontañón 2022, "A closer look at invalid action masking in policy gradient algorithms".

    """
    return logits.masked_fill(~mask.bool(), torch.finfo(logits.dtype).min / 4)


class IndependentBernoulli(D.Independent[D.Bernoulli]):
    """Independent coin flips with `logits` `[*, n]`; actions are int8 `[*, n]`."""

    def __init__(self, logits: Tensor, **kwargs: Any) -> None:
        """One coin for every logit."""
        super().__init__(D.Bernoulli(logits=logits, **kwargs), 1, **kwargs)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Zeros and ones, int8; PyTorch's own does not compile into its graph."""
        probs = self.base_dist.probs
        shape = torch.Size(sample_shape) + probs.shape
        return (torch.rand(shape, dtype=probs.dtype, device=probs.device) < probs).to(torch.int8)

    def log_prob(self, value: Tensor) -> Tensor:
        """`[*, n] -> [*]`."""
        return super().log_prob(value.to(self.base_dist.logits.dtype))  # type: ignore[no-untyped-call]

    @property
    def deterministic_sample(self) -> Tensor:
        """The more probable side of every coin; PyTorch's `mode` is NaN for a fair one."""
        return (self.base_dist.logits > 0).to(torch.int8)


@D.register_kl(IndependentBernoulli, IndependentBernoulli)  # type: ignore[untyped-decorator]
def kl_of_coins(old: IndependentBernoulli, new: IndependentBernoulli) -> Tensor:
    """Sum of the coins' KL(old || new), finite for all logits: PyTorch's is not from 17 on, in float32. `[*]`."""
    a, b = old.base_dist.logits, new.base_dist.logits
    heads, tails = softplus(-b) - softplus(-a), softplus(b) - softplus(a)
    return (a.sigmoid() * heads + (-a).sigmoid() * tails).sum(-1)


class SquashedNormal(D.Independent[D.Normal]):
    """Actions a = low + (high - low) (tanh(u) + 1) / 2 with u Gaussian, told by their u: no tanh is ever inverted.

    Args:
        loc: `[*, n]`, mean of u.
        scale: `[*, n]`, standard deviation of u.
        low: n lower bounds, in units of the action.
        high: n upper bounds, in units of the action.

    Densities are the action's, in its units. The KL is that of the Gaussians, which no bijection changes.
    Source: Haarnoja et al. 2018, "Soft actor-critic", appendix C.

    """

    def __init__(self, loc: Tensor, scale: Tensor, low: Sequence[float], high: Sequence[float], **kwargs: Any) -> None:
        """Independent Gaussians; of the bounds only their distance changes a density."""
        super().__init__(D.Normal(loc, scale, **kwargs), 1, **kwargs)
        self._log_half_range = sum(math.log((top - bottom) / 2) for bottom, top in zip(low, high, strict=True))

    def log_slope(self, value: Tensor) -> Tensor:
        """The logarithm of |da/du|, with log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)): `[*, n] -> [*]`."""
        return 2 * (math.log(2) - value - softplus(-2 * value)).sum(-1) + self._log_half_range

    def log_prob(self, value: Tensor) -> Tensor:
        """Of the action whose u is `value`: `[*, n] -> [*]`."""
        return super().log_prob(value) - self.log_slope(value)  # type: ignore[no-untyped-call]

    def entropy(self) -> Tensor:
        """H(u) + E[log |da/du|], the mean estimated from one sample: `[*]`."""
        return super().entropy() + self.log_slope(self.rsample())  # type: ignore[no-untyped-call]

    @property
    def deterministic_sample(self) -> Tensor:
        """The median."""
        return self.base_dist.loc


class IndependentBeta(D.Independent[D.Beta]):
    """Independent fractions in (0, 1), with `alpha` and `beta` `[*, n]`, both above 1 for a single peak.

    Densities are per unit of the fraction, not of an action that it is stretched to.
    Source: Chou, Maturana & Scherer 2017, "Improving stochastic policy gradients ... using the beta distribution".
    """

    def __init__(self, alpha: Tensor, beta: Tensor, **kwargs: Any) -> None:
        """One fraction for every pair."""
        super().__init__(D.Beta(alpha, beta, **kwargs), 1, **kwargs)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """A ratio x / (x + y) of gamma variables, where every density is finite: `[*sample_shape, *, n]`.

        PyTorch's own, of an `autograd.Function`, makes the compiler warn.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        parameters = self.base_dist.concentration1, self.base_dist.concentration0
        x, y = (torch._standard_gamma(parameter.expand(shape)) for parameter in parameters)
        fraction = x / (x + y)
        margin = torch.finfo(fraction.dtype).eps
        return fraction.clamp(margin, 1 - margin)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """The same without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def deterministic_sample(self) -> Tensor:
        """The mean; the mode of nearly equal odds may be anywhere."""
        return self.base_dist.mean


class StateDependentNoise(D.Independent[D.Normal]):
    """A Gaussian whose samples share their noise over many steps (generalised state-dependent exploration).

    Args:
        loc: `[*, n]`.
        scale: `[*, n]`, of the perturbation over all noise that could have been drawn.
        perturbation: `[*, n]`, what the noise of these steps makes of their features.

    Source: Raffin et al. 2021, "Smooth exploration for robotic reinforcement learning", eq. 4 to 7.

    """

    def __init__(self, loc: Tensor, scale: Tensor, perturbation: Tensor, **kwargs: Any) -> None:
        """Independent Gaussians."""
        super().__init__(D.Normal(loc, scale, **kwargs), 1, **kwargs)
        self._perturbation = perturbation

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """`loc + perturbation`, every time: `[*sample_shape, *, n]`."""
        sample = self.base_dist.loc + self._perturbation
        return sample.expand(torch.Size(sample_shape) + sample.shape)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """The same without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def deterministic_sample(self) -> Tensor:
        """The mean."""
        return self.base_dist.loc
