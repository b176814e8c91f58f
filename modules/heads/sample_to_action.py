"""Samples that are not yet actions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch import distributions as D  # noqa: N812

from ..distributions.action import Shape
from .action_heads import Head


class SampleToAction(D.Distribution):
    """A distribution whose samples stand for actions, which it gives out beside them.

    Args:
        head: its `distribution_class`, and its `to_action` from a sample to one action or several.
        parameters: of the distribution.

    Samples are tuples of the distribution's sample and the actions; all else is the distribution's own.

    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, head: Head, **parameters: Tensor) -> None:
        """Build the distribution."""
        self.inner = head.distribution_class(**parameters)
        self._to_action = head.to_action
        super().__init__(self.inner.batch_shape, self.inner.event_shape, validate_args=False)

    def sample(self, sample_shape: Shape = ()) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The sample and the actions it stands for."""
        return self._with_actions(self.inner.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor, *actions: Tensor) -> Tensor:
        """The log-probability of the sample; `actions` are not looked at, for they follow from it: `[*]`."""
        return self.inner.log_prob(value)

    def entropy(self) -> Tensor:
        """`[*]`."""
        return self.inner.entropy()

    @property
    def deterministic_sample(self) -> tuple[Tensor, ...]:
        """The distribution's and the actions it stands for."""
        return self._with_actions(self.inner.deterministic_sample)  # type: ignore[attr-defined]

    def _with_actions(self, sample: Tensor) -> tuple[Tensor, ...]:
        actions = self._to_action(sample) if self._to_action else ()
        return (sample, actions) if isinstance(actions, Tensor) else (sample, *actions)


@D.register_kl(SampleToAction, SampleToAction)  # type: ignore[untyped-decorator]
def kl_of_samples_to_actions(old: SampleToAction, new: SampleToAction) -> Tensor:
    """KL(old || new) of the distributions inside: `[*]`."""
    return D.kl_divergence(old.inner, new.inner)
