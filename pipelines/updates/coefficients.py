"""Applies controllers to the learning rate and to buffers of the objective."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import ConfigurationError
from ...modules.controllers import Controller
from ..advantages import RolloutBatch

LOGGED = ("clip_epsilon", "clip_epsilon_low", "clip_epsilon_high", "entropy_coeff", "beta")
"""Coefficients that are logged with or without a controller."""


class Coefficients:
    """Applies one controller to each coefficient. Coefficients without a controller are not changed.

    Args:
        controllers: controllers by coefficient: `lr`, or a buffer of the objective such as `clip_epsilon`.
        objective: holds the coefficients as buffers, so that compiled steps use the new values. Its attribute
            `controllers`, if it exists, applies to coefficients that `controllers` does not name.

    Raises:
        ConfigurationError: if the objective has no such buffer, or a controller is not a `Controller` or does not work
            for its coefficient.

    """

    def __init__(self, controllers: Mapping[str, Controller], objective: nn.Module) -> None:
        given: dict[str, Controller] = {**getattr(objective, "controllers", {}), **controllers}
        self._controllers = {name: copy(one) for name, one in given.items()}  # other trainings may use the same objects
        self._objective = objective
        if len({*map(id, given.values())}) < len(given):
            raise ConfigurationError("controllers: one object controls two coefficients; create one for each of them")
        for name, controller in self._controllers.items():
            if not isinstance(controller, Controller):
                raise ConfigurationError(
                    f"controller.{name}={controller!r} is not a Controller object; pass one of "
                    "torchppo.modules.controllers, such as Linear(), or of your own subclass of Controller"
                )
            if controller.coefficients and name not in controller.coefficients:
                raise ConfigurationError(
                    f"controller.{name}={type(controller).__name__} does not work for {name}, only for "
                    f"{', '.join(controller.coefficients)}; use another controller, such as Linear"
                )
            if name != "lr" and not isinstance(getattr(objective, name, None), Tensor):
                names = ["lr", *(buffer for buffer, _ in objective.named_buffers(recurse=False))]
                raise ConfigurationError(
                    f"controller.{name}: {type(objective).__name__} has no coefficient {name}; use one of "
                    f"{', '.join(names)}"
                )

    @property
    def _names(self) -> set[str]:
        return {name for controller in self._controllers.values() for name in controller.metrics}

    def kl(self, batch: RolloutBatch) -> dict[str, float]:
        """Return `kl` of a rollout of this rank, after its update, if a controller reads it."""
        return {"kl": batch.mean_kl()} if "kl" in self._names else {}

    def measured(self, results: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics that the controllers read.

        Args:
            results: metrics of the update, averaged over all ranks, and `kl` if a controller reads it.

        Raises:
            ConfigurationError: if a controller reads a metric that the update does not return.

        """
        names = self._names
        if results.get("num_steps") and (missing := names - results.keys() - {"kl"}):
            raise ConfigurationError(
                f"a controller reads {min(missing)}, which {type(self._objective).__name__} does not return; remove "
                "the controller, or use objective=clip"
            )
        return {name: results[name] for name in names & results.keys()}

    def values(self, optimizer: Optimizer) -> dict[str, float]:
        """Return the learning rate, the coefficients of `LOGGED` that the objective has, and the target of `kl`."""
        buffers = {name: getattr(self._objective, name, None) for name in (*LOGGED, *self._controllers)}
        found = {name: value.item() for name, value in buffers.items() if isinstance(value, Tensor) and value.ndim == 0}
        for controller in self._controllers.values():
            if target := getattr(controller, "target_kl", None):
                found["target_kl"] = target
        return {**found, "lr": optimizer.param_groups[0]["lr"]}

    def move(self, progress: float, metrics: Mapping[str, float], optimizer: Optimizer) -> None:
        """Set every coefficient to the value of its controller; see `Controller` for the arguments."""
        progress = min(progress, 1.0)  # the first rollout may have more frames than the training
        for name, controller in self._controllers.items():
            buffer = None if name == "lr" else getattr(self._objective, name)
            old = optimizer.param_groups[0]["lr"] if buffer is None else buffer.item()
            value = controller(progress, metrics, old)
            if value is None:
                kind = type(controller).__name__
                raise ConfigurationError(f"controller.{name}: {kind} returned None; return a number")
            if buffer is None:
                set_lr(optimizer, value)
            else:
                buffer.fill_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the controllers' states and values. The optimizer saves the learning rate."""
        return {
            name: {
                "value": None if name == "lr" else getattr(self._objective, name).item(),
                "controller": controller.state_dict(),
            }
            for name, controller in self._controllers.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore controllers and values. A coefficient without a saved controller keeps its value."""
        for name, saved in state.items():
            if name in self._controllers:
                self._controllers[name].load_state_dict(saved["controller"])
                if name != "lr":
                    getattr(self._objective, name).fill_(saved["value"])


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of the first group. The other groups keep their initial ratio to it."""
    groups = optimizer.param_groups
    for group in groups:
        group.setdefault("initial_lr", group["lr"])
    for group in groups[1:]:
        group["lr"] = group["initial_lr"] * (lr / groups[0]["initial_lr"])
    groups[0]["lr"] = lr
