"""A joint distribution of independent components, with one flat sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch import distributions as D  # noqa: N812

from .action import Shape


class JointComponent(NamedTuple):
    """One component of a `JointDistribution`.

    Attributes:
        distribution_class: Makes the component.
        param_names: For every keyword of `distribution_class`, the keyword of `JointDistribution`.

    """

    distribution_class: Callable[..., D.Distribution]
    param_names: Mapping[str, str]


class JointDistribution(D.Distribution):
    """Independent distributions whose samples are concatenated.

    Samples are `[*, sum of sizes]`, float32 if any component is continuous and int64 otherwise. Every component
    receives its part in its own dtype. Log-probabilities, entropies and KL divergences are sums over the components.

    Args:
        components: Components in the order of their parts. Their events have at most one dimension.
        parameters: Parameters of all components, named by `JointComponent.param_names`.

    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, components: Sequence[JointComponent], **parameters: Tensor) -> None:
        self.components = [
            component.distribution_class(
                **{keyword: parameters[name] for keyword, name in component.param_names.items()}
            )
            for component in components
        ]
        self._sizes = [component.event_shape.numel() for component in self.components]
        super().__init__(self.components[0].batch_shape, torch.Size([sum(self._sizes)]), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether every component is continuous."""
        return all(component.has_rsample for component in self.components)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        """Return a sample, `[*sample_shape, *, sum of sizes]`."""
        return self._concat([component.sample(torch.Size(sample_shape)) for component in self.components])

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        """Return a sample with gradients; all components must be continuous."""
        return self._concat([component.rsample(torch.Size(sample_shape)) for component in self.components])

    def log_prob(self, value: Tensor) -> Tensor:
        """Shapes: `[*, sum of sizes] -> [*]`."""
        parts = value.split(self._sizes, -1)
        terms = [component_log_prob(*pair) for pair in zip(self.components, parts, strict=True)]
        return torch.stack(terms).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([component.entropy() for component in self.components]).sum(0)

    @property
    def deterministic_sample(self) -> Tensor:
        """The deterministic samples of all components."""
        return self._concat([component.deterministic_sample for component in self.components])  # type: ignore[attr-defined]

    def _concat(self, samples: list[Tensor]) -> Tensor:
        samples = [sample if sample.is_floating_point() else sample.long() for sample in samples]
        pairs = zip(samples, self.components, strict=True)
        return torch.cat([part if component.event_shape else part.unsqueeze(-1) for part, component in pairs], -1)


def component_log_prob(component: D.Distribution, part: Tensor) -> Tensor:
    """Return the log-probability of a component's part of a flat sample: `[*, size] -> [*]`."""
    value = part if component.has_rsample else part.long()  # only continuous components have `rsample`
    return component.log_prob(value if component.event_shape else value.squeeze(-1))


@D.register_kl(JointDistribution, JointDistribution)  # type: ignore[untyped-decorator]
def kl_joint(old: JointDistribution, new: JointDistribution) -> Tensor:
    """Return the sum of KL(old || new) over the components, `[*]`."""
    pairs = zip(old.components, new.components, strict=True)
    return torch.stack([D.kl_divergence(p, q) for p, q in pairs]).sum(0)
