"""The metrics of optimizer steps, and the steps that are skipped because their loss or its gradient is not finite."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from tensordict import TensorDictBase
from torch import Tensor

from ...errors import ConfigurationError, NumericalError

logger = logging.getLogger("torchppo")


class StepMetrics(Mapping[str, Tensor]):
    """The metrics of an optimizer step. One vector contains all of them, which is faster than a tensor for each metric.

    Attributes:
        vector: `[num_metrics]`.

    """

    def __init__(self, names: Sequence[str], vector: Tensor) -> None:
        self._names, self.vector = names, vector

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self.vector[self._names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SkippedSteps:
    """Counts the optimizer steps that were skipped because their loss or its gradient was not finite.

    Args:
        limit: number of steps in a row that may be skipped.

    Attributes:
        number: number of skipped steps in the last `count`.
        norms: gradient norms of the steps of the last `count`, `[steps]`.

    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ConfigurationError(f"ppo.max_skipped_steps={limit} must be at least 1")
        self.number = 0
        self._limit, self._in_a_row = limit, 0
        self._steps: list[Mapping[str, Tensor]] = []
        self.norms = torch.zeros(0)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the metrics of a step."""
        self._steps.append(metrics)

    def count(self, rollout: TensorDictBase, frames: int, *, is_last: bool) -> None:
        """Count the steps that were added since the last call, and print a line if some of them were skipped.

        Args:
            rollout: the rollout of these steps with its advantages; the error names the cause that it shows.
            frames: frames of the training so far.
            is_last: whether the training ends, where at least one step must not be skipped.

        Raises:
            NumericalError: if too many steps in a row were skipped.

        """
        steps, self._steps = self._steps, []
        self.norms = torch.stack([step["grad_norm"] for step in steps]) if steps else torch.zeros(0)
        finite = self.norms.isfinite().tolist()
        self.number = finite.count(False)
        if not self.number:
            self._in_a_row = 0 if steps else self._in_a_row
            return
        first = {name: value.item() for name, value in steps[finite.index(False)].items() if not value.isfinite()}
        reason = ", ".join(f"{name}={value}" for name, value in first.items())
        limit = min(self._limit, len(finite) - 1) if is_last else self._limit
        for is_finite in finite:
            self._in_a_row = 0 if is_finite else self._in_a_row + 1
            if self._in_a_row > limit:
                raise NumericalError(
                    f"{self._in_a_row} optimizer steps in a row were not finite ({reason}; ppo.max_skipped_steps="
                    f"{self._limit}) after {frames} frames; {advice(rollout)}"
                )
        logger.warning("torchppo: %d of %d optimizer steps were skipped (%s)", self.number, len(steps), reason)


def advice(rollout: TensorDictBase) -> str:
    """Return what to change if optimizer steps on a rollout are not finite."""
    is_finite = {key: bool(rollout[key].isfinite().all()) for key in ("state_value", "advantage", "value_target")}
    if is_finite["state_value"] and not all(is_finite.values()):
        return "the estimator returns advantages or targets that are not finite; correct it or scale rewards"
    return "lower optimizer.lr or scale rewards"


def stacked_metrics(metrics: Mapping[str, Tensor]) -> Tensor:
    """Return the metrics of a step as one vector, in their order."""
    return metrics.vector if isinstance(metrics, StepMetrics) else torch.stack([*metrics.values()])
