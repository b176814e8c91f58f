"""Tests of the value heads."""

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
from torchppo.modules.heads.categorical_value import CategoricalValue
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


def make_updated_head(name: str) -> ValueHead:
    """Return a float64 head with a random bias and updated statistics."""
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


def numpy_error(name: str, head: ValueHead, weight: Array, bias: Array, batch: dict[str, Array]) -> float:
    """The mean error of a batch, without value clipping."""
    outputs = batch["features"] @ weight.T + bias
    target = batch["target"]
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


@every_head
class TestEveryHead:
    @pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
    def test_returns_out_keys_in_order(self, name: str, leading: tuple[int, ...]) -> None:
        output = predicted(HEADS[name](WIDTH), torch.randn(*leading, WIDTH))
        assert list(output) == (["state_value", "value_logits"] if name in CATEGORICAL else ["state_value"])
        assert output["state_value"].shape == (*leading, 1)
        assert output["state_value"].dtype == torch.float32

    def test_rejects_targets_of_another_shape(self, name: str, batch: dict[str, Tensor]) -> None:
        head = make_updated_head(name)
        with pytest.raises(ValueError, match=r"state_value \[12, 1\] and value_target \[12\] differ in shape"):
            head.error(predicted(head, batch["features"]), batch["target"][:, 0], batch["old"], None)

    def test_starts_orthogonal_with_gain_1_and_zero_bias(self, name: str) -> None:
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

    def test_compiles_to_one_graph_with_its_gradient(self, name: str, batch: dict[str, Tensor]) -> None:
        head = make_updated_head(name)
        names, tensors = zip(*head.named_parameters(), strict=True)

        def loss(tensors: tuple[Tensor, ...], features: Tensor, target: Tensor, old: Tensor) -> Tensor:
            output: Any = torch.func.functional_call(head, dict(zip(names, tensors, strict=True)), (features,))
            outputs = (output,) if isinstance(output, Tensor) else output
            return head.error(dict(zip(head.out_keys, outputs, strict=True)), target, old, None).mean()

        point = tuple(tensor.detach() for tensor in tensors)
        torch.compiler.reset()  # otherwise every kind of head counts towards the recompile limit
        graph = torch.compile(torch.func.grad(loss), fullgraph=True, backend="aot_eager")
        loss(tensors, *batch.values()).backward()
        for tensor, gradient in zip(tensors, graph(point, *batch.values()), strict=True):
            assert tensor.grad is not None
            torch.testing.assert_close(gradient, tensor.grad, rtol=1e-9, atol=1e-12)


@every_scalar_head
class TestEveryScalarHead:
    def test_error_equals_numpy(self, name: str, batch: dict[str, Tensor]) -> None:
        head = make_updated_head(name)
        weight, bias = (parameter.detach().numpy() for parameter in head.parameters())
        error = head.error(predicted(head, batch["features"]), batch["target"], batch["old"], None)
        assert error.shape == (BATCH, 1)
        arrays = {key: value.numpy() for key, value in batch.items()}
        assert error.mean().item() == pytest.approx(numpy_error(name, head, weight, bias, arrays), rel=1e-9)

    def test_gradient_equals_finite_differences_of_numpy(self, name: str, batch: dict[str, Tensor]) -> None:
        head = make_updated_head(name)
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

    @pytest.mark.parametrize("clip_value", [0.01, 0.5, 100.0])
    def test_clipped_error_is_the_larger_of_clipped_and_unclipped(
        self, name: str, clip_value: float, batch: dict[str, Tensor]
    ) -> None:
        head = make_updated_head(name)
        value, target, old = head(batch["features"]), batch["target"], batch["old"]
        clipped = torch.from_numpy(old.numpy() + np.clip((value - old).detach().numpy(), -clip_value, clip_value))
        errors = [head.error({"state_value": v}, target, old, None) for v in (value, clipped)]
        error = head.error({"state_value": value}, target, old, clip_value)
        np.testing.assert_allclose(error.detach().numpy(), np.maximum(*(e.detach().numpy() for e in errors)))


class TestSquaredErrorValue:
    def test_error_is_squared_error(self, batch: dict[str, Tensor]) -> None:
        head, columns = make_updated_head("mse"), (batch["target"], batch["old"])
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

    def test_rejects_a_delta_that_is_not_positive(self) -> None:
        with pytest.raises(ConfigurationError, match=r"critic\.head\.delta=0\.0 must be positive"):
            HuberValue(WIDTH, delta=0.0)


class TestPopArtValue:
    @settings(max_examples=50)
    @given(seed=st.integers(0, 1000), offset=st.floats(-1e3, 1e3), scale=st.floats(1e-2, 1e3))
    def test_update_preserves_outputs(self, seed: int, offset: float, scale: float) -> None:
        head = PopArtValue(WIDTH).double()
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64)
        before = head(features)
        for _ in range(3):
            head.update(offset + scale * torch.randn(7, 9, 1, generator=generator, dtype=torch.float64))
            torch.testing.assert_close(head(features), before, rtol=1e-10, atol=1e-10)

    def test_update_preserves_outputs_in_float32(self) -> None:
        head, features = PopArtValue(WIDTH), torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(0))
        before = head(features)
        head.update(torch.tensor([[1.0], [5.0], [-2.0]]))
        torch.testing.assert_close(head(features), before, rtol=1e-5, atol=1e-5)

    def test_statistics_are_those_of_the_targets(self) -> None:
        head = PopArtValue(WIDTH).double()
        targets = 30 + 7 * torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        head.update(targets)
        assert head.mean.item() == pytest.approx(targets.numpy().mean(), rel=1e-12)
        assert head.std.item() == pytest.approx(targets.numpy().std(), rel=1e-12)

    @pytest.mark.parametrize("beta", [0.0, 0.1, 0.5])
    def test_every_rollout_scales_older_ones_by_1_minus_beta(self, beta: float) -> None:
        head = PopArtValue(WIDTH, beta).double()
        rollouts = np.random.default_rng(0).normal([[0.0], [5.0], [-20.0]], [[1.0], [3.0], [0.1]], (3, 40))
        for rollout in rollouts:
            head.update(torch.from_numpy(rollout).unsqueeze(-1))
        weights = np.repeat([(1 - beta) ** 2, 1 - beta, 1.0], 40)
        mean = np.average(rollouts.ravel(), weights=weights)
        variance = np.average((rollouts.ravel() - mean) ** 2, weights=weights)
        assert head.mean.item() == pytest.approx(mean, rel=1e-9)
        assert head.std.item() == pytest.approx(math.sqrt(variance), rel=1e-9)

    def test_constant_targets_keep_outputs_finite(self) -> None:
        head = PopArtValue(WIDTH)
        head.update(torch.full((8, 1), 3.0))
        assert head.std.item() == pytest.approx(1e-4)
        assert torch.isfinite(head(torch.randn(4, WIDTH))).all()

    def test_update_is_in_position(self) -> None:
        head = PopArtValue(WIDTH)
        positions = {key: tensor.data_ptr() for key, tensor in head.state_dict().items()}
        head.update(torch.tensor([[1.0], [5.0]]))
        assert {key: tensor.data_ptr() for key, tensor in head.state_dict().items()} == positions

    def test_statistics_include_all_ranks(self) -> None:
        head, both = PopArtValue(WIDTH).double(), PopArtValue(WIDTH).double()
        targets = torch.randn(20, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        head.update(
            targets, reduce=lambda tensor, use: use(torch.stack([tensor, tensor]))
        )  # a second rank with the same targets
        both.update(targets.repeat(2, 1))
        torch.testing.assert_close(dict(head.named_buffers()), dict(both.named_buffers()), rtol=1e-12, atol=1e-12)

    def test_state_dict_contains_the_statistics(self) -> None:
        head, restored = PopArtValue(WIDTH), PopArtValue(WIDTH)
        head.update(torch.tensor([[1.0], [5.0]]))
        restored.load_state_dict(head.state_dict())
        features = torch.randn(4, WIDTH)
        assert torch.equal(head(features), restored(features))

    def test_rejects_a_beta_out_of_range(self) -> None:
        with pytest.raises(ConfigurationError, match=r"critic\.head\.beta=1\.0 must lie within \[0, 1\)"):
            PopArtValue(WIDTH, beta=1.0)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "popart"])
def test_other_heads_have_no_statistics(name: str) -> None:
    head = HEADS[name](WIDTH)
    before = {key: tensor.clone() for key, tensor in head.state_dict().items()}
    head.update(torch.tensor([[1.0], [5.0]]))
    assert all(torch.equal(before[key], tensor) for key, tensor in head.state_dict().items())
    assert set(before) == {"layer.head.weight", "layer.head.bias"}
