"""Value heads: errors, gradients and statistics against NumPy in float64 and numbers worked out by hand."""

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
from torchppo.modules.heads.categorical_value import CategoricalValue, symmetric_exp, symmetric_log
from torchppo.modules.heads.value_heads import HuberValue, PopArtValue, SquaredErrorValue, ValueHead, squared_error

Array = NDArray[np.float64]
Make = Callable[[int], ValueHead]

WIDTH, BATCH = 5, 12
HEADS: dict[str, Make] = {
    "mse": SquaredErrorValue,
    "huber": partial(HuberValue, delta=0.7),
    "popart": PopArtValue,
    "hl_gauss": partial(CategoricalValue, num_bins=21, v_min=-3.0, v_max=5.0),
    "two_hot": partial(CategoricalValue, num_bins=21, v_min=-3.0, v_max=5.0, sigma_ratio=0.0),
    "two_hot symlog": partial(CategoricalValue, num_bins=21, v_min=-30.0, v_max=500.0, sigma_ratio=0.0, symlog=True),
}
CATEGORICAL = [name for name, make in HEADS.items() if isinstance(make(1), CategoricalValue)]
SCALAR = [name for name in HEADS if name not in CATEGORICAL]
every_head = pytest.mark.parametrize("name", HEADS)
every_scalar_head = pytest.mark.parametrize("name", SCALAR)
every_categorical_head = pytest.mark.parametrize("name", CATEGORICAL)


def made(name: str) -> ValueHead:
    """A head in float64 with a bias, and with statistics where it keeps any."""
    torch.manual_seed(0)
    head = HEADS[name](WIDTH).double()
    _, bias = head.parameters()
    torch.nn.init.normal_(bias)
    head.update(3.0 + 2.0 * torch.randn(50, 1, dtype=torch.float64))
    return head


def predicted(head: ValueHead, features: Tensor) -> dict[str, Tensor]:
    output = head(features)
    return dict(zip(head.out_keys, (output,) if isinstance(output, Tensor) else output, strict=True))


def column(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(-1)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Features, targets on both sides of every range, and old values."""
    generator = torch.Generator().manual_seed(1)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    return {"features": normal(BATCH, WIDTH), "target": 6 * normal(BATCH, 1), "old": normal(BATCH, 1)}


# --- the same in NumPy, bin by bin ------------------------------------------------------------------------------


def cdf(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def ends_of(name: str) -> tuple[float, float]:
    """The range of a categorical head of `HEADS`, in the bins' own scale."""
    return (-math.log1p(30), math.log1p(500)) if "symlog" in name else (-3.0, 5.0)


def numpy_place(name: str, target: float) -> float:
    """Where a target lies, counted in bins from the centre of the first: 3 bins = 4 sigma lie beyond either end."""
    if "symlog" in name:  # in the units of the target between the two centres
        centres = numpy_centres(name)
        in_units = (np.sign(centres) * np.expm1(np.abs(centres))).astype(np.float32)  # as they are kept
        return float(np.interp(target, in_units, np.arange(21)))
    y = target
    low, high = ends_of(name)
    beyond = 0 if "two_hot" in name else 3
    return beyond + (20 - 2 * beyond) * (min(max(y, low), high) - low) / (high - low)


def numpy_centres(name: str) -> Array:
    """The centres of the 21 bins, in the bins' own scale."""
    low, high = ends_of(name)
    beyond = 0 if "two_hot" in name else 3
    width = (high - low) / (20 - 2 * beyond)
    return low + width * (np.arange(21) - beyond)


def numpy_histogram(name: str, target: float) -> Array:
    """The target's probabilities, bin by bin."""
    place = numpy_place(name, target)
    if "two_hot" in name:
        return np.array([max(0.0, 1 - abs(place - i)) for i in range(21)])
    mass = np.array([cdf((i + 0.5 - place) / 0.75) - cdf((i - 0.5 - place) / 0.75) for i in range(21)])
    return mass / mass.sum()


def numpy_error(name: str, head: ValueHead, weight: Array, bias: Array, batch: dict[str, Array]) -> float:
    """The mean error of a batch, without value clipping."""
    outputs = batch["features"] @ weight.T + bias
    target = batch["target"]
    if isinstance(head, CategoricalValue):
        log_probs = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
        wanted = np.stack([numpy_histogram(name, y) for y in target[:, 0]])
        return float(-(wanted * log_probs).sum(-1).mean())
    if isinstance(head, PopArtValue):
        return float(np.square(outputs - (target - head.mean.item()) / head.std.item()).mean())
    distance = np.abs(outputs - target)
    if isinstance(head, HuberValue):
        return float(np.where(distance <= 0.7, distance**2 / 2, 0.7 * (distance - 0.35)).mean())
    return float(np.square(distance).mean())


def numeric_gradient(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    gradient = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        shift = np.zeros_like(at)
        shift[index] = step
        gradient[index] = (function(at + shift) - function(at - shift)) / (2 * step)
    return gradient


# ----------------------------------------------------------------------------------------------------------------


@every_head
class TestEveryHead:
    @pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
    def test_returns_its_out_keys_in_order_a_value_first(self, name: str, leading: tuple[int, ...]) -> None:
        output = predicted(HEADS[name](WIDTH), torch.randn(*leading, WIDTH))
        assert list(output) == (["state_value", "value_logits"] if name in CATEGORICAL else ["state_value"])
        assert output["state_value"].shape == (*leading, 1)
        assert output["state_value"].dtype == torch.float32

    def test_its_error_is_the_one_of_numpy(self, name: str, batch: dict[str, Tensor]) -> None:
        head = made(name)
        weight, bias = (parameter.detach().numpy() for parameter in head.parameters())
        error = head.error(predicted(head, batch["features"]), batch["target"], batch["old"], None)
        assert error.shape == (BATCH, 1)
        arrays = {key: value.numpy() for key, value in batch.items()}
        assert error.mean().item() == pytest.approx(numpy_error(name, head, weight, bias, arrays), rel=1e-9)

    def test_its_gradient_is_the_numeric_one_of_numpy(self, name: str, batch: dict[str, Tensor]) -> None:
        head = made(name)
        head.error(predicted(head, batch["features"]), batch["target"], batch["old"], None).mean().backward()
        weight, bias = (parameter.detach().numpy() for parameter in head.parameters())
        arrays = {key: value.numpy() for key, value in batch.items()}
        expected = [
            numeric_gradient(lambda w: numpy_error(name, head, w, bias, arrays), weight),
            numeric_gradient(lambda b: numpy_error(name, head, weight, b, arrays), bias),
        ]
        for parameter, gradient in zip(head.parameters(), expected, strict=True):
            assert parameter.grad is not None
            np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-6, atol=1e-8)

    def test_refuses_targets_of_another_shape(self, name: str, batch: dict[str, Tensor]) -> None:
        head = made(name)
        with pytest.raises(ValueError, match=r"state_value \[12, 1\] and value_target \[12\] differ in shape"):
            head.error(predicted(head, batch["features"]), batch["target"][:, 0], batch["old"], None)

    def test_starts_orthogonal_with_gain_one_and_no_bias(self, name: str) -> None:
        weight, bias = HEADS[name](40).parameters()
        gram = (weight @ weight.T).detach().double().numpy()
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)
        assert not bias.any()

    def test_computes_in_full_precision_under_autocast(self, name: str) -> None:
        head = HEADS[name](WIDTH)
        features = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(2)).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            cast = predicted(head, features)
        exact = predicted(head, features.float())
        assert all(torch.equal(cast[key], exact[key]) for key in head.out_keys)

    def test_is_one_graph_with_its_gradient(self, name: str, batch: dict[str, Tensor]) -> None:
        head = made(name)
        names, tensors = zip(*head.named_parameters(), strict=True)

        def loss(tensors: tuple[Tensor, ...], features: Tensor, target: Tensor, old: Tensor) -> Tensor:
            output: Any = torch.func.functional_call(head, dict(zip(names, tensors, strict=True)), (features,))
            outputs = (output,) if isinstance(output, Tensor) else output
            return head.error(dict(zip(head.out_keys, outputs, strict=True)), target, old, None).mean()

        point = tuple(tensor.detach() for tensor in tensors)
        torch.compiler.reset()  # every kind of head would count as one more version of the same code
        graph = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
        loss(tensors, *batch.values()).backward()
        for tensor, gradient in zip(tensors, graph(point, *batch.values()), strict=True):
            assert tensor.grad is not None
            torch.testing.assert_close(gradient, tensor.grad, rtol=1e-9, atol=1e-12)


@every_scalar_head
class TestValueClipping:
    @pytest.mark.parametrize("clip_value", [0.01, 0.5, 100.0])
    def test_takes_the_larger_error_of_the_clipped_and_the_free_value(
        self, name: str, clip_value: float, batch: dict[str, Tensor]
    ) -> None:
        head = made(name)
        value, target, old = head(batch["features"]), batch["target"], batch["old"]
        clipped = torch.from_numpy(old.numpy() + np.clip((value - old).detach().numpy(), -clip_value, clip_value))
        errors = [head.error({"state_value": v}, target, old, None) for v in (value, clipped)]
        error = head.error({"state_value": value}, target, old, clip_value)
        np.testing.assert_allclose(error.detach().numpy(), np.maximum(*(e.detach().numpy() for e in errors)))


class TestSquaredErrorValue:
    def test_its_error_is_squared_error(self, batch: dict[str, Tensor]) -> None:
        head, columns = made("mse"), (batch["target"], batch["old"])
        value = head(batch["features"])
        assert torch.equal(head.error({"state_value": value}, *columns, 0.5), squared_error(value, *columns, 0.5))


class TestHuberValue:
    @pytest.mark.parametrize(
        ("distance", "error", "slope"),
        [(0.0, 0.0, 0.0), (1.0, 0.5, 1.0), (2.0, 2.0, 2.0), (3.0, 4.0, 2.0), (10.0, 18.0, 2.0)],
    )
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_is_quadratic_up_to_delta_and_linear_beyond(
        self, distance: float, error: float, slope: float, sign: float
    ) -> None:
        value = column(5.0 + sign * distance).requires_grad_()
        output = HuberValue(WIDTH, delta=2.0).error({"state_value": value}, column(5.0), column(0.0), None)
        output.sum().backward()
        assert output.item() == pytest.approx(error, abs=1e-12)
        assert value.grad is not None
        assert value.grad.item() == pytest.approx(sign * slope, abs=1e-12)

    def test_a_delta_that_is_not_positive_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"critic\.head\.delta=0\.0 must be positive"):
            HuberValue(WIDTH, delta=0.0)


@every_categorical_head
class TestCategoricalValue:
    @settings(max_examples=50)
    @given(target=st.floats(-1000, 1000))
    def test_a_target_is_a_distribution_whose_mean_is_the_target_clamped(self, name: str, target: float) -> None:
        head = HEADS[name](WIDTH)
        assert isinstance(head, CategoricalValue)
        probabilities = head.histogram(column(target))[0].numpy()
        assert (probabilities >= 0).all()
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        # In bins: of a Gaussian that is cut into them, and of centres in float32.
        accuracy = {"hl_gauss": 2e-5, "two_hot": 1e-10, "two_hot symlog": 1e-6}[name]
        assert probabilities @ np.arange(21) == pytest.approx(numpy_place(name, target), abs=accuracy)

    def test_a_target_is_the_histogram_of_numpy(self, name: str) -> None:
        head = HEADS[name](WIDTH)
        assert isinstance(head, CategoricalValue)
        for target in (-100.0, -3.0, -2.9, -0.4, 0.0, 1.234, 4.999, 5.0, 700.0):
            expected = numpy_histogram(name, target)
            np.testing.assert_allclose(head.histogram(column(target))[0].numpy(), expected, atol=1e-7)

    def test_float32_is_as_good(self, name: str) -> None:
        head = HEADS[name](WIDTH)
        assert isinstance(head, CategoricalValue)
        targets = torch.linspace(-1000, 1000, 4001).unsqueeze(-1)
        probabilities = head.histogram(targets)
        assert probabilities.dtype == torch.float32
        np.testing.assert_allclose(probabilities.sum(-1).numpy(), 1, atol=1e-6)
        np.testing.assert_allclose(probabilities, head.double().histogram(targets.double()), atol=2e-5)

    def test_a_value_is_the_mean_over_the_centres_of_the_bins(self, name: str, batch: dict[str, Tensor]) -> None:
        head = made(name)
        assert isinstance(head, CategoricalValue)
        value, logits = head(batch["features"])
        odds = np.exp(logits.detach().numpy())
        centres = numpy_centres(name)
        expected = odds @ (np.sign(centres) * np.expm1(np.abs(centres)) if head.symlog else centres) / odds.sum(-1)
        np.testing.assert_allclose(value[:, 0].detach().numpy(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("clamped", [False, True])
    def test_what_is_learnt_exactly_is_the_value(self, name: str, clamped: bool) -> None:
        head = HEADS[name](WIDTH).double()
        assert isinstance(head, CategoricalValue)
        target = {False: 2.5, True: 1e4}[clamped]
        limit = 500.0 if head.symlog else 5.0
        weight, bias = head.parameters()
        with torch.no_grad():
            weight.zero_()
            bias.copy_(head.histogram(column(target))[0].log().clamp(min=-60))
        value = head(torch.zeros(WIDTH, dtype=torch.float64))[0]
        assert value.item() == pytest.approx(min(target, limit), rel=1e-4)

    def test_the_value_of_returns_that_vary_is_their_mean(self, name: str) -> None:
        head = HEADS[name](WIDTH).double()
        assert isinstance(head, CategoricalValue)
        returns = [-1.5, 0.0, 400.0] if head.symlog else [-1.5, 0.0, 4.0]
        weight, bias = head.parameters()
        with torch.no_grad():
            weight.zero_()
            bias.copy_(head.histogram(column(*returns)).mean(0).log().clamp(min=-60))
        value = head(torch.zeros(WIDTH, dtype=torch.float64))[0]
        assert value.item() == pytest.approx(np.mean(returns), rel=1e-4)

    def test_the_error_is_least_for_the_target_itself(self, name: str) -> None:
        head = made(name)
        assert isinstance(head, CategoricalValue)
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
    def test_a_range_or_a_number_that_cannot_work_is_named(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            CategoricalValue(WIDTH, **options)

    @pytest.mark.parametrize(("num_bins", "sigma_ratio"), [(8, 0.75), (2, 0.0)])
    def test_the_least_number_works(self, num_bins: int, sigma_ratio: float) -> None:
        head = CategoricalValue(WIDTH, num_bins, -1.0, 2.0, sigma_ratio)
        assert head(torch.zeros(WIDTH))[1].shape == (num_bins,)
        assert (head.histogram(torch.tensor([0.5])) @ head.centers).item() == pytest.approx(0.5, abs=1e-4)

    def test_two_hot_bins_begin_and_end_at_the_range(self) -> None:
        head = CategoricalValue(WIDTH, num_bins=5, v_min=-2.0, v_max=2.0, sigma_ratio=0.0)
        assert head.centers.tolist() == [-2.0, -1.0, 0.0, 1.0, 2.0]
        assert head.histogram(torch.tensor([[0.25], [-9.0]])).tolist() == [[0, 0, 0.75, 0.25, 0], [1, 0, 0, 0, 0]]

    @settings(max_examples=50)
    @given(x=st.floats(-1e6, 1e6))
    def test_symmetric_exp_undoes_symmetric_log(self, x: float) -> None:
        compressed = symmetric_log(column(x))
        assert compressed.item() == pytest.approx(math.copysign(math.log1p(abs(x)), x), rel=1e-12)
        assert symmetric_exp(compressed).item() == pytest.approx(x, rel=1e-9)


class TestPopArtValue:
    @settings(max_examples=50)
    @given(seed=st.integers(0, 1000), offset=st.floats(-1e3, 1e3), scale=st.floats(1e-2, 1e3))
    def test_an_update_changes_no_output(self, seed: int, offset: float, scale: float) -> None:
        head = PopArtValue(WIDTH).double()
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64)
        before = head(features)
        for _ in range(3):
            head.update(offset + scale * torch.randn(7, 9, 1, generator=generator, dtype=torch.float64))
            torch.testing.assert_close(head(features), before, rtol=1e-10, atol=1e-10)

    def test_nor_does_one_in_float32(self) -> None:
        head, features = PopArtValue(WIDTH), torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
        before = head(features)
        head.update(torch.tensor([[1.0], [5.0], [-2.0]]))
        torch.testing.assert_close(head(features), before, rtol=1e-5, atol=1e-5)

    def test_an_update_gives_the_targets_mean_zero_and_variance_one(self) -> None:
        head = PopArtValue(WIDTH).double()
        targets = 30 + 7 * torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        head.update(targets)
        assert head.mean.item() == pytest.approx(targets.numpy().mean(), rel=1e-12)
        assert head.std.item() == pytest.approx(targets.numpy().std(), rel=1e-12)

    @pytest.mark.parametrize("beta", [0.0, 0.1, 0.5])
    def test_older_rollouts_count_less_by_one_minus_beta_each(self, beta: float) -> None:
        head = PopArtValue(WIDTH, beta).double()
        rollouts = np.random.default_rng(0).normal([[0.0], [5.0], [-20.0]], [[1.0], [3.0], [0.1]], (3, 40))
        for rollout in rollouts:
            head.update(torch.from_numpy(rollout).unsqueeze(-1))
        weights = np.repeat([(1 - beta) ** 2, 1 - beta, 1.0], 40)
        mean = np.average(rollouts.ravel(), weights=weights)
        variance = np.average((rollouts.ravel() - mean) ** 2, weights=weights)
        assert head.mean.item() == pytest.approx(mean, rel=1e-9)
        assert head.std.item() == pytest.approx(math.sqrt(variance), rel=1e-9)

    def test_targets_that_never_change_leave_it_finite(self) -> None:
        head = PopArtValue(WIDTH)
        head.update(torch.full((8, 1), 3.0))
        assert head.std.item() == pytest.approx(1e-4)
        assert torch.isfinite(head(torch.randn(4, WIDTH))).all()

    def test_everything_stays_where_it_is(self) -> None:
        head = PopArtValue(WIDTH)
        places = {key: tensor.data_ptr() for key, tensor in head.state_dict().items()}
        head.update(torch.tensor([[1.0], [5.0]]))
        assert {key: tensor.data_ptr() for key, tensor in head.state_dict().items()} == places

    def test_targets_of_every_rank_count(self) -> None:
        head, both = PopArtValue(WIDTH).double(), PopArtValue(WIDTH).double()
        targets = torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        head.update(targets, reduce=lambda tensor: 2 * tensor)  # a second rank with the same targets
        both.update(targets.repeat(2, 1))
        torch.testing.assert_close(dict(head.named_buffers()), dict(both.named_buffers()), rtol=1e-12, atol=1e-12)

    def test_a_state_dict_carries_the_statistics(self) -> None:
        head, restored = PopArtValue(WIDTH), PopArtValue(WIDTH)
        head.update(torch.tensor([[1.0], [5.0]]))
        restored.load_state_dict(head.state_dict())
        features = torch.randn(4, WIDTH)
        assert torch.equal(head(features), restored(features))

    def test_a_beta_out_of_range_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"critic\.head\.beta=1\.0 must lie within \[0, 1\)"):
            PopArtValue(WIDTH, beta=1.0)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "popart"])
def test_the_others_keep_nothing_of_a_rollout(name: str) -> None:
    head = HEADS[name](WIDTH)
    before = {key: tensor.clone() for key, tensor in head.state_dict().items()}
    head.update(torch.tensor([[1.0], [5.0]]))
    assert all(torch.equal(before[key], tensor) for key, tensor in head.state_dict().items())
    assert set(before) == {"layer.head.weight", "layer.head.bias"}
