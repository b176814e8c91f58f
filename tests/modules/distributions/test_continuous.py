"""Tests of the distributions of continuous actions against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import distributions as D  # noqa: N812

from torchppo.modules.distributions.continuous import IndependentBeta, SquashedNormal, StateDependentNoise

Array = NDArray[np.float64]


def log_normal(value: Array, loc: Array, scale: Array) -> Array:
    return np.asarray(-0.5 * ((value - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi))


def log_slope_of_tanh(value: Array) -> Array:
    """log(1 - tanh(u)^2) = -2 log cosh(u)."""
    return np.asarray(-2 * (np.abs(value) + np.log1p(np.exp(-2 * np.abs(value))) - np.log(2)))


def log_beta(value: Array, alpha: float, beta: float) -> Array:
    constant = math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)
    return np.asarray((alpha - 1) * np.log(value) + (beta - 1) * np.log1p(-value) + constant)


def column(values: Array) -> torch.Tensor:
    return torch.from_numpy(values).unsqueeze(-1)


def one(*values: float) -> list[torch.Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


class TestSquashedNormal:
    LOW, HIGH = -1.5, 4.0

    def build(self, loc: Array, scale: Array) -> SquashedNormal:
        return SquashedNormal(column(loc), column(scale), [self.LOW], [self.HIGH])

    def test_density_over_actions_integrates_to_one(self) -> None:
        u = np.linspace(-12, 12, 200_001)
        action = self.LOW + (self.HIGH - self.LOW) * (np.tanh(u) + 1) / 2
        density = self.build(np.full_like(u, 0.4), np.full_like(u, 0.8)).log_prob(column(u)).exp().numpy()
        assert np.trapezoid(density, action) == pytest.approx(1, abs=1e-6)

    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1))
    def test_float32_log_prob_equals_float64_in_saturation(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        low, high = -generator.uniform(0.1, 10, 3), generator.uniform(0.1, 10, 3)
        u = generator.uniform(-50, 50, (20, 3)).astype(np.float32)
        loc, scale = (u + generator.normal(size=u.shape)).astype(np.float32), np.full_like(u, 0.7)
        expected = log_normal(*(x.astype(np.float64) for x in (u, loc, scale))) - log_slope_of_tanh(
            u.astype(np.float64)
        )
        expected = (expected - np.log((high - low) / 2)).sum(-1)
        distribution = SquashedNormal(torch.from_numpy(loc), torch.from_numpy(scale), low.tolist(), high.tolist())
        actual = distribution.log_prob(torch.from_numpy(u)).numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)

    def test_log_prob_gradient_is_finite_in_saturation(self) -> None:
        u = torch.tensor([[-50.0, 50.0]], requires_grad=True)
        SquashedNormal(torch.zeros(1, 2), torch.ones(1, 2), [-1.0, -1.0], [1.0, 1.0]).log_prob(u).sum().backward()
        assert u.grad is not None
        np.testing.assert_allclose(u.grad.numpy(), [[50 - 2, -50 + 2]])  # -u + 2 tanh(u)

    def test_entropy_is_an_unbiased_estimate(self) -> None:
        torch.manual_seed(0)
        u = np.linspace(-12, 12, 200_001)
        log_density = log_normal(u, np.array(0.4), np.array(0.8)) - log_slope_of_tanh(u) - np.log(5.5 / 2)
        action = self.LOW + (self.HIGH - self.LOW) * (np.tanh(u) + 1) / 2
        expected = -np.trapezoid(np.exp(log_density) * log_density, action)
        many = self.build(np.full(100_000, 0.4), np.full(100_000, 0.8))
        assert many.entropy().mean().item() == pytest.approx(expected, abs=0.02)

    def test_kl_is_that_of_the_gaussians(self) -> None:
        old, new = (self.build(np.array([loc]), np.array([scale])) for loc, scale in ((0.4, 0.8), (-0.2, 1.1)))
        gaussian = np.log(1.1 / 0.8) + (0.8**2 + 0.6**2) / (2 * 1.1**2) - 0.5
        assert D.kl_divergence(old, new).item() == pytest.approx(gaussian, rel=1e-9)
        u = np.linspace(-12, 12, 200_001)
        p, q = (
            log_normal(u, np.array(loc), np.array(s)) - log_slope_of_tanh(u) for loc, s in ((0.4, 0.8), (-0.2, 1.1))
        )
        assert np.trapezoid(np.exp(p) * (p - q), np.tanh(u)) == pytest.approx(gaussian, abs=1e-6)

    def test_samples_are_gaussian_and_the_deterministic_sample_is_the_median(self) -> None:
        torch.manual_seed(0)
        distribution = self.build(np.array([0.4]), np.array([0.8]))
        sample = distribution.sample(torch.Size([50_000]))
        assert sample.shape == (50_000, 1, 1)
        assert sample.mean().item() == pytest.approx(0.4, abs=0.02)
        assert sample.std().item() == pytest.approx(0.8, abs=0.02)
        assert distribution.deterministic_sample.item() == 0.4


class TestIndependentBeta:
    @pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.7, 1.7), (2.0, 9.0), (80.0, 40.0)])
    def test_density_equals_the_formula_and_integrates_to_one(self, alpha: float, beta: float) -> None:
        x = np.linspace(1e-9, 1 - 1e-9, 200_001)
        actual = IndependentBeta(*(column(np.full_like(x, c)) for c in (alpha, beta))).log_prob(column(x)).numpy()
        np.testing.assert_allclose(actual, log_beta(x, alpha, beta), rtol=1e-9, atol=1e-9)
        assert np.trapezoid(np.exp(actual), x) == pytest.approx(1, abs=1e-6)

    def test_entropy_and_kl_are_integrals_of_the_density(self) -> None:
        x = np.linspace(1e-9, 1 - 1e-9, 200_001)
        p, q = log_beta(x, 2.5, 6.0), log_beta(x, 4.0, 3.0)
        old, new = IndependentBeta(*one(2.5, 6.0)), IndependentBeta(*one(4.0, 3.0))
        assert old.entropy().item() == pytest.approx(-np.trapezoid(np.exp(p) * p, x), abs=1e-6)
        assert D.kl_divergence(old, new).item() == pytest.approx(np.trapezoid(np.exp(p) * (p - q), x), abs=1e-6)

    def test_log_prob_is_the_sum_over_the_variables(self) -> None:
        distribution = IndependentBeta(torch.tensor([[2.5, 4.0]]), torch.tensor([[6.0, 3.0]]))
        expected = log_beta(np.array(0.3), 2.5, 6.0) + log_beta(np.array(0.6), 4.0, 3.0)
        assert distribution.log_prob(torch.tensor([[0.3, 0.6]])).item() == pytest.approx(float(expected), rel=1e-5)
        assert distribution.entropy().shape == (1,)

    def test_samples_have_the_right_mean_and_variance(self) -> None:
        torch.manual_seed(0)
        sample = IndependentBeta(*one(2.5, 6.0)).sample(torch.Size([50_000]))
        assert sample.shape == (50_000, 1)
        assert sample.mean().item() == pytest.approx(2.5 / 8.5, abs=0.005)
        assert sample.var().item() == pytest.approx(2.5 * 6 / (8.5**2 * 9.5), rel=0.05)

    @settings(max_examples=30)
    @given(st.floats(1.0, 1e4), st.floats(1.0, 1e4), st.integers(0, 2**31))
    def test_samples_lie_in_the_open_interval_with_finite_log_prob(self, alpha: float, beta: float, seed: int) -> None:
        torch.manual_seed(seed)
        distribution = IndependentBeta(torch.tensor([alpha]), torch.tensor([beta]))
        sample = distribution.sample(torch.Size([1000]))
        assert sample.dtype == torch.float32
        assert ((sample > 0) & (sample < 1)).all()
        assert torch.isfinite(distribution.log_prob(sample)).all()

    def test_rsample_gradient_is_unbiased(self) -> None:
        torch.manual_seed(0)
        alpha = torch.tensor([2.5], requires_grad=True)
        IndependentBeta(alpha, torch.tensor([6.0])).rsample(torch.Size([50_000])).mean().backward()
        assert alpha.grad is not None
        assert alpha.grad.item() == pytest.approx(6 / 8.5**2, rel=0.05)

    def test_deterministic_sample_is_the_mean(self) -> None:
        assert IndependentBeta(*one(2.5, 6.0)).deterministic_sample.item() == pytest.approx(2.5 / 8.5)
        assert IndependentBeta(*one(1.0, 1.0)).deterministic_sample.item() == 0.5


class TestStateDependentNoise:
    LOC, SCALE, PERTURBATION = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 2.0]]), torch.tensor([[0.1, 0.2]])

    def test_samples_are_the_mean_plus_the_perturbation(self) -> None:
        distribution = StateDependentNoise(self.LOC, self.SCALE, self.PERTURBATION)
        for sample in (distribution.sample(), distribution.rsample(), *distribution.sample(torch.Size([2]))):
            torch.testing.assert_close(sample, torch.tensor([[1.1, -1.8]]))
        assert distribution.deterministic_sample.tolist() == self.LOC.tolist()

    def test_log_prob_entropy_and_kl_are_those_of_the_gaussian(self) -> None:
        distribution = StateDependentNoise(self.LOC, self.SCALE, self.PERTURBATION)
        other = StateDependentNoise(self.LOC + 1, self.SCALE * 2, 0 * self.PERTURBATION)
        loc, scale = self.LOC.double().numpy(), self.SCALE.double().numpy()
        value = torch.tensor([[0.3, 0.4]])
        expected = log_normal(value.double().numpy(), loc, scale).sum()
        assert distribution.log_prob(value).item() == pytest.approx(expected, rel=1e-6)
        assert distribution.entropy().item() == pytest.approx((0.5 * np.log(2 * np.pi * np.e) + np.log(scale)).sum())
        kl = (np.log(2) + (scale**2 + 1) / (2 * (2 * scale) ** 2) - 0.5).sum()
        assert D.kl_divergence(distribution, other).item() == pytest.approx(kl, rel=1e-6)
