"""JointDistribution of a coefficient over a training: `progress` runs from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import ConfigurationError

Schedule = Callable[[float], float]
"""From the progress of a training in [0, 1] to a factor of the initial value."""


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
