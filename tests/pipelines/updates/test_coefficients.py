"""Tests of the coefficients that controllers move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import nn

from torchppo.errors import ConfigurationError
from torchppo.modules.adaptive_controllers import KLAdaptive, TargetEntropy
from torchppo.modules.controllers import Controller, Linear
from torchppo.pipelines.advantages import RolloutBatch
from torchppo.pipelines.updates.coefficients import Coefficients


class Double(Controller):
    metrics: ClassVar[tuple[str, ...]] = ("kl", "entropy")

    def __call__(self, progress: float, metrics: Mapping[str, float], value: float) -> float:
        return value * 2 if metrics else value


class Objective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("clip_epsilon", torch.tensor(0.25))


class Batch:
    def mean_kl(self) -> float:
        return 0.5


def make_optimizer(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs])


def test_a_buffer_and_the_learning_rates_move_and_groups_keep_their_ratio() -> None:
    objective, optimizer = Objective(), make_optimizer(1.0, 4.0)
    coefficients = Coefficients({"lr": Linear(), "clip_epsilon": Double()}, objective)
    coefficients.move(0.0, {}, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 4.0]
    coefficients.move(0.25, {"kl": 1.0}, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.75, 3.0]
    coefficients.move(1.0, {"kl": 1.0}, optimizer)
    coefficients.move(0.5, {"kl": 1.0}, optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 2.0]
    assert objective.clip_epsilon.item() == 2.0


def test_a_controller_without_a_value_is_named() -> None:
    class Nothing(Controller):
        def __call__(self, progress: float, metrics: Mapping[str, float], value: float) -> Any: ...

    for name in ("lr", "clip_epsilon"):
        with pytest.raises(ConfigurationError, match=rf"controller\.{name}: Nothing returned None"):
            Coefficients({name: Nothing()}, Objective()).move(0.5, {}, make_optimizer(1.0))


def test_only_metrics_that_a_controller_reads_are_measured() -> None:
    batch, results = cast(RolloutBatch, Batch()), {"entropy": 2.0, "loss_critic": 1.0}
    coefficients = Coefficients({"clip_epsilon": Double()}, Objective())
    assert coefficients.kl(batch) == {"kl": 0.5}
    assert coefficients.measured(results | {"kl": 0.5}) == {"kl": 0.5, "entropy": 2.0}
    assert Coefficients({"lr": Linear()}, Objective()).kl(batch) == {}
    assert Coefficients({"lr": Linear()}, Objective()).measured(results) == {}


def test_a_metric_that_the_objective_lacks_is_refused_after_the_first_step() -> None:
    coefficients = Coefficients({"clip_epsilon": Double()}, Objective())
    assert coefficients.measured({"num_steps": 0.0, "kl": 0.5}) == {"kl": 0.5}
    with pytest.raises(ConfigurationError, match="reads entropy, which Objective does not return"):
        coefficients.measured({"num_steps": 2.0})


def test_the_learning_rate_and_the_known_and_controlled_coefficients_are_logged() -> None:
    objective = Objective()
    objective.register_buffer("own", torch.tensor(2.0))
    optimizer = make_optimizer(1.0, 4.0)
    assert Coefficients({}, objective).values(optimizer) == {"clip_epsilon": 0.25, "lr": 1.0}
    assert Coefficients({"own": Linear()}, objective).values(optimizer)["own"] == 2.0


def test_values_and_states_are_restored() -> None:
    objective, optimizer = Objective(), make_optimizer(1.0)
    coefficients = Coefficients({"clip_epsilon": Linear()}, objective)
    coefficients.move(0.0, {}, optimizer)
    coefficients.move(0.5, {}, optimizer)
    restored = Coefficients({"clip_epsilon": Linear()}, Objective())
    restored.load_state_dict(coefficients.state_dict())
    assert restored.state_dict() == {"clip_epsilon": {"value": 0.125, "controller": {"initial": 0.25}}}


def test_controllers_of_the_objective_apply_unless_they_are_replaced() -> None:
    objective = Objective()
    objective.controllers = {"clip_epsilon": Double()}  # type: ignore[assignment]
    Coefficients({}, objective).move(0.0, {"kl": 1.0}, make_optimizer(1.0))
    assert objective.clip_epsilon.item() == 0.5
    Coefficients({"clip_epsilon": Linear(0.5)}, objective).move(1.0, {"kl": 1.0}, make_optimizer(1.0))
    assert objective.clip_epsilon.item() == 0.25


@pytest.mark.parametrize(
    ("name", "controller"),
    [("clip_epsilonn", Linear()), ("lr", float), ("lr", TargetEntropy()), ("clip_epsilon", KLAdaptive())],
)
def test_rejects_unknown_coefficients_functions_and_unsuitable_controllers(name: str, controller: Controller) -> None:
    with pytest.raises(ConfigurationError, match=rf"controller\.{name}"):
        Coefficients({name: controller}, Objective())


def test_rejects_one_object_for_two_coefficients() -> None:
    schedule = Linear()
    with pytest.raises(ConfigurationError, match="two coefficients"):
        Coefficients({"lr": schedule, "clip_epsilon": schedule}, Objective())
