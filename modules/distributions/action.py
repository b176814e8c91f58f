"""Action distributions that PyTorch and TorchRL do not have, or whose own versions cannot be compiled.

Every distribution has a `deterministic_sample` and can be traced into a single graph.
"""

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
    """A categorical distribution that can be compiled, because it does not sample with `torch.multinomial`."""

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return argmax(logits - log(-log(u))) with u uniform (Gumbel-max trick), int64 `[*sample_shape, *]`."""
        shape = self._extended_shape(torch.Size(sample_shape)) + self.logits.shape[-1:]
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        # With u = 0, a masked choice would have the largest value.
        positive = uniform.clamp_min(torch.finfo(uniform.dtype).tiny)
        return (self.logits - (-positive.log()).log()).argmax(-1)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable choice."""
        return self.logits.argmax(-1)


@D.register_kl(Categorical, Categorical)  # type: ignore[untyped-decorator]
def kl_categorical(old: Categorical, new: Categorical) -> Tensor:
    """Return sum_i p_i (log p_i - log q_i), `[*]`.

    It is finite for all logits. PyTorch's implementation is infinite if a q_i rounds to 0.
    """
    return (old.probs * (old.logits - new.logits)).sum(-1)


class OneHotCategorical(Categorical):
    """A categorical distribution with one-hot samples, int64 `[*, n]`, which many TorchRL environments expect."""

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return a sample, `[*sample_shape, *, n]`."""
        return one_hot(super().sample(sample_shape), self.logits.shape[-1])

    def log_prob(self, value: Tensor) -> Tensor:
        """Shapes: `[*, n] -> [*]`."""
        return super().log_prob(value.argmax(-1))  # type: ignore[no-untyped-call]

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable choice."""
        return one_hot(self.logits.argmax(-1), self.logits.shape[-1])


class MultiCategorical(D.Independent[Categorical]):
    """Independent categorical variables.

    Samples are int64 `[*, len(nvec)]`. Log-probabilities, entropies and KL divergences are sums over the variables.

    Args:
        logits: Concatenated logits of all variables, `[*, sum(nvec)]`.
        nvec: Number of choices of every variable.

    """

    def __init__(self, logits: Tensor, nvec: Sequence[int], **kwargs: Any) -> None:
        # Pad all variables to the same number of choices with logits that are never sampled.
        padded = logits.new_full((*logits.shape[:-1], len(nvec), max(nvec)), torch.finfo(logits.dtype).min / 2)
        for index, block in enumerate(logits.split(list(nvec), -1)):
            padded[..., index, : nvec[index]] = block
        super().__init__(Categorical(logits=padded, **kwargs), 1, **kwargs)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable choice of every variable."""
        return self.base_dist.logits.argmax(-1)


def masked_logits(logits: Tensor, mask: Tensor) -> Tensor:
    """Replace the logits of forbidden choices by a large negative number, so that they are never sampled.

    The number is finite, so entropies and KL divergences under the same mask are finite. If no choice is allowed, all
    choices are equally likely, except for the padding of `MultiCategorical`, whose logits are lower.

    Source: Huang and Ontañón 2022, "A closer look at invalid action masking in policy gradient algorithms".

    Args:
        logits: `[*, n]`.
        mask: `[*, n]`, bool or integers, zero where a choice is forbidden.

    """
    return logits.masked_fill(~mask.bool(), torch.finfo(logits.dtype).min / 4)


class IndependentBernoulli(D.Independent[D.Bernoulli]):
    """Independent Bernoulli variables with `logits` `[*, n]`; samples are int8 `[*, n]`."""

    def __init__(self, logits: Tensor, **kwargs: Any) -> None:
        super().__init__(D.Bernoulli(logits=logits, **kwargs), 1, **kwargs)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return a sample, int8 `[*sample_shape, *, n]`; PyTorch's implementation cannot be compiled."""
        probs = self.base_dist.probs
        shape = torch.Size(sample_shape) + probs.shape
        return (torch.rand(shape, dtype=probs.dtype, device=probs.device) < probs).to(torch.int8)

    def log_prob(self, value: Tensor) -> Tensor:
        """Shapes: `[*, n] -> [*]`."""
        return super().log_prob(value.to(self.base_dist.logits.dtype))  # type: ignore[no-untyped-call]

    @property
    def deterministic_sample(self) -> Tensor:
        """The more probable value of every variable; PyTorch's `mode` is NaN if both are equally likely."""
        return (self.base_dist.logits > 0).to(torch.int8)


@D.register_kl(IndependentBernoulli, IndependentBernoulli)  # type: ignore[untyped-decorator]
def kl_bernoulli(old: IndependentBernoulli, new: IndependentBernoulli) -> Tensor:
    """Return the sum of KL(old || new) over the variables, `[*]`.

    It is finite for all logits. PyTorch's implementation is infinite for logits above 17 in float32.
    """
    a, b = old.base_dist.logits, new.base_dist.logits
    log_ratio_1, log_ratio_0 = softplus(-b) - softplus(-a), softplus(b) - softplus(a)
    return (a.sigmoid() * log_ratio_1 + (-a).sigmoid() * log_ratio_0).sum(-1)


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
