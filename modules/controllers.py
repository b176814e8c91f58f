"""Controllers, which set a coefficient once per rollout, such as the learning rate or the clip range."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from ..errors import ConfigurationError


class Controller(ABC):
    """Base class of controllers.

    Attributes:
        metrics: Names of the metrics that the controller reads: `kl`, the mean KL(old || new) after the update, or a
            metric of the objective, such as `entropy`.
        coefficients: Names of the coefficients that the controller works for. If empty, it works for any.

    """

    metrics: ClassVar[tuple[str, ...]] = ()
    coefficients: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __call__(self, progress: float, metrics: Mapping[str, float], value: float) -> float:
        """Return the value for the next rollout.

        `PPO` calls it before the first rollout and after every rollout.

        Args:
            progress: Progress of the training, in [0, 1].
            metrics: The metrics of the last rollout, averaged over all ranks. Empty before the first rollout, and after
                a rollout that did not train the policy.
            value: The current value.

        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint saves in addition to the value; empty by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore the result of `state_dict`."""


class Schedule(Controller):
    """Base class of controllers that multiply the initial value by a factor that depends on the progress."""

    def __init__(self) -> None:
        self._initial: float | None = None

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return the factor at `progress` in [0, 1]."""

    def __call__(self, progress: float, metrics: Mapping[str, float], value: float) -> float:
        if self._initial is None:
            self._initial = value
        return self._initial * self.factor(progress)

    def state_dict(self) -> dict[str, Any]:
        return {"initial": self._initial}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._initial = state["initial"]


class Linear(Schedule):
    """Interpolates linearly from the initial value to `final` times it."""

    def __init__(self, final: float = 0.0) -> None:
        super().__init__()
        self.final = final

    def factor(self, progress: float) -> float:
        return 1.0 + (self.final - 1.0) * progress


class Cosine(Schedule):
    """Follows half a cosine wave from the initial value to `final` times it.

    Source: Loshchilov and Hutter 2017, eq. 5.
    """

    def __init__(self, final: float = 0.0) -> None:
        super().__init__()
        self.final = final

    def factor(self, progress: float) -> float:
        return self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * progress)) / 2.0


class Step(Schedule):
    """Divides the training into `num_steps` equal parts and multiplies by `gamma` after each part but the last.

    Raises:
        ConfigurationError: If `num_steps` is less than 1.

    """

    def __init__(self, gamma: float = 0.5, num_steps: int = 4) -> None:
        super().__init__()
        if num_steps < 1:
            raise ConfigurationError(f"num_steps={num_steps} of a step schedule is too small; use 1 or more")
        self.gamma = gamma
        self.num_steps = num_steps

    def factor(self, progress: float) -> float:
        num_completed = int(progress * self.num_steps + 1e-9)  # 0.29 * 100 is 28.999999999999996
        return self.gamma ** min(num_completed, self.num_steps - 1)


class Warmup(Schedule):
    """Increases a factor of the initial value linearly from `start` to 1, and then changes it linearly to `final`.

    Source: Goyal et al. 2017, section 2.2.

    Args:
        fraction: Fraction of the training in which the value increases.
        start: Factor at the start.
        final: Factor at the end of the training.

    Raises:
        ConfigurationError: If `fraction` is not between 0 and 1.

    """

    def __init__(self, fraction: float = 0.1, *, start: float = 0.1, final: float = 1.0) -> None:
        super().__init__()
        if not 0 < fraction < 1:
            raise ConfigurationError(f"fraction={fraction} of Warmup must be between 0 and 1; 0.1 is usual")
        self.fraction = fraction
        self.start = start
        self.final = final

    def factor(self, progress: float) -> float:
        if progress < self.fraction:
            return self.start + (1.0 - self.start) * progress / self.fraction
        return 1.0 + (self.final - 1.0) * (progress - self.fraction) / (1.0 - self.fraction)
