"""Tests of the controllers that read metrics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrl.objectives import KLAdaptiveLR

from torchppo.errors import ConfigurationError
from torchppo.modules.adaptive_controllers import AdaptiveBeta, KLAdaptive, TargetEntropy


class TestKLAdaptive:
    @given(kls=st.lists(st.floats(0, 0.1), min_size=1, max_size=30))
    def test_follows_torchrl(self, kls: list[float]) -> None:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
        theirs, ours, lr = KLAdaptiveLR(optimizer, target_kl=0.01), KLAdaptive(0.01), 1e-3
        for kl in kls:
            theirs.step(kl)
            lr = ours(0.5, {"kl": kl}, lr)
            assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)

    def test_keeps_a_value_set_by_others_without_a_kl(self) -> None:
        assert KLAdaptive()(0.0, {}, 1.0) == 1.0

    @pytest.mark.parametrize("options", [{"target_kl": 0.0}, {"factor": 1.0}, {"minimum": 0.0}, {"minimum": 1.0}])
    def test_rejects_options_out_of_range(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError):
            KLAdaptive(**options)


class TestAdaptiveBeta:
    @pytest.mark.parametrize(
        ("kl", "factor"),
        [
            (0.1, 2.0),
            (0.0151, 2.0),  # just above 1.5 x 0.01
            (0.0149, 1.0),
            (0.01, 1.0),
            (0.0067, 1.0),
            (0.0066, 0.5),  # just below 0.01 / 1.5
            (0.0, 0.5),
        ],
    )
    def test_doubles_above_the_target_and_halves_below(self, kl: float, factor: float) -> None:
        assert AdaptiveBeta(0.01)(0.0, {"kl": kl}, 3.0) == 3.0 * factor

    def test_keeps_the_value_without_a_kl(self) -> None:
        assert AdaptiveBeta()(0.0, {}, 3.0) == 3.0

    def test_factors_of_1_keep_the_value(self) -> None:
        controller = AdaptiveBeta(increment=1.0, decrement=1.0)
        assert [controller(0.0, {"kl": kl}, 3.0) for kl in (0.0, 1.0)] == [3.0, 3.0]

    @given(kls=st.lists(st.floats(0, 10), min_size=1, max_size=30))
    def test_stays_within_its_bounds_and_recovers(self, kls: list[float]) -> None:
        controller, value = AdaptiveBeta(minimum=0.25, maximum=8.0), 1.0
        for kl in kls:
            value = controller(0.0, {"kl": kl}, value)
            assert 0.25 <= value <= 8.0
        assert controller(0.0, {"kl": 1.0}, 0.25) == 0.5

    @pytest.mark.parametrize(
        "options", [{"dtarg": 0.0}, {"increment": 0.9}, {"decrement": 1.1}, {"decrement": 0.0}, {"minimum": 0.0}]
    )
    def test_rejects_options_out_of_range(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError):
            AdaptiveBeta(**options)


class TestTargetEntropy:
    def test_log_of_the_value_moves_by_the_distance_from_the_target(self) -> None:
        move = TargetEntropy(0.5, rate=0.1)
        assert move(0.0, {"entropy": 0.2}, 0.01) == pytest.approx(0.01 * math.exp(0.03), rel=1e-12)
        assert move(0.0, {"entropy": 0.7}, 0.01) == pytest.approx(0.01 * math.exp(-0.02), rel=1e-12)
        assert move(0.0, {"entropy": 0.5}, 0.01) == 0.01

    def test_refuses_to_multiply_0(self) -> None:
        with pytest.raises(ConfigurationError, match="entropy_coeff, which is 0"):
            TargetEntropy()(0.5, {"entropy": 0.1}, 0.0)

    def test_stays_within_its_bounds_and_keeps_the_value_without_an_entropy(self) -> None:
        move = TargetEntropy(0.0, rate=100.0, minimum=0.1, maximum=0.5)
        assert [move(0.0, {"entropy": entropy}, 0.2) for entropy in (1.0, -1.0)] == [0.1, 0.5]
        assert move(0.0, {}, 0.2) == 0.2

    @pytest.mark.parametrize("options", [{"rate": 0.0}, {"minimum": 0.0}])
    def test_rejects_options_out_of_range(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError):
            TargetEntropy(**options)
