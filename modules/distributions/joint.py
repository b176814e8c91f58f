"""Several distributions as one, over the parts of a flat sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch import distributions as D  # noqa: N812

from .action import Shape


class JointFactor(NamedTuple):
    """One of the distributions of `JointDistribution`, and which of its keywords is which of theirs."""

    distribution_class: Callable[..., D.Distribution]
    keywords: Mapping[str, str]


class JointDistribution(D.Distribution):
    """Independent distributions over the parts of one flat sample.

    Args:
        factors: in the order of their parts; events have one dimension or none.
        parameters: of all factors, by the values of `JointFactor.keywords`.

    Samples are `[*, sum of sizes]`, float32 where any factor is continuous, else int64, and every factor is
    given its part in its own type; log-probabilities, entropies and KLs are sums over the factors.

    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, factors: Sequence[JointFactor], **parameters: Tensor) -> None:
        """Build every factor from its own parameters."""
        self.factors = [
            factor.distribution_class(**{own: parameters[name] for own, name in factor.keywords.items()})
            for factor in factors
        ]
        self._sizes = [factor.event_shape.numel() for factor in self.factors]
        super().__init__(self.factors[0].batch_shape, torch.Size([sum(self._sizes)]), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether every factor is continuous."""
        return all(factor.has_rsample for factor in self.factors)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """`[*sample_shape, *, sum of sizes]`."""
        return self._flat([factor.sample(torch.Size(sample_shape)) for factor in self.factors])

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """The same with gradients, of continuous factors."""
        return self._flat([factor.rsample(torch.Size(sample_shape)) for factor in self.factors])

    def log_prob(self, value: Tensor) -> Tensor:
        """`[*, sum of sizes] -> [*]`."""
        parts = value.split(self._sizes, -1)
        return torch.stack([log_prob_of(f, part) for f, part in zip(self.factors, parts, strict=True)]).sum(0)

    def entropy(self) -> Tensor:
        """`[*]`."""
        return torch.stack([factor.entropy() for factor in self.factors]).sum(0)

    @property
    def deterministic_sample(self) -> Tensor:
        """Every factor's."""
        return self._flat([factor.deterministic_sample for factor in self.factors])  # type: ignore[attr-defined]

    def _flat(self, samples: list[Tensor]) -> Tensor:
        own = [sample if sample.is_floating_point() else sample.long() for sample in samples]
        parts = zip(own, self.factors, strict=True)
        return torch.cat([part if factor.event_shape else part.unsqueeze(-1) for part, factor in parts], -1)


def log_prob_of(factor: D.Distribution, part: Tensor) -> Tensor:
    """Log-probability of a factor's part of a flat sample: `[*, size] -> [*]`."""
    own = part if factor.has_rsample else part.long()  # only continuous factors have one
    return factor.log_prob(own if factor.event_shape else own.squeeze(-1))


@D.register_kl(JointDistribution, JointDistribution)  # type: ignore[untyped-decorator]
def kl_of_joints(old: JointDistribution, new: JointDistribution) -> Tensor:
    """Sum of the factors' KL(old || new): `[*]`."""
    pairs = zip(old.factors, new.factors, strict=True)
    return torch.stack([D.kl_divergence(one, other) for one, other in pairs]).sum(0)
