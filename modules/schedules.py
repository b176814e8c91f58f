"""Schedules: functions from training progress in [0, 1] to the factor that multiplies a coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import ConfigurationError

Schedule = Callable[[float], float]
"""A function from the progress of training in [0, 1] to a factor of the initial value."""


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


class Schedules:
    """Applies schedules to a learning rate and to the coefficients of an objective.

    Args:
        schedules: a schedule for `lr`, or for the name of a buffer of the objective such as `clip_epsilon`.
        objective: holds the coefficients as buffers, so that compiled steps see them change.

    Raises:
        ConfigurationError: if the objective has no such buffer.

    """

    def __init__(self, schedules: Mapping[str, Schedule], objective: nn.Module) -> None:
        self._schedules = dict(schedules)
        for name in self._schedules.keys() - {"lr"}:
            if not isinstance(getattr(objective, name, None), Tensor):
                raise ConfigurationError(
                    f"schedule.{name}: {type(objective).__name__} has no coefficient {name}; remove this schedule"
                )
        self._initial = {name: float(getattr(objective, name)) for name in self._schedules if name != "lr"}

    def apply(self, progress: float, objective: nn.Module, optimizer: Optimizer) -> None:
        """Set the coefficients of the objective and the learning rates for `progress` in [0, 1]."""
        for name, schedule in self._schedules.items():
            if name == "lr":
                for group in optimizer.param_groups:
                    group["lr"] = group.setdefault("initial_lr", group["lr"]) * schedule(progress)
            else:
                getattr(objective, name).fill_(self._initial[name] * schedule(progress))
