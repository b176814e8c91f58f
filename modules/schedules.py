"""Schedules: functions from training progress in [0, 1] to the factor that multiplies a coefficient."""

from __future__ import annotations

import math

from ..errors import ConfigurationError


def constant(progress: float) -> float:  # noqa: ARG001
    """Return 1 at every point of the training."""
    return 1.0


def linear(progress: float, final: float = 0.0) -> float:
    """Interpolate linearly from 1 to `final`."""
    return 1.0 + (final - 1.0) * progress


def cosine(progress: float, final: float = 0.0) -> float:
    """Follow half a cosine wave from 1 to `final`.

    Source: Loshchilov and Hutter 2017, eq. 5.
    """
    return final + (1.0 - final) * (1.0 + math.cos(math.pi * progress)) / 2.0


def step(progress: float, gamma: float = 0.5, num_steps: int = 4) -> float:
    """Divide the training into `num_steps` equal parts and multiply by `gamma` after each of them.

    Raises:
        ConfigurationError: If `num_steps` is less than 1.

    """
    if num_steps < 1:
        raise ConfigurationError(f"num_steps={num_steps} of a step schedule must be at least 1")
    num_completed = int(progress * num_steps + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return gamma ** min(num_completed, num_steps - 1)
