"""Tests of the rollback."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torchrl.data import Categorical, Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.objectives.rollback import RollbackPPOLoss


def make_networks() -> ActorCritic:
    specs = Composite(observation=Unbounded((1, 3)), shape=(1,)), Categorical(4, (1,), dtype=torch.int64)
    return make_actor_critic(*specs, body=partial(mlp, num_cells=(4,)))


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "gradient"),
    # log-ratio, advantage, loss, gradient with respect to the log-ratio; eps = 0.2, alpha = 0.3
    [
        (0.0, 2.0, -2.0, -2.0),
        (math.log(1.2 - 1e-6), 1.0, -1.2 + 1e-6, -1.2 + 1e-6),
        (math.log(1.2 + 1e-6), 1.0, -1.2 + 3e-7, 0.3 * (1.2 + 1e-6)),
        (math.log(0.8 - 1e-6), -1.0, 0.8 + 3e-7, -0.3 * (0.8 - 1e-6)),
        (math.log(0.8 - 1e-6), 1.0, -0.8 + 1e-6, -0.8 + 1e-6),
        (math.log(1.5), 1.0, -1.11, 0.45),  # 1.3 x 1.2 - 0.3 x 1.5
        (math.log(1.5), -1.0, 1.5, 1.5),
        (math.log(1.5), 0.0, 0.0, 0.0),
        (-1000.0, -2.0, 2.08, 0.0),  # 2 x 1.3 x 0.8
    ],
)
def test_value_and_gradient_equal_hand_computed_ones(
    log_ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    objective = RollbackPPOLoss(*make_networks()).double()
    logs = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    output = objective.policy_loss(logs, torch.tensor([[advantage]], dtype=torch.float64), torch.zeros(1, 1))
    (found,) = torch.autograd.grad(output.sum(), logs)
    assert output.item() == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert found.item() == pytest.approx(gradient, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_extreme_ratios_have_a_finite_loss_and_gradient(advantage: float) -> None:
    objective = RollbackPPOLoss(*make_networks())
    logs = torch.tensor([[1000.0], [88.0], [-1000.0]], requires_grad=True)
    output = objective.policy_loss(logs, torch.full((3, 1), advantage), torch.zeros(3, 1))
    (found,) = torch.autograd.grad(output.sum(), logs)
    assert output.isfinite().all()
    assert found.isfinite().all()


@pytest.mark.parametrize(
    # log-ratio, advantage, KL, loss, gradients with respect to the log-ratio and the KL; alpha = 5, max_kl = 0.03
    ("log_ratio", "advantage", "kl", "loss", "gradients"),
    [
        (math.log(1.5), 1.0, 0.02, -1.5, (-1.5, 0.0)),  # inside of the trust region
        (math.log(1.5), 1.0, 0.05, -1.4, (-1.5, 5.0)),
        (math.log(1.5), -1.0, 0.05, 1.5, (1.5, 0.0)),  # the step back is not penalized
        (math.log(0.5), -1.0, 0.05, 0.6, (0.5, 5.0)),
        (math.log(1.5), 0.0, 0.05, 0.0, (0.0, 0.0)),
    ],
)
def test_kl_divergence_is_penalized_outside_of_the_trust_region(
    log_ratio: float, advantage: float, kl: float, loss: float, gradients: tuple[float, float]
) -> None:
    objective = RollbackPPOLoss(*make_networks(), alpha=5.0, max_kl=0.03).double()
    logs, kls = (torch.tensor([[number]], dtype=torch.float64, requires_grad=True) for number in (log_ratio, kl))
    output = objective.policy_loss(logs, torch.tensor([[advantage]], dtype=torch.float64), kls)
    found = torch.autograd.grad(output.sum(), (logs, kls))
    assert output.item() == pytest.approx(loss, rel=1e-6)
    assert [one.item() for one in found] == pytest.approx(list(gradients), rel=1e-6)


@pytest.mark.parametrize("name", ["clip_epsilon", "alpha", "max_kl"])
def test_rejects_values_that_are_not_positive(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"objective\.{name}=0 must be positive"):
        RollbackPPOLoss(*make_networks(), **{name: 0})
