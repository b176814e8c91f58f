"""Tests of simple policy optimization."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torchrl.data import Categorical, Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.objectives.spo import SPOLoss


def make_networks() -> ActorCritic:
    specs = Composite(observation=Unbounded((1, 3)), shape=(1,)), Categorical(4, (1,), dtype=torch.int64)
    return make_actor_critic(*specs, body=partial(mlp, num_cells=(4,)))


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "gradient"),
    # log-ratio, advantage, loss, gradient with respect to the log-ratio; eps = 0.2
    [
        (0.0, 1.0, -1.0, -1.0),
        (math.log(1.2), 1.0, -1.1, 0.0),  # the best ratio: 1.2 - 0.04 / 0.4
        (math.log(0.8), -1.0, 0.9, 0.0),
        (math.log(1.4), 1.0, -1.0, 1.4),  # pulled back: 1.4 x (0.4 / 0.2 - 1)
        (math.log(1.4), -1.0, 1.8, 4.2),  # pushed twice: 1.4 x (1 + 2)
        (math.log(1.4), 0.0, 0.0, 0.0),
        (-1000.0, 2.0, 5.0, 0.0),
    ],
)
def test_value_and_gradient_equal_hand_computed_ones(
    log_ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    objective = SPOLoss(*make_networks()).double()  # its epsilon is rounded to float32
    logs = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    output = objective.policy_loss(logs, torch.tensor([[advantage]], dtype=torch.float64), torch.zeros(1, 1))
    (found,) = torch.autograd.grad(output.sum(), logs)
    assert output.item() == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert found.item() == pytest.approx(gradient, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_extreme_ratios_have_a_finite_loss_and_gradient(advantage: float) -> None:
    objective = SPOLoss(*make_networks())
    logs = torch.tensor([[1000.0], [88.0], [-1000.0]], requires_grad=True)
    output = objective.policy_loss(logs, torch.full((3, 1), advantage), torch.zeros(3, 1))
    (found,) = torch.autograd.grad(output.sum(), logs)
    assert output.isfinite().all()
    assert found.isfinite().all()


def test_rejects_an_epsilon_that_is_not_positive() -> None:
    with pytest.raises(ConfigurationError, match=r"objective\.epsilon=0 must be positive"):
        SPOLoss(*make_networks(), epsilon=0)
