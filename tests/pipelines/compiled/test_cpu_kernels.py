"""Decompositions for the CPU compute the same as the operators they replace."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from torchppo.pipelines.compiled.cpu_kernels import MAX_ROWS
from torchppo.pipelines.compiled.graph import TracedFunction


class TestDecompositions:
    @pytest.mark.parametrize("num_rows", [1, MAX_ROWS, MAX_ROWS + 1])
    def test_small_product_equals_linear(self, num_rows: int) -> None:
        layer, x = nn.Linear(7, 5).double(), torch.randn(num_rows, 7, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(TracedFunction(layer)(x), layer(x), rtol=1e-12, atol=1e-12)

    def test_addmm_keeps_alpha_and_beta(self) -> None:
        bias, rows, weight = torch.randn(5), torch.randn(1, 7), torch.randn(5, 7).t()
        scaled = partial(torch.addmm, beta=0.5, alpha=2.0)
        torch.testing.assert_close(TracedFunction(scaled)(bias, rows, weight), scaled(bias, rows, weight))

    def test_tanh_is_accurate_everywhere(self) -> None:
        x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, 1e-30, -1e-6, 1e4, float("inf")])])
        with torch.no_grad():
            value = TracedFunction(torch.tanh)(x)
        torch.testing.assert_close(value.double(), x.double().tanh(), rtol=1e-6, atol=5e-7)
        assert value.abs().max() <= 1
        with torch.no_grad():
            assert TracedFunction(torch.tanh)(torch.tensor([float("nan")])).isnan().all()

    @pytest.mark.parametrize("num_channels", [3, 4])
    def test_channels_last_copy_of_bytes_is_equal(self, num_channels: int) -> None:
        image = torch.arange(2 * num_channels * 6 * 8).reshape(2, num_channels, 6, 8).to(torch.uint8)
        with torch.no_grad():
            copied = TracedFunction(lambda image: image.contiguous(memory_format=torch.channels_last))(image)
        assert copied.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(copied, image)

    @pytest.mark.parametrize("stride", [(2, 2), (1, 2), (3, 3)])
    def test_gradients_of_a_convolution_are_equal(self, stride: tuple[int, int]) -> None:
        layer = nn.Conv2d(3, 5, (3, 4), stride).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        image = torch.randn(2, 3, 9, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

        def gradients(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with torch.enable_grad():
                image = image.detach().requires_grad_()
                inputs = [image, *layer.parameters()]
                return torch.autograd.grad(layer(image).square().sum(), inputs)

        with torch.no_grad():
            from_graph = TracedFunction(gradients)(image)
        for actual, expected in zip(from_graph, gradients(image), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
