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

    """

    metrics: ClassVar[tuple[str, ...]] = ()

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


class KLController(Controller):
    """Base class of controllers that change a value after a rollout that trained the policy, within bounds.

    Args:
        minimum: Smallest value.
        maximum: Largest value.

    Raises:
        ConfigurationError: Unless 0 < `minimum` <= `maximum`.

    """

    metrics: ClassVar[tuple[str, ...]] = ("kl",)

    def __init__(self, minimum: float, maximum: float) -> None:
        if not 0 < minimum <= maximum:
            raise ConfigurationError(
                f"controller bounds minimum={minimum}, maximum={maximum} need 0 < minimum <= maximum"
            )
        self.minimum = minimum
        self.maximum = maximum

    @abstractmethod
    def adapted(self, kl: float, value: float) -> float:
        """Return the value for the next rollout, before it is limited to the bounds."""

    def __call__(self, progress: float, metrics: Mapping[str, float], value: float) -> float:
        if "kl" not in metrics:
            return value
        return min(max(self.adapted(metrics["kl"], value), self.minimum), self.maximum)


class KLAdaptive(KLController):
    """Sets the learning rate so that the KL divergence of an update stays near a target.

    It divides the value by `factor` if the KL divergence is above 2 x `target_kl`. It multiplies the value by `factor`
    if the KL divergence is below `target_kl` / 2 but not 0. TorchRL's `KLAdaptiveLR` has the same rule, but sets the
    learning rates of an optimizer directly.

    Source: Rudin et al. 2022, "Learning to Walk in Minutes", as in rsl_rl.

    Args:
        target_kl: Target of the mean KL divergence per rollout, in nats.
        factor: Factor of a change, above 1.
        minimum: See `KLController`.
        maximum: See `KLController`.

    Raises:
        ConfigurationError: If an argument is out of range.

    """

    def __init__(
        self, target_kl: float = 0.01, *, factor: float = 1.5, minimum: float = 1e-5, maximum: float = 1e-2
    ) -> None:
        if not target_kl > 0:
            raise ConfigurationError(f"target_kl={target_kl} of a KLAdaptive must be positive; 0.01 is usual")
        if not factor > 1:
            raise ConfigurationError(f"factor={factor} of a KLAdaptive must be above 1; 1.5 is usual")
        super().__init__(minimum, maximum)
        self.target_kl = target_kl
        self.factor = factor

    def adapted(self, kl: float, value: float) -> float:
        if kl > 2 * self.target_kl:
            return value / self.factor
        return value * self.factor if 0 < kl < self.target_kl / 2 else value


class AdaptiveBeta(KLController):
    """Adapts the weight of a KL penalty.

    It multiplies the value by `increment` if the KL divergence is above 1.5 x `dtarg`, and by `decrement` if it is
    below `dtarg` / 1.5.

    Source: Schulman et al. 2017, section 4.

    Args:
        dtarg: Target of the mean KL divergence per rollout, in nats.
        increment: Factor of an increase, at least 1.
        decrement: Factor of a decrease, at most 1.
        minimum: See `KLController`.
        maximum: See `KLController`.

    Raises:
        ConfigurationError: If an argument is out of range.

    """

    def __init__(
        self,
        dtarg: float = 0.01,
        *,
        increment: float = 2.0,
        decrement: float = 0.5,
        minimum: float = 1e-3,
        maximum: float = 1e3,
    ) -> None:
        if not dtarg > 0:
            raise ConfigurationError(f"objective.dtarg={dtarg} must be positive; 0.01 is usual")
        if not 0 < decrement <= 1 <= increment:
            raise ConfigurationError(
                f"objective.increment={increment} must be at least 1, and decrement={decrement} between 0 and 1; "
                "2 and 0.5 are usual"
            )
        super().__init__(minimum, maximum)
        self.dtarg = dtarg
        self.increment = increment
        self.decrement = decrement

    def adapted(self, kl: float, value: float) -> float:
        if kl > 1.5 * self.dtarg:
            return value * self.increment
        return value * self.decrement if kl < self.dtarg / 1.5 else value
