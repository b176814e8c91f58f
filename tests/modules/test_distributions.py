"""Distributions against plain NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import distributions as D  # noqa: N812

from torchppo.modules.distributions import IndependentBernoulli, MultiCategorical

Array = NDArray[np.float64]
Batch = tuple[list[int], Array, Array, NDArray[np.int64]]
Coins = tuple[Array, Array, NDArray[np.int8]]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def blocks(logits: Array, nvec: list[int]) -> list[Array]:
    return [log_softmax(block) for block in np.split(logits, np.cumsum(nvec)[:-1], -1)]


def log_sides(logits: Array) -> tuple[Array, Array]:
    """Logarithms of the probabilities of heads and tails."""
    return -np.logaddexp(0, -logits), -np.logaddexp(0, logits)


@st.composite
def categorical_batches(draw: st.DrawFn) -> Batch:
    """Sizes of the factors, logits of two batches of policies, and one action for every row."""
    nvec = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    old, new = generator.normal(scale=draw(st.floats(0.1, 10.0)), size=(2, 5, sum(nvec)))
    return nvec, old, new, generator.integers(0, nvec, (5, len(nvec)))


@st.composite
def coin_batches(draw: st.DrawFn) -> Coins:
    """Logits of two batches of coins and the side each of them shows."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    old, new = generator.normal(scale=draw(st.floats(0.1, 10.0)), size=(2, 5, draw(st.integers(1, 4))))
    return old, new, generator.integers(0, 2, old.shape, np.int8)


class TestMultiCategoricalIsASumOverItsFactors:
    @settings(deadline=None, max_examples=40)
    @given(categorical_batches())
    def test_log_prob_is_the_sum_of_the_factors_log_probs(self, batch: Batch) -> None:
        nvec, logits, _, action = batch
        expected = sum(
            np.take_along_axis(block, action[:, [i]], -1)[:, 0] for i, block in enumerate(blocks(logits, nvec))
        )
        actual = MultiCategorical(torch.from_numpy(logits), nvec).log_prob(torch.from_numpy(action))
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)

    @settings(deadline=None, max_examples=40)
    @given(categorical_batches())
    def test_entropy_is_the_sum_of_the_factors_entropies(self, batch: Batch) -> None:
        nvec, logits, _, _ = batch
        expected = sum(-(np.exp(block) * block).sum(-1) for block in blocks(logits, nvec))
        actual = MultiCategorical(torch.from_numpy(logits), nvec).entropy()
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)

    @settings(deadline=None, max_examples=40)
    @given(categorical_batches())
    def test_kl_is_the_sum_of_the_factors_kls(self, batch: Batch) -> None:
        nvec, old, new, _ = batch
        pairs = zip(blocks(old, nvec), blocks(new, nvec), strict=True)
        expected = sum((np.exp(p) * (p - q)).sum(-1) for p, q in pairs)
        actual = D.kl_divergence(*(MultiCategorical(torch.from_numpy(logits), nvec) for logits in (old, new)))
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)

    @settings(deadline=None, max_examples=40)
    @given(categorical_batches())
    def test_the_deterministic_sample_is_the_best_choice_of_every_factor(self, batch: Batch) -> None:
        nvec, logits, _, _ = batch
        expected = np.stack([block.argmax(-1) for block in blocks(logits, nvec)], -1)
        distribution = MultiCategorical(torch.from_numpy(logits), nvec)
        np.testing.assert_array_equal(distribution.deterministic_sample.numpy(), expected)
        np.testing.assert_array_equal(distribution.mode.numpy(), expected)


class TestMultiCategoricalPadding:
    NVEC = (2, 5, 3)

    def test_a_choice_that_does_not_exist_is_never_sampled(self) -> None:
        torch.manual_seed(0)
        sample = MultiCategorical(torch.zeros(10), self.NVEC).sample(torch.Size([5000]))
        assert sample.dtype == torch.int64
        assert [sorted(set(column.tolist())) for column in sample.T] == [[0, 1], [0, 1, 2, 3, 4], [0, 1, 2]]

    def test_sampled_frequencies_are_the_probabilities(self) -> None:
        torch.manual_seed(0)
        logits = np.random.default_rng(0).normal(size=10)
        sample = MultiCategorical(torch.from_numpy(logits), self.NVEC).sample(torch.Size([50_000])).numpy()
        for factor, block in enumerate(blocks(logits, list(self.NVEC))):
            frequencies = np.bincount(sample[:, factor], minlength=len(block)) / len(sample)
            np.testing.assert_allclose(frequencies, np.exp(block), atol=0.01)

    def test_gradients_are_finite_and_those_of_the_factors(self) -> None:
        generator = np.random.default_rng(1)
        logits = torch.from_numpy(generator.normal(size=(4, 10))).requires_grad_()
        old = torch.from_numpy(generator.normal(size=(4, 10)))
        new = MultiCategorical(logits, self.NVEC)
        (new.entropy() + D.kl_divergence(MultiCategorical(old, self.NVEC), new)).sum().backward()
        # d entropy / d logits = -p (log p + entropy); d KL(old || new) / d logits = p_new - p_old
        expected = [
            -np.exp(q) * (q - (np.exp(q) * q).sum(-1, keepdims=True)) + np.exp(q) - np.exp(p)
            for p, q in zip(
                blocks(old.numpy(), list(self.NVEC)), blocks(logits.detach().numpy(), list(self.NVEC)), strict=True
            )
        ]
        assert logits.grad is not None
        np.testing.assert_allclose(logits.grad.numpy(), np.concatenate(expected, -1), rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_every_float_type_gives_finite_numbers(self, dtype: torch.dtype) -> None:
        distribution = MultiCategorical(torch.zeros(1, 10, dtype=dtype), self.NVEC)
        log_prob, entropy = distribution.log_prob(torch.zeros(1, 3, dtype=torch.int64)), distribution.entropy()
        assert log_prob.item() == pytest.approx(-np.log(30), rel=1e-2)
        assert entropy.item() == pytest.approx(np.log(30), rel=1e-2)


class TestIndependentBernoulliIsASumOverItsCoins:
    @settings(deadline=None, max_examples=40)
    @given(coin_batches())
    def test_log_prob_is_the_sum_of_the_coins_log_probs(self, batch: Coins) -> None:
        logits, _, side = batch
        heads, tails = log_sides(logits)
        actual = IndependentBernoulli(torch.from_numpy(logits)).log_prob(torch.from_numpy(side))
        np.testing.assert_allclose(actual.numpy(), np.where(side, heads, tails).sum(-1), rtol=1e-10, atol=1e-12)

    @settings(deadline=None, max_examples=40)
    @given(coin_batches())
    def test_entropy_is_the_sum_of_the_coins_entropies(self, batch: Coins) -> None:
        logits, _, _ = batch
        expected = -sum(np.exp(side) * side for side in log_sides(logits)).sum(-1)  # type: ignore[union-attr]
        actual = IndependentBernoulli(torch.from_numpy(logits)).entropy()
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-8, atol=1e-12)

    @settings(deadline=None, max_examples=40)
    @given(coin_batches())
    def test_kl_is_the_sum_of_the_coins_kls(self, batch: Coins) -> None:
        old, new, _ = batch
        pairs = zip(log_sides(old), log_sides(new), strict=True)
        expected = sum(np.exp(p) * (p - q) for p, q in pairs).sum(-1)  # type: ignore[union-attr]
        actual = D.kl_divergence(*(IndependentBernoulli(torch.from_numpy(logits)) for logits in (old, new)))
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-8, atol=1e-10)


class TestIndependentBernoulliActions:
    def test_a_sample_is_zeros_and_ones_in_int8(self) -> None:
        torch.manual_seed(0)
        sample = IndependentBernoulli(torch.zeros(3)).sample(torch.Size([200]))
        assert sample.dtype == torch.int8
        assert sample.shape == (200, 3)
        assert sorted(set(sample.flatten().tolist())) == [0, 1]

    def test_sampled_frequencies_are_the_probabilities(self) -> None:
        torch.manual_seed(0)
        logits = torch.tensor([-2.0, 0.0, 1.0])
        sample = IndependentBernoulli(logits).sample(torch.Size([50_000]))
        np.testing.assert_allclose(sample.double().mean(0).numpy(), [0.119203, 0.5, 0.731059], atol=0.01)

    def test_the_deterministic_sample_is_the_more_probable_side(self) -> None:
        sample = IndependentBernoulli(torch.tensor([[-3.0, 2.0], [0.1, -0.1]])).deterministic_sample
        assert sample.dtype == torch.int8
        assert sample.tolist() == [[0, 1], [1, 0]]

    def test_a_fair_coin_has_a_deterministic_sample_although_it_has_no_mode(self) -> None:
        assert IndependentBernoulli(torch.zeros(1)).deterministic_sample.tolist() in ([0], [1])
