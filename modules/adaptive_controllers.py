"""Controllers that change a coefficient according to a metric of the last rollout."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from ..errors import ConfigurationError
from .controllers import Controller


class AdaptiveController(Controller):
    """Base class of controllers that adapt a value to a metric, within bounds.

    They read the first metric of `metrics`. The value does not change after a rollout without this metric.

    Args:
        minimum: Smallest value.
        maximum: Largest value.

    Raises:
        ConfigurationError: Unless 0 < `minimum` <= `maximum`.

    """

    def __init__(self, minimum: float, maximum: float) -> None:
        if not 0 < minimum <= maximum:
            raise ConfigurationError(
                f"controller bounds minimum={minimum}, maximum={maximum} need 0 < minimum <= maximum"
            )
        self.minimum = minimum
        self.maximum = maximum

    @abstractmethod
    def adapted(self, metric: float, value: float) -> float:
        """Return the value for the next rollout, before it is limited to the bounds."""

    def __call__(self, progress: float, metrics: Mapping[str, float], value: float) -> float:
        if self.metrics[0] not in metrics:
            return value
        return min(max(self.adapted(metrics[self.metrics[0]], value), self.minimum), self.maximum)


class KLController(AdaptiveController):
    """Base class of controllers that keep the KL divergence of an update near a target.

    Args:
        target_kl: Target of the mean KL divergence per rollout, in nats.
        key: Name of the target in the error.
        minimum: See `AdaptiveController`.
        maximum: See `AdaptiveController`.

    Raises:
        ConfigurationError: If an argument is out of range.

    """

    metrics: ClassVar[tuple[str, ...]] = ("kl",)

    def __init__(self, target_kl: float, key: str, minimum: float, maximum: float) -> None:
        if not target_kl > 0:
            raise ConfigurationError(f"{key}={target_kl} must be positive; 0.01 is usual")
        super().__init__(minimum, maximum)
        self.target_kl = target_kl


class KLAdaptive(KLController):
    """Adapts the learning rate so that the KL divergence of an update stays near a target.

    It divides the value by `factor` if the KL divergence is above 2 x `target_kl`. It multiplies the value by `factor`
    if the KL divergence is below `target_kl` / 2 but not 0. TorchRL's `KLAdaptiveLR` has the same rule, but sets the
    learning rates of an optimizer directly.

    Source: Rudin et al. 2022, "Learning to Walk in Minutes", as in rsl_rl.

    Args:
        target_kl: Target of the mean KL divergence per rollout, in nats.
        factor: Factor of a change, above 1.
        minimum: See `AdaptiveController`.
        maximum: See `AdaptiveController`.

    Raises:
        ConfigurationError: If an argument is out of range.

    """

    coefficients: ClassVar[tuple[str, ...]] = ("lr",)

    def __init__(
        self, target_kl: float = 0.01, *, factor: float = 1.5, minimum: float = 1e-5, maximum: float = 1e-2
    ) -> None:
        if not factor > 1:
            raise ConfigurationError(f"factor={factor} of KLAdaptive must be above 1; 1.5 is usual")
        super().__init__(target_kl, "target_kl of KLAdaptive", minimum, maximum)
        self.factor = factor

    def adapted(self, metric: float, value: float) -> float:
        if metric > 2 * self.target_kl:
            return value / self.factor
        return value * self.factor if 0 < metric < self.target_kl / 2 else value


class AdaptiveBeta(KLController):
    """Adapts the weight of a KL penalty.

    It multiplies the value by `increment` if the KL divergence is above 1.5 x `dtarg`, and by `decrement` if it is
    below `dtarg` / 1.5.

    Source: Schulman et al. 2017, section 4.

    Args:
        dtarg: Target of the mean KL divergence per rollout, in nats.
        increment: Factor of an increase, at least 1.
        decrement: Factor of a decrease, at most 1.
        minimum: See `AdaptiveController`.
        maximum: See `AdaptiveController`.

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
        if not 0 < decrement <= 1 <= increment:
            raise ConfigurationError(
                f"objective.increment={increment} must be at least 1, and decrement={decrement} between 0 and 1; "
                "2 and 0.5 are usual"
            )
        super().__init__(dtarg, "objective.dtarg", minimum, maximum)
        self.increment = increment
        self.decrement = decrement

    def adapted(self, metric: float, value: float) -> float:
        if metric > 1.5 * self.target_kl:
            return value * self.increment
        return value * self.decrement if metric < self.target_kl / 1.5 else value


class TargetEntropy(AdaptiveController):
    """Adapts the entropy coefficient so that the entropy H of the policy approaches a target.

    It multiplies the value by exp(`rate` (`target_entropy` - H)). This is a gradient step on its logarithm.

    Source: Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", section 5.

    Args:
        target_entropy: Target of the mean entropy, in nats. The largest entropy of n choices is log(n). The entropy
            of continuous actions may be negative.
        rate: Change of the logarithm of the value per nat and rollout.
        minimum: See `AdaptiveController`.
        maximum: See `AdaptiveController`.

    Raises:
        ConfigurationError: If an argument is out of range.

    """

    metrics: ClassVar[tuple[str, ...]] = ("entropy",)
    coefficients: ClassVar[tuple[str, ...]] = ("entropy_coeff",)

    def __init__(
        self, target_entropy: float = 0.5, *, rate: float = 0.1, minimum: float = 1e-5, maximum: float = 1.0
    ) -> None:
        if not rate > 0:
            raise ConfigurationError(f"rate={rate} of TargetEntropy must be positive; 0.1 is usual")
        super().__init__(minimum, maximum)
        self.target_entropy = target_entropy
        self.rate = rate

    def adapted(self, metric: float, value: float) -> float:
        if value == 0:
            raise ConfigurationError("controller=target_entropy multiplies entropy_coeff, which is 0; set it above 0")
        return value * math.exp(self.rate * (self.target_entropy - metric))
