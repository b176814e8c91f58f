"""Tests of the categorical value head."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from torchppo.errors import ConfigurationError
from torchppo.modules.heads.categorical_value import (
    AdaptiveCategoricalValue,
    CategoricalValue,
    gaussian_histogram,
    symmetric_exp,
    symmetric_log,
)

Array = NDArray[np.float64]

WIDTH, BATCH = 5, 12
HEADS: dict[str, Callable[[int], CategoricalValue]] = {
    "hl_gauss": partial(CategoricalValue, num_bins=21, v_min=-3.0, v_max=5.0),
    "two_hot": partial(CategoricalValue, num_bins=21, v_min=-3.0, v_max=5.0, sigma_ratio=0.0),
    "two_hot symlog": partial(CategoricalValue, num_bins=21, v_min=-30.0, v_max=500.0, sigma_ratio=0.0, symlog=True),
}
every_head = pytest.mark.parametrize("name", HEADS)


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(-1)


def cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def range_of(name: str) -> tuple[float, float]:
    """Return the range of a head of `HEADS`, in the scale of the bins."""
    return (-math.log1p(30), math.log1p(500)) if "symlog" in name else (-3.0, 5.0)


def numpy_position(name: str, target: float) -> float:
    """Return the position of a target, in bins from the center of the first; the margin is 3 bins = 4 sigma."""
    if "symlog" in name:
        centers = numpy_centers(name)
        reward_centers = (np.sign(centers) * np.expm1(np.abs(centers))).astype(np.float32)  # dtype of the buffer
        return float(np.interp(target, reward_centers, np.arange(21)))
    low, high = range_of(name)
    num_margin = 0 if "two_hot" in name else 3
    return num_margin + (20 - 2 * num_margin) * (min(max(target, low), high) - low) / (high - low)


def numpy_centers(name: str) -> Array:
    """Return the centers of the 21 bins, in the scale of the bins."""
    low, high = range_of(name)
    num_margin = 0 if "two_hot" in name else 3
    width = (high - low) / (20 - 2 * num_margin)
    return low + width * (np.arange(21) - num_margin)


def numpy_histogram(name: str, target: float) -> Array:
    """Return the target probabilities of the 21 bins."""
    position = numpy_position(name, target)
    if "two_hot" in name:
        return np.array([max(0.0, 1 - abs(position - i)) for i in range(21)])
    weights = np.array([cdf((i + 0.5 - position) / 0.75) - cdf((i - 0.5 - position) / 0.75) for i in range(21)])
    return weights / weights.sum()


@pytest.fixture
def features() -> Tensor:
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@every_head
class TestCategoricalValue:
    def test_error_is_the_cross_entropy_of_numpy_and_its_gradient_q_minus_p(self, name: str, features: Tensor) -> None:
        head = HEADS[name](WIDTH).double()
        target = 6 * torch.randn(BATCH, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        value, logits = head(10 * features)
        logits.retain_grad()
        error = head.error({"state_value": value, "value_logits": logits}, target, value, None)
        error.sum().backward()
        expected = np.stack([numpy_histogram(name, y) for y in target[:, 0].tolist()])
        outputs = logits.detach().numpy()
        log_probs = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
        np.testing.assert_allclose(error.detach().numpy()[:, 0], -(expected * log_probs).sum(-1), rtol=1e-6)
        np.testing.assert_allclose(logits.grad, np.exp(log_probs) - expected, rtol=1e-6, atol=1e-7)

    @settings(max_examples=50)
    @given(target=st.floats(-1000, 1000))
    def test_histogram_is_a_distribution_with_the_clamped_target_as_mean(self, name: str, target: float) -> None:
        head = HEADS[name](WIDTH)
        probabilities = head.histogram(column(target))[0].numpy()
        assert (probabilities >= 0).all()
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        # In bins. Limited by the integration of the Gaussian, and by centers in float32.
        accuracy = {"hl_gauss": 2e-5, "two_hot": 1e-10, "two_hot symlog": 1e-6}[name]
        assert probabilities @ np.arange(21) == pytest.approx(numpy_position(name, target), abs=accuracy)

    def test_histogram_equals_numpy(self, name: str) -> None:
        head = HEADS[name](WIDTH)
        for target in (-100.0, -3.0, -2.9, -0.4, 0.0, 1.234, 4.999, 5.0, 700.0):
            expected = numpy_histogram(name, target)
            np.testing.assert_allclose(head.histogram(column(target))[0].numpy(), expected, atol=1e-7)

    def test_float32_histogram_equals_float64(self, name: str) -> None:
        head = HEADS[name](WIDTH)
        targets = torch.linspace(-1000, 1000, 4001).unsqueeze(-1)
        probabilities = head.histogram(targets)
        assert probabilities.dtype == torch.float32
        np.testing.assert_allclose(probabilities.sum(-1).numpy(), 1, atol=1e-6)
        np.testing.assert_allclose(probabilities, head.double().histogram(targets.double()), atol=2e-5)

    def test_value_is_the_mean_over_the_bin_centers(self, name: str, features: Tensor) -> None:
        head = HEADS[name](WIDTH).double()
        value, logits = head(features)
        odds = np.exp(logits.detach().numpy())
        centers = numpy_centers(name)
        expected = odds @ (np.sign(centers) * np.expm1(np.abs(centers)) if head.symlog else centers) / odds.sum(-1)
        np.testing.assert_allclose(value[:, 0].detach().numpy(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("clamped", [False, True])
    def test_value_of_a_perfectly_learned_target_is_the_target(self, name: str, clamped: bool) -> None:
        head = HEADS[name](WIDTH).double()
        target = {False: 2.5, True: 1e4}[clamped]
        limit = 500.0 if head.symlog else 5.0
        weight, bias = head.parameters()
        with torch.no_grad():
            weight.zero_()
            bias.copy_(head.histogram(column(target))[0].log().clamp(min=-60))
        value = head(torch.zeros(WIDTH, dtype=torch.float64))[0]
        assert value.item() == pytest.approx(min(target, limit), rel=1e-4)

    def test_value_of_stochastic_returns_is_their_mean(self, name: str) -> None:
        head = HEADS[name](WIDTH).double()
        returns = [-1.5, 0.0, 400.0] if head.symlog else [-1.5, 0.0, 4.0]
        weight, bias = head.parameters()
        with torch.no_grad():
            weight.zero_()
            bias.copy_(head.histogram(column(*returns)).mean(0).log().clamp(min=-60))
        value = head(torch.zeros(WIDTH, dtype=torch.float64))[0]
        assert value.item() == pytest.approx(np.mean(returns), rel=1e-4)

    def test_error_is_minimal_at_the_target(self, name: str) -> None:
        head = HEADS[name](WIDTH).double()
        target = column(-1.3, 0.2, 3.9)
        logits = head.histogram(target).clamp(min=1e-30).log().requires_grad_()
        head.error({"state_value": target, "value_logits": logits}, target, target, None).sum().backward()
        assert logits.grad is not None
        np.testing.assert_allclose(logits.grad.numpy(), 0, atol=1e-12)


class TestBins:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"v_min": 1.0, "v_max": 1.0}, r"v_min=1\.0 must be below critic\.head\.v_max=1\.0"),
            ({"sigma_ratio": -0.1}, r"sigma_ratio=-0\.1 must not be negative"),
            ({"symlog": True}, r"symlog=true needs critic\.head\.sigma_ratio=0, not 0\.75"),
            ({"num_bins": 7}, r"num_bins=7 must be at least 8"),
            ({"num_bins": 1, "sigma_ratio": 0.0}, r"num_bins=1 must be at least 2"),
        ],
    )
    def test_rejects_invalid_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            CategoricalValue(WIDTH, **options)

    @pytest.mark.parametrize(("num_bins", "sigma_ratio"), [(8, 0.75), (2, 0.0)])
    def test_smallest_number_of_bins_works(self, num_bins: int, sigma_ratio: float) -> None:
        head = CategoricalValue(WIDTH, num_bins, -1.0, 2.0, sigma_ratio)
        assert head(torch.zeros(WIDTH))[1].shape == (num_bins,)
        assert (head.histogram(torch.tensor([0.5])) @ head.centers).item() == pytest.approx(0.5, abs=1e-4)

    def test_two_hot_bins_span_the_range(self) -> None:
        head = CategoricalValue(WIDTH, num_bins=5, v_min=-2.0, v_max=2.0, sigma_ratio=0.0)
        assert head.centers.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
        assert head.histogram(torch.tensor([[0.25], [-9.0]])).tolist() == [[0, 0, 0.75, 0.25, 0], [1, 0, 0, 0, 0]]

    @settings(max_examples=50)
    @given(x=st.floats(-1e6, 1e6))
    def test_symmetric_exp_undoes_symmetric_log(self, x: float) -> None:
        compressed = symmetric_log(column(x))
        assert compressed.item() == pytest.approx(math.copysign(math.log1p(abs(x)), x), rel=1e-12)
        assert symmetric_exp(compressed).item() == pytest.approx(x, rel=1e-9)


class TestAdaptiveBins:
    def test_follow_the_targets_of_the_rollouts(self) -> None:
        head = AdaptiveCategoricalValue(WIDTH, beta=0.5).double()
        first, second = np.array([1.0, 2.0, 6.0]), np.array([10.0, 20.0])
        head.update(torch.from_numpy(first))
        assert head.mean.item() == pytest.approx(3.0)
        assert head.std.item() == pytest.approx(first.std())
        head.update(torch.from_numpy(second))
        mean = (1.5 * 3.0 + 2 * 15.0) / 3.5
        variance = (1.5 * (first.var() + (3.0 - mean) ** 2) + 2 * (second.var() + (15.0 - mean) ** 2)) / 3.5
        assert head.mean.item() == pytest.approx(mean)
        assert head.std.item() == pytest.approx(math.sqrt(variance))

    def test_value_and_error_are_those_of_the_normalized_target(self) -> None:
        torch.manual_seed(0)
        head = AdaptiveCategoricalValue(WIDTH, num_bins=21).double()
        head.update(torch.tensor([100.0, 300.0]))
        value, logits = head(torch.randn(BATCH, WIDTH, dtype=torch.float64))
        probabilities = np.exp(logits.detach().numpy())
        probabilities /= probabilities.sum(-1, keepdims=True)
        bin_width = 10 / (20 - 2 * 4 * 0.75)  # a margin of 4 sigma on both sides of +-5 deviations
        centers = bin_width * (np.arange(21) - 10)
        expected = 200 + 100 * probabilities @ centers
        np.testing.assert_allclose(value.detach().numpy()[:, 0], expected, rtol=1e-7)
        target = column(*np.linspace(0, 400, BATCH))
        error = head.error({"state_value": value, "value_logits": logits}, target, value, None)
        histogram = gaussian_histogram((target - 200) / 100 / bin_width + 10, 21, 0.75).numpy()
        np.testing.assert_allclose(
            error.detach().numpy()[:, 0], -(histogram * np.log(probabilities)).sum(-1), rtol=1e-9
        )

    @pytest.mark.parametrize(("name", "value"), [("num_stds", 0.0), ("beta", 1.0)])
    def test_rejects_options_out_of_range(self, name: str, value: float) -> None:
        with pytest.raises(ConfigurationError, match=rf"critic\.head\.{name}={value}"):
            AdaptiveCategoricalValue(WIDTH, **{name: value})
