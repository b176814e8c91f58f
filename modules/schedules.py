"""JointDistribution of a coefficient over a training: `progress` runs from 0 to 1."""

from __future__ import annotations

import math

from ..errors import ConfigurationError


def constant(progress: float) -> float:  # noqa: ARG001
    """1 throughout."""
    return 1.0


def linear(progress: float, final: float = 0.0) -> float:
    """A straight line from 1 to `final`."""
    return 1.0 + (final - 1.0) * progress


def cosine(progress: float, final: float = 0.0) -> float:
    """Half a cosine wave from 1 to `final` (Loshchilov and Hutter 2017, eq. 5)."""
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * progress)) / 2.0


def step(progress: float, gamma: float = 0.5, num_steps: int = 4) -> float:
    """Multiplied by `gamma` at the end of every `num_steps`-th part of the training."""
    if num_steps < 1:
        raise ConfigurationError(f"num_steps={num_steps} of a step schedule must be at least 1")
    done = int(progress * num_steps + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return gamma ** min(done, num_steps - 1)
