"""Tests of the clipped objective."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrl.data import Categorical, Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.objectives.clip import ClipPPOLoss, clipped_surrogate


def make_networks() -> ActorCritic:
    specs = Composite(observation=Unbounded((1, 3)), shape=(1,)), Categorical(4, (1,), dtype=torch.int64)
    return make_actor_critic(*specs, body=partial(mlp, num_cells=(4,)))


class TestClippedSurrogate:
    # ratio, advantage, surrogate, gradient with respect to the log-ratio
    TABLE = (
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 1.0, 1.1, 1.1),
        (1.5, 1.0, 1.2, 0.0),
        (1.5, -1.0, -1.5, -1.5),
        (0.5, 1.0, 0.5, 0.5),
        (0.5, -1.0, -0.8, 0.0),
        (0.9, -2.0, -1.8, -1.8),
    )

    @pytest.mark.parametrize(("ratio", "advantage", "surrogate", "gradient"), TABLE)
    def test_value_and_gradient_equal_hand_computed_ones(
        self, ratio: float, advantage: float, surrogate: float, gradient: float
    ) -> None:
        log_ratio = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
        output = clipped_surrogate(log_ratio, torch.tensor([advantage], dtype=torch.float64), torch.tensor(0.2))
        output.sum().backward()
        assert log_ratio.grad is not None
        assert output.item() == pytest.approx(surrogate, rel=1e-6)
        assert log_ratio.grad.item() == pytest.approx(gradient, rel=1e-6)

    @pytest.mark.parametrize("log_ratio", [88.0, 89.0, 1000.0])
    def test_gradient_of_an_infinite_ratio_is_zero_not_nan(self, log_ratio: float) -> None:
        logs = torch.full((2,), log_ratio, requires_grad=True)
        value = clipped_surrogate(logs, torch.tensor([1.0, 0.0]), torch.tensor(0.2))
        (gradient,) = torch.autograd.grad(value.sum(), logs)
        torch.testing.assert_close(value.detach(), torch.tensor([1.2, 0.0]))
        assert gradient.tolist() == [0.0, 0.0]

    @given(log_ratio=st.floats(-5, 5), advantage=st.floats(-10, 10), epsilon=st.floats(0.01, 0.9))
    def test_is_never_above_the_unclipped_objective(self, log_ratio: float, advantage: float, epsilon: float) -> None:
        numbers = (torch.tensor(number, dtype=torch.float64) for number in (log_ratio, advantage, epsilon))
        assert clipped_surrogate(*numbers).item() <= math.exp(log_ratio) * advantage + 1e-12


def test_clip_fraction_is_the_fraction_of_ratios_outside_the_range() -> None:
    loss = ClipPPOLoss(*make_networks(), clip_epsilon=0.2)
    ratios = torch.tensor([1.0, 1.19, 1.21, 0.81, 0.79, 3.0, 0.1, 1.0], dtype=torch.float64)
    assert loss.metrics(ratios.log())["clip_fraction"].item() == 0.5


@pytest.mark.parametrize("clip_epsilon", [0.0, -0.2, ["a", "b"]])
def test_rejects_a_clip_epsilon_that_is_not_positive(clip_epsilon: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"objective.clip_epsilon={clip_epsilon} must be positive")):
        ClipPPOLoss(*make_networks(), clip_epsilon=clip_epsilon)
