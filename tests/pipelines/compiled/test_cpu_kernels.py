"""Decompositions for the CPU compute the same as the operators they replace."""

from __future__ import annotations

import torch
from torch import nn

from torchppo.pipelines.compiled.cpu_kernels import MAX_ROWS
from torchppo.pipelines.compiled.graph import TracedFunction


class TestDecompositions:
    """Each test has one graph, because every graph takes two seconds to compile."""

    def test_products_equal_those_of_linear(self) -> None:
        layer = nn.Linear(7, 5).double()
        inputs = [torch.randn(rows, 7, dtype=torch.float64) for rows in (1, MAX_ROWS, MAX_ROWS + 1)]
        bias, row, weight = torch.randn(5), torch.randn(1, 7), torch.randn(5, 7).t()
        rows, gradient = torch.randn(40, 7), torch.randn(40, 32)

        def products(*inputs: torch.Tensor) -> list[torch.Tensor]:
            scaled = torch.addmm(bias, row, weight, beta=0.5, alpha=2.0)
            return [*map(layer, inputs), torch.addmm(bias, rows, weight), gradient.t() @ rows, scaled]

        with torch.no_grad():
            *small, biased, of_weight, scaled = TracedFunction(products)(*inputs)
            assert torch.equal(biased, torch.addmm(bias, rows, weight))
            assert of_weight.is_contiguous()
            torch.testing.assert_close(of_weight.double(), gradient.double().t() @ rows.double(), rtol=1e-5, atol=1e-5)
            for found, x in zip(small, inputs, strict=True):
                torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(scaled, 0.5 * bias + 2.0 * (row @ weight))

    def test_tanh_is_accurate_everywhere(self) -> None:
        x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, 1e-30, -1e-6, 1e4, float("inf")])])
        with torch.no_grad():
            *values, last = TracedFunction(torch.tanh)(torch.cat([x, torch.tensor([float("nan")])])).split([len(x), 1])
        torch.testing.assert_close(values[0].double(), x.double().tanh(), rtol=1e-6, atol=5e-7)
        assert values[0].abs().max() <= 1
        assert last.isnan().all()

    def test_channels_last_copies_of_bytes_are_equal(self) -> None:
        images = [torch.arange(2 * n * 6 * 8).reshape(2, n, 6, 8).to(torch.uint8) for n in (3, 4)]

        def copy(*images: torch.Tensor) -> list[torch.Tensor]:
            return [image.contiguous(memory_format=torch.channels_last) for image in images]

        with torch.no_grad():
            copies = TracedFunction(copy)(*images)
        for copied, image in zip(copies, images, strict=True):
            assert copied.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(copied, image)

    def test_gradients_of_convolutions_are_equal(self) -> None:
        layers = [nn.Conv2d(3, 5, (3, 4), stride).double() for stride in ((2, 2), (1, 2), (3, 3))]
        for layer in layers:
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        image = torch.randn(2, 3, 9, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)

        def gradients(image: torch.Tensor) -> list[torch.Tensor]:
            with torch.enable_grad():
                image = image.detach().requires_grad_()
                found = [torch.autograd.grad(one(image).square().sum(), [image, *one.parameters()]) for one in layers]
                return [gradient for one in found for gradient in one]

        with torch.no_grad():
            from_graph = TracedFunction(gradients)(image)
        for actual, expected in zip(from_graph, gradients(image), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
