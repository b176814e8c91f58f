"""Action distributions that PyTorch and TorchRL lack, as `torch.distributions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributions as D  # noqa: N812


class Categorical(D.Categorical):
    """PyTorch's categorical distribution with a sample that compiles into its graph, unlike `torch.multinomial`."""

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:  # noqa: B008
        """The largest of `logits - log(-log(u))`, with u uniform (Gumbel-max): int64 `[*sample_shape, *]`."""
        shape = self._extended_shape(torch.Size(sample_shape)) + self.logits.shape[-1:]
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits - (-uniform.log()).log()).argmax(-1)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable choice."""
        return self.logits.argmax(-1)


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


class IndependentBernoulli(D.Independent[D.Bernoulli]):
    """Independent coin flips with `logits` `[*, n]`; actions are int8 `[*, n]`."""

    def __init__(self, logits: Tensor, **kwargs: Any) -> None:
        """One coin for every logit."""
        super().__init__(D.Bernoulli(logits=logits, **kwargs), 1, **kwargs)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = torch.Size()) -> Tensor:  # noqa: B008
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
