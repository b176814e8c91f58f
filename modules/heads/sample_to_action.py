"""A distribution that returns actions together with the samples they are computed from."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch import distributions as D  # noqa: N812

from ..distributions.action import Shape
from .action_heads import Head


class SampleToAction(D.Distribution):
    """A head's distribution that also maps its samples to actions.

    Samples are tuples of the sample and one or more actions. Log-probabilities, entropies and KL divergences are those
    of the sample.

    Args:
        head: Head with the distribution and its `to_action`.
        parameters: Parameters of the distribution.

    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, head: Head, **parameters: Tensor) -> None:
        self.base_dist = head.distribution_class(**parameters)
        self._to_action = head.to_action
        super().__init__(self.base_dist.batch_shape, self.base_dist.event_shape, validate_args=False)

    def sample(self, sample_shape: Shape = ()) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return a sample and its actions."""
        return self._with_actions(self.base_dist.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor, *actions: Tensor) -> Tensor:
        """Return the log-probability `[*]` of the sample; the actions are ignored, because they depend on it."""
        return self.base_dist.log_prob(value)

    def entropy(self) -> Tensor:
        return self.base_dist.entropy()

    @property
    def deterministic_sample(self) -> tuple[Tensor, ...]:
        """The deterministic sample and its actions."""
        return self._with_actions(self.base_dist.deterministic_sample)  # type: ignore[attr-defined]

    def _with_actions(self, sample: Tensor) -> tuple[Tensor, ...]:
        actions = self._to_action(sample) if self._to_action else ()
        return (sample, actions) if isinstance(actions, Tensor) else (sample, *actions)


@D.register_kl(SampleToAction, SampleToAction)  # type: ignore[untyped-decorator]
def kl_sample_to_action(old: SampleToAction, new: SampleToAction) -> Tensor:
    """Return KL(old || new) of the base distributions, `[*]`."""
    return D.kl_divergence(old.base_dist, new.base_dist)
