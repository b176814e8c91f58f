"""Tests of the multilayer perceptron and of orthogonal initialization."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from torchppo.errors import ConfigurationError
from torchppo.modules.features.bodies import ACTIVATIONS, mlp, orthogonal_, simba

Array = NDArray[np.float64]

NUMPY_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "gelu": lambda x: x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def layers_of(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def assert_orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    """The shorter side of the weight, as a matrix, has orthogonal vectors of length `gain`."""
    matrix = layer.weight.detach().double().flatten(1).numpy()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5)


class TestMlp:
    @pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
    @pytest.mark.parametrize("batch", [(), (5,), (5, 7)])
    def test_flattens_the_observation_and_keeps_the_batch(self, shape: tuple[int, ...], batch: tuple[int, ...]) -> None:
        body = mlp(torch.Size(shape), num_cells=(8, 6))
        assert body(torch.randn(*batch, *shape)).shape == (*batch, 6)

    def test_has_one_layer_per_width(self) -> None:
        layers = layers_of(mlp(torch.Size([3]), num_cells=[8, 7, 6]))
        assert [tuple(layer.weight.shape) for layer in layers] == [(8, 3), (7, 8), (6, 7)]

    def test_can_have_a_single_layer(self) -> None:
        assert mlp(torch.Size([3]), num_cells=(5,))(torch.randn(2, 3)).shape == (2, 5)

    def test_scales_bytes_to_the_unit_interval(self) -> None:
        body, image = mlp(torch.Size([2, 3])), torch.randint(256, (5, 2, 3), dtype=torch.uint8)
        torch.testing.assert_close(body(image), body(image / 255))

    def test_all_activations_are_tested(self) -> None:
        assert set(ACTIVATIONS) == set(NUMPY_ACTIVATIONS)

    @pytest.mark.parametrize("name", NUMPY_ACTIVATIONS)
    def test_applies_the_activation_after_every_layer(self, name: str) -> None:
        body = mlp(torch.Size([3]), num_cells=(4, 5), activation=name).double()
        x = np.random.default_rng(0).normal(size=(6, 3))
        expected = x
        for layer in layers_of(body):
            expected = NUMPY_ACTIVATIONS[name](expected @ layer.weight.detach().numpy().T)
        np.testing.assert_allclose(body(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-9, atol=1e-12)

    def test_applies_layer_norm_before_every_activation(self) -> None:
        body = mlp(torch.Size([3]), num_cells=(16, 32), layer_norm=True).double()
        x = np.random.default_rng(0).normal(size=(6, 3))
        for layer in layers_of(body):
            x = x @ layer.weight.detach().numpy().T
            x = np.tanh((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5))
        y = body(torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3))))
        np.testing.assert_allclose(y.detach().numpy(), x, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("shape", [(3,), (100,)])
    def test_layers_start_orthogonal_with_gain_sqrt_2_and_zero_bias(self, shape: tuple[int, ...]) -> None:
        for layer in layers_of(mlp(torch.Size(shape))):
            assert_orthogonal(layer, math.sqrt(2))
            assert layer.bias is not None
            assert not layer.bias.any()

    def test_rejects_an_unknown_activation(self) -> None:
        with pytest.raises(ConfigurationError, match=r"activation='swish'.*tanh, relu, elu, gelu, silu"):
            mlp(torch.Size([3]), activation="swish")

    @pytest.mark.parametrize("num_cells", [[], [0], [64, -3], ["a"], [2.5]])
    def test_rejects_invalid_widths(self, num_cells: Any) -> None:
        with pytest.raises(ConfigurationError, match=rf"num_cells={re.escape(repr(num_cells))} .*at least one"):
            mlp(torch.Size([3]), num_cells=num_cells)


def test_orthogonal_uses_the_gain_and_accepts_layers_without_bias() -> None:
    layer = nn.Linear(5, 3, bias=False)
    assert orthogonal_(layer, gain=0.01) is layer
    assert_orthogonal(layer, 0.01)


class TestSimba:
    def test_equals_numpy(self) -> None:
        torch.manual_seed(0)
        body = simba(torch.Size([2, 3]), width=4, num_blocks=2).double()
        observation = np.random.default_rng(0).normal(size=(5, 2, 3))

        def norm(x: Array) -> Array:
            return np.asarray((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5))

        embedding, *layers = (layer.weight.detach().numpy() for layer in layers_of(body))
        x = observation.reshape(5, 6) @ embedding.T
        for first, second in zip(layers[::2], layers[1::2], strict=True):
            x = x + np.maximum(norm(x) @ first.T, 0) @ second.T
        np.testing.assert_allclose(body(torch.from_numpy(observation)).detach().numpy(), norm(x), rtol=1e-9, atol=1e-12)

    def test_hidden_layers_have_4_times_the_width(self) -> None:
        shapes = [tuple(layer.weight.shape) for layer in layers_of(simba(torch.Size([3]), width=8, num_blocks=1))]
        assert shapes == [(8, 3), (32, 8), (8, 32)]

    @pytest.mark.parametrize("options", [{"width": 0}, {"num_blocks": 0}])
    def test_rejects_sizes_below_1(self, options: dict[str, int]) -> None:
        with pytest.raises(ConfigurationError, match=rf"policy\.body\.{next(iter(options))}=0 must be at least 1"):
            simba(torch.Size([3]), **options)
