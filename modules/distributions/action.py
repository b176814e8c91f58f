"""Distributions of discrete actions, and the KL divergence, entropy and probability ratios of any distribution.

PyTorch and TorchRL do not have these distributions, or their own versions cannot be compiled. Every distribution has a
`deterministic_sample` and can be traced into a single graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributions as D  # noqa: N812
from torch.nn.functional import one_hot, softplus

Shape = torch.Size | list[int] | tuple[int, ...]

MAX_LOG_RATIO = 80.0
"""Limit of log-ratios. Larger ones may have an infinite ratio in float32, and NaN gradients of clipped ratios."""


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


def policy_kl(old: D.Distribution | None, new: D.Distribution, log_ratio: Tensor) -> Tensor:
    """Return KL(old || new), `[batch]`, in closed form if there is one, otherwise `kl_estimate`."""
    # PyTorch compares the transforms of distributions by value, which breaks a graph.
    if old is None or isinstance(new, D.TransformedDistribution):
        return kl_estimate(log_ratio)
    try:
        return D.kl_divergence(old, new)
    except NotImplementedError:
        return kl_estimate(log_ratio)


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """Estimate KL(old || new) from samples of the old policy: r - 1 - log r >= 0, with r = new / old.

    Source: Schulman 2020, "Approximating KL divergence", k3. Shapes: `[batch] -> [batch]`.
    """
    return log_ratio.expm1() - log_ratio


def policy_entropy(distribution: D.Distribution, num_samples: int = 1) -> Tensor:
    """Return the entropy, `[batch]`, in closed form if there is one, otherwise estimated from samples."""
    try:
        return distribution.entropy()
    except NotImplementedError:
        return -distribution.log_prob(distribution.rsample((num_samples,))).mean(0)


def probability_ratio(log_ratio: Tensor) -> Tensor:
    """Return the ratio new / old, limited to finite values."""
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def ratio_metrics(log_ratio: Tensor) -> dict[str, Tensor]:
    """Return TorchRL's metrics of the ratios r, scalars.

    They are `ESS` (the effective sample size (sum r)^2 / sum r^2, divided by the number of samples), `max_ratio` and
    `mean_ratio`.
    """
    ratio = probability_ratio(log_ratio)
    log_ratio = log_ratio.clamp(max=MAX_LOG_RATIO)
    scaled = (log_ratio - log_ratio.max()).exp()  # the sum of squares is neither infinite nor 0
    return {
        "ESS": scaled.mean().square() / scaled.square().mean(),
        "max_ratio": ratio.max(),
        "mean_ratio": ratio.mean(),
    }


def clip_fraction(log_ratio: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the fraction of ratios outside [1 - low, 1 + high], a scalar."""
    difference = log_ratio.expm1()
    is_outside = difference.abs() > high if low is high else (difference > high) | (difference < -low)
    return is_outside.float().mean()
