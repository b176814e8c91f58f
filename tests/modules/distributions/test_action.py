"""Tests of the action distributions against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import distributions as D  # noqa: N812
from torchrl.modules import IndependentNormal

from torchppo.modules.distributions.action import (
    Categorical,
    IndependentBernoulli,
    MultiCategorical,
    OneHotCategorical,
    masked_logits,
    ratio_metrics,
)
from torchppo.modules.distributions.continuous import IndependentBeta, SquashedNormal, StateDependentNoise
from torchppo.modules.distributions.joint import JointComponent, JointDistribution

Array = NDArray[np.float64]
CategoricalBatch = tuple[list[int], Array, Array, NDArray[np.int64]]
BernoulliBatch = tuple[Array, Array, NDArray[np.int8]]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def blocks(logits: Array, nvec: list[int]) -> list[Array]:
    return [log_softmax(block) for block in np.split(logits, np.cumsum(nvec)[:-1], -1)]


def log_prob_1_0(logits: Array) -> tuple[Array, Array]:
    """Return the log-probabilities of 1 and 0."""
    return -np.logaddexp(0, -logits), -np.logaddexp(0, logits)


@st.composite
def categorical_batches(draw: st.DrawFn) -> CategoricalBatch:
    """Draw the number of choices per variable, logits of two batches of policies, and one action per row."""
    nvec = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    old, new = generator.normal(scale=draw(st.floats(0.1, 10.0)), size=(2, 5, sum(nvec)))
    return nvec, old, new, generator.integers(0, nvec, (5, len(nvec)))


@st.composite
def bernoulli_batches(draw: st.DrawFn) -> BernoulliBatch:
    """Draw logits of two batches of policies, and a value for every variable."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    old, new = generator.normal(scale=draw(st.floats(0.1, 10.0)), size=(2, 5, draw(st.integers(1, 4))))
    return old, new, generator.integers(0, 2, old.shape, np.int8)


class TestMultiCategorical:
    @settings(max_examples=40)
    @given(categorical_batches())
    def test_log_prob_is_the_sum_over_the_variables(self, batch: CategoricalBatch) -> None:
        nvec, logits, _, action = batch
        expected = sum(
            np.take_along_axis(block, action[:, [i]], -1)[:, 0] for i, block in enumerate(blocks(logits, nvec))
        )
        actual = MultiCategorical(torch.from_numpy(logits), nvec).log_prob(torch.from_numpy(action))
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)

    @settings(max_examples=40)
    @given(categorical_batches())
    def test_entropy_is_the_sum_over_the_variables(self, batch: CategoricalBatch) -> None:
        nvec, logits, _, _ = batch
        expected = sum(-(np.exp(block) * block).sum(-1) for block in blocks(logits, nvec))
        actual = MultiCategorical(torch.from_numpy(logits), nvec).entropy()
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)

    @settings(max_examples=40)
    @given(categorical_batches())
    def test_kl_is_the_sum_over_the_variables(self, batch: CategoricalBatch) -> None:
        nvec, old, new, _ = batch
        pairs = zip(blocks(old, nvec), blocks(new, nvec), strict=True)
        expected = sum((np.exp(p) * (p - q)).sum(-1) for p, q in pairs)
        actual = D.kl_divergence(*(MultiCategorical(torch.from_numpy(logits), nvec) for logits in (old, new)))
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-10, atol=1e-12)

    @settings(max_examples=40)
    @given(categorical_batches())
    def test_deterministic_sample_is_the_most_probable_choice(self, batch: CategoricalBatch) -> None:
        nvec, logits, _, _ = batch
        expected = np.stack([block.argmax(-1) for block in blocks(logits, nvec)], -1)
        distribution = MultiCategorical(torch.from_numpy(logits), nvec)
        np.testing.assert_array_equal(distribution.deterministic_sample.numpy(), expected)
        np.testing.assert_array_equal(distribution.mode.numpy(), expected)


class TestMultiCategoricalPadding:
    NVEC = (2, 5, 3)

    def test_padding_is_never_sampled(self) -> None:
        torch.manual_seed(0)
        sample = MultiCategorical(torch.zeros(10), self.NVEC).sample(torch.Size([5000]))
        assert sample.dtype == torch.int64
        assert [sorted(set(column.tolist())) for column in sample.T] == [[0, 1], [0, 1, 2, 3, 4], [0, 1, 2]]

    def test_sampled_frequencies_are_the_probabilities(self) -> None:
        torch.manual_seed(0)
        logits = np.random.default_rng(0).normal(size=10)
        sample = MultiCategorical(torch.from_numpy(logits), self.NVEC).sample(torch.Size([50_000])).numpy()
        for variable, block in enumerate(blocks(logits, list(self.NVEC))):
            frequencies = np.bincount(sample[:, variable], minlength=len(block)) / len(sample)
            np.testing.assert_allclose(frequencies, np.exp(block), atol=0.01)

    def test_gradients_equal_the_formula(self) -> None:
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
    def test_all_float_dtypes_are_finite(self, dtype: torch.dtype) -> None:
        distribution = MultiCategorical(torch.zeros(1, 10, dtype=dtype), self.NVEC)
        log_prob, entropy = distribution.log_prob(torch.zeros(1, 3, dtype=torch.int64)), distribution.entropy()
        assert log_prob.item() == pytest.approx(-np.log(30), rel=1e-2)
        assert entropy.item() == pytest.approx(np.log(30), rel=1e-2)


class TestIndependentBernoulli:
    @settings(max_examples=40)
    @given(bernoulli_batches())
    def test_log_prob_is_the_sum_over_the_variables(self, batch: BernoulliBatch) -> None:
        logits, _, value = batch
        log_prob_1, log_prob_0 = log_prob_1_0(logits)
        actual = IndependentBernoulli(torch.from_numpy(logits)).log_prob(torch.from_numpy(value))
        np.testing.assert_allclose(
            actual.numpy(), np.where(value, log_prob_1, log_prob_0).sum(-1), rtol=1e-10, atol=1e-12
        )

    @settings(max_examples=40)
    @given(bernoulli_batches())
    def test_entropy_is_the_sum_over_the_variables(self, batch: BernoulliBatch) -> None:
        logits, _, _ = batch
        expected = -sum(np.exp(value) * value for value in log_prob_1_0(logits)).sum(-1)  # type: ignore[union-attr]
        actual = IndependentBernoulli(torch.from_numpy(logits)).entropy()
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-8, atol=1e-12)

    @settings(max_examples=40)
    @given(bernoulli_batches())
    def test_kl_is_the_sum_over_the_variables(self, batch: BernoulliBatch) -> None:
        old, new, _ = batch
        pairs = zip(log_prob_1_0(old), log_prob_1_0(new), strict=True)
        expected = sum(np.exp(p) * (p - q) for p, q in pairs).sum(-1)  # type: ignore[union-attr]
        actual = D.kl_divergence(*(IndependentBernoulli(torch.from_numpy(logits)) for logits in (old, new)))
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-8, atol=1e-10)


class TestKLWithTinyProbabilities:
    """PyTorch's KL divergence is infinite if a probability rounds to 0."""

    @pytest.mark.parametrize(("old", "new"), [(16.0, 17.5), (10.0, 17.5), (-30.0, -90.0), (3.0, -120.0), (0.0, 40.0)])
    def test_bernoulli_equals_numpy(self, old: float, new: float) -> None:
        log_p, log_q = (-np.logaddexp(0.0, [[-x], [x]]) for x in (old, new))  # of 1, of 0
        expected = float((np.exp(log_p) * (log_p - log_q)).sum())
        variables = [IndependentBernoulli(torch.tensor([x])) for x in (old, new)]
        actual = D.kl_divergence(*variables).item()
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-12)

    @pytest.mark.parametrize("new", [-104.0, -110.0, -3000.0])
    def test_categorical_equals_numpy(self, new: float) -> None:
        old = np.array([0.0, 1.0, -80.0])
        log_p, log_q = (x - np.logaddexp.reduce(x) for x in (old, np.array([0.5, 1.0, new])))
        expected = float((np.exp(log_p) * (log_p - log_q)).sum())
        pair = [Categorical(logits=torch.tensor([x])) for x in (old.tolist(), [0.5, 1.0, new])]
        assert D.kl_divergence(*pair).item() == pytest.approx(expected, rel=1e-5)
        multi = [MultiCategorical(torch.tensor([[0.0, *x]]), [1, 3]) for x in (old.tolist(), [0.5, 1.0, new])]
        assert D.kl_divergence(*multi).item() == pytest.approx(expected, rel=1e-5)


class TestIndependentBernoulliSamples:
    def test_samples_are_zeros_and_ones_in_int8(self) -> None:
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

    def test_deterministic_sample_is_the_more_probable_value(self) -> None:
        sample = IndependentBernoulli(torch.tensor([[-3.0, 2.0], [0.1, -0.1]])).deterministic_sample
        assert sample.dtype == torch.int8
        assert sample.tolist() == [[0, 1], [1, 0]]

    def test_deterministic_sample_exists_if_both_values_are_equally_likely(self) -> None:
        assert IndependentBernoulli(torch.zeros(1)).deterministic_sample.tolist() in ([0], [1])


@st.composite
def masked_batches(draw: st.DrawFn) -> tuple[list[int], Array, Array, NDArray[np.int8]]:
    """Draw the number of choices per variable, logits of two batches of policies, and a valid mask."""
    nvec = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    old, new = generator.normal(scale=draw(st.floats(0.1, 10.0)), size=(2, 5, sum(nvec)))
    mask = generator.integers(0, 2, old.shape, np.int8)
    for block in np.split(mask, np.cumsum(nvec)[:-1], -1):
        block[np.arange(5), generator.integers(0, block.shape[-1], 5)] = 1
    return nvec, old, new, mask


def masked(logits: Array, mask: NDArray[np.int8], nvec: list[int]) -> MultiCategorical:
    return MultiCategorical(masked_logits(torch.from_numpy(logits).float(), torch.from_numpy(mask)), nvec)


class TestMaskedLogits:
    @settings(max_examples=40)
    @given(masked_batches())
    def test_forbidden_choices_are_never_sampled(self, batch: tuple[list[int], Array, Array, NDArray[np.int8]]) -> None:
        nvec, logits, _, mask = batch
        torch.manual_seed(0)
        distribution = masked(logits, mask, nvec)
        offsets = np.concatenate([[0], np.cumsum(nvec)[:-1]])
        for sample in (distribution.sample(torch.Size([200])), distribution.deterministic_sample.unsqueeze(0)):
            assert np.take_along_axis(
                np.broadcast_to(mask, (len(sample), *mask.shape)), sample.numpy() + offsets, -1
            ).all()

    @settings(max_examples=40)
    @given(masked_batches())
    def test_probabilities_entropy_and_kl_are_those_of_the_allowed_choices(
        self, batch: tuple[list[int], Array, Array, NDArray[np.int8]]
    ) -> None:
        nvec, old, new, mask = batch
        parts = zip(*(np.split(x, np.cumsum(nvec)[:-1], -1) for x in (old, new, mask)), strict=True)
        entropy, kl = np.zeros(5), np.zeros(5)
        for p, q, allowed in parts:
            for row in range(5):
                log_p, log_q = (log_softmax(x[row][allowed[row] > 0]) for x in (p, q))
                entropy[row] -= (np.exp(log_p) * log_p).sum()
                kl[row] += (np.exp(log_p) * (log_p - log_q)).sum()
        distributions = masked(old, mask, nvec), masked(new, mask, nvec)
        probs = distributions[0].base_dist.probs
        np.testing.assert_allclose(probs.sum(-1).numpy(), 1, rtol=1e-6)
        np.testing.assert_allclose(distributions[0].entropy().numpy(), entropy, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(D.kl_divergence(*distributions).numpy(), kl, rtol=1e-4, atol=1e-5)

    def test_forbidden_choices_are_not_sampled_when_the_uniform_number_is_zero(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch, "rand", torch.zeros)
        logits = masked_logits(torch.zeros(3), torch.tensor([False, True, False]))
        assert Categorical(logits=logits).sample().item() == 1

    def test_mask_without_allowed_choices_gives_valid_actions(self) -> None:
        torch.manual_seed(0)
        distribution = MultiCategorical(masked_logits(torch.zeros(7), torch.zeros(7, dtype=torch.int8)), [2, 5])
        sample = distribution.sample(torch.Size([500]))
        assert (sample.amax(0) == torch.tensor([1, 4])).all()
        assert torch.isfinite(distribution.log_prob(sample)).all()
        assert torch.isfinite(distribution.entropy())

    def test_gradients_of_forbidden_choices_are_zero(self) -> None:
        logits = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
        new = Categorical(logits=masked_logits(logits, torch.tensor([1, 0, 1], dtype=torch.int8)))
        old = Categorical(logits=masked_logits(torch.zeros(3), torch.tensor([True, False, True])))
        (new.log_prob(torch.tensor(2)) + new.entropy() + D.kl_divergence(old, new)).backward()
        assert logits.grad is not None
        assert logits.grad[1] == 0
        assert torch.isfinite(logits.grad).all()


class TestOneHotCategorical:
    @settings(max_examples=30)
    @given(st.integers(1, 6), st.floats(0.1, 10.0), st.integers(0, 2**32 - 1))
    def test_log_prob_entropy_and_kl_are_those_of_the_categorical(self, n: int, scale: float, seed: int) -> None:
        generator = np.random.default_rng(seed)
        old, new = (log_softmax(x) for x in generator.normal(scale=scale, size=(2, 5, n)))
        choice = generator.integers(0, n, 5)
        p, q = (OneHotCategorical(logits=torch.from_numpy(x)) for x in (old, new))
        log_prob = p.log_prob(torch.from_numpy(np.eye(n, dtype=np.int64)[choice]))
        np.testing.assert_allclose(log_prob.numpy(), old[np.arange(5), choice], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(p.entropy().numpy(), -(np.exp(old) * old).sum(-1), rtol=1e-9, atol=1e-12)
        kl = (np.exp(old) * (old - new)).sum(-1)
        np.testing.assert_allclose(D.kl_divergence(p, q).numpy(), kl, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
    def test_samples_are_one_hot(self, shape: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        sample = OneHotCategorical(logits=torch.randn(5, 4)).sample(torch.Size(shape))
        assert sample.shape == (*shape, 5, 4)
        assert sample.dtype == torch.int64
        assert set(sample.unique().tolist()) == {0, 1}
        assert (sample.sum(-1) == 1).all()

    def test_sampled_frequencies_are_the_probabilities(self) -> None:
        torch.manual_seed(0)
        probs = torch.tensor([0.1, 0.6, 0.3])
        sample = OneHotCategorical(logits=probs.log()).sample(torch.Size([20_000]))
        torch.testing.assert_close(sample.float().mean(0), probs, rtol=0, atol=0.015)

    def test_deterministic_sample_is_the_most_probable_choice(self) -> None:
        logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 2.0]])
        assert OneHotCategorical(logits=logits).deterministic_sample.tolist() == [[0, 1, 0], [1, 0, 0]]

    def test_forbidden_choices_are_never_sampled(self) -> None:
        torch.manual_seed(0)
        logits = masked_logits(torch.tensor([5.0, 0.0, 0.0]), torch.tensor([False, True, True]))
        taken = OneHotCategorical(logits=logits).sample(torch.Size([500])).sum(0)
        assert taken[0] == 0
        assert taken[1:].min() > 150


def positive(*sizes: int) -> list[torch.Tensor]:
    return [torch.rand(3, size) + 1 for size in sizes]


COMPILED: dict[str, tuple[Callable[..., D.Distribution], list[int]]] = {
    "Normal": (partial(IndependentNormal, validate_args=False), [2, 2]),
    "SquashedNormal": (partial(SquashedNormal, low=[-1.0, 0.0], high=[1.0, 2.0], validate_args=False), [2, 2]),
    "IndependentBeta": (partial(IndependentBeta, validate_args=False), [2, 2]),
    "StateDependentNoise": (partial(StateDependentNoise, validate_args=False), [2, 2, 2]),
    "Categorical": (lambda logits: Categorical(logits=logits, validate_args=False), [4]),
    "OneHotCategorical": (lambda logits: OneHotCategorical(logits=logits, validate_args=False), [4]),
    "MultiCategorical": (partial(MultiCategorical, nvec=[2, 3], validate_args=False), [5]),
    "IndependentBernoulli": (partial(IndependentBernoulli, validate_args=False), [3]),
    "JointDistribution": (
        partial(
            lambda components, *params: JointDistribution(components, **dict(zip("abcde", params, strict=True))),
            [
                JointComponent(partial(Categorical, validate_args=False), {"logits": "a"}),
                JointComponent(
                    partial(SquashedNormal, low=[-1.0, 0.0], high=[1.0, 2.0], validate_args=False),
                    {"loc": "b", "scale": "c"},
                ),
                JointComponent(partial(IndependentBeta, validate_args=False), {"alpha": "d", "beta": "e"}),
            ],
        ),
        [4, 2, 2, 1, 1],
    ),
}


@pytest.mark.parametrize("name", COMPILED)
class TestCompilation:
    def test_sample_log_prob_entropy_kl_and_gradients_compile_to_one_graph(self, name: str) -> None:
        build, sizes = COMPILED[name]

        def sample_and_evaluate(*params: torch.Tensor) -> tuple[torch.Tensor, ...]:
            old, new = build(*(param.detach() for param in params)), build(*params)
            sample = old.sample()
            terms = new.log_prob(sample), new.entropy(), D.kl_divergence(old, new)
            return sample, old.deterministic_sample, *terms  # type: ignore[attr-defined]

        torch.compiler.reset()  # otherwise every distribution counts towards the recompile limit
        torch.manual_seed(0)
        params = [param.requires_grad_() for param in positive(*sizes)]
        results = []
        for function in (sample_and_evaluate, torch.compile(sample_and_evaluate, fullgraph=True, backend="aot_eager")):
            torch.manual_seed(1)
            outputs = function(*params)
            gradients = torch.autograd.grad(sum(term.sum() for term in outputs[2:]), params, allow_unused=True)
            results.append((outputs, [gradient for gradient in gradients if gradient is not None]))
        torch.testing.assert_close(results[1], results[0])


def test_the_effective_sample_size_of_vanishing_ratios_is_finite() -> None:
    assert ratio_metrics(torch.full((4, 1), -200.0))["ESS"] == 1.0
    assert ratio_metrics(torch.tensor([[0.0], [-200.0]]))["ESS"] == 0.5
