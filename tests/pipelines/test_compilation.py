"""One graph computes what its function computes, wherever its tensors have moved to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchppo.pipelines.compilation import FEW_ROWS, OneGraph

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def closing_over(layer: nn.Linear) -> OneGraph:
    return OneGraph(lambda data, rows: [layer(data["x"][rows]).tanh(), data["x"][rows].sum()])


class TestOneGraph:
    def test_equals_its_function_for_every_argument(self) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(3, 4)
        graph = closing_over(layer)
        for seed in range(4):
            data = {"unused": torch.zeros(1), "x": torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))}
            rows = torch.randperm(20)[:8]
            with torch.no_grad():
                out, total = graph(data, rows)
                torch.testing.assert_close(out, layer(data["x"][rows]).tanh())
                torch.testing.assert_close(total, data["x"][rows].sum())

    def test_sees_parameters_change_in_place_and_move_to_other_memory(self) -> None:
        layer = nn.Linear(3, 4)
        graph = OneGraph(layer)
        x = torch.randn(20, 3)
        with torch.no_grad():
            graph(x)
            layer.weight.mul_(2.0)
            torch.testing.assert_close(graph(x), layer(x))
            layer.weight.data = torch.randn(4, 3)
            torch.testing.assert_close(graph(x), layer(x))

    @pytest.mark.parametrize("num_rows", [1, FEW_ROWS, FEW_ROWS + 1])
    def test_small_products_are_products(self, num_rows: int) -> None:
        layer, x = nn.Linear(7, 5).double(), torch.randn(num_rows, 7, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(OneGraph(layer)(x), layer(x), rtol=1e-12, atol=1e-12)

    def test_a_tanh_is_near_the_true_one_everywhere(self) -> None:
        x = torch.cat([torch.linspace(-12, 12, 100_001), torch.tensor([0.0, 1e-30, -1e-6, 1e4, float("inf")])])
        with torch.no_grad():
            value = OneGraph(torch.tanh)(x)
        torch.testing.assert_close(value.double(), x.double().tanh(), rtol=1e-6, atol=5e-7)
        assert value.abs().max() <= 1
        with torch.no_grad():
            assert OneGraph(torch.tanh)(torch.tensor([float("nan")])).isnan().all(), "a bad number is not hidden"

    def test_draws_the_random_numbers_of_its_function(self) -> None:
        def sample(mean: Tensor) -> Tensor:
            return torch.normal(mean, 1.0) + torch.rand(mean.shape)

        graph, mean = OneGraph(sample), torch.zeros(5)
        with torch.no_grad():
            graph(mean)
            torch.manual_seed(1)
            drawn = [graph(mean) for _ in range(3)]
            torch.manual_seed(1)
            for one in drawn:
                torch.testing.assert_close(one, sample(mean))

    def test_two_graphs_of_one_function_are_apart(self) -> None:
        layers = [nn.Linear(2, width) for width in range(1, 11)]
        x = torch.randn(4, 2)
        with torch.no_grad():
            for layer in layers:
                torch.testing.assert_close(OneGraph(layer)(x), layer(x))

    def test_refuses_a_result_that_is_no_new_tensor(self) -> None:
        with torch.no_grad(), pytest.raises(RuntimeError, match="not a new tensor"):
            OneGraph(lambda x: [x + 1, x])(torch.zeros(3))

    @CUDA
    def test_a_recording_on_cuda_equals_its_function(self) -> None:
        layer = nn.Linear(3, 4).cuda()
        graph = closing_over(layer)
        for _ in range(4):
            data, rows = {"x": torch.randn(20, 3, device="cuda")}, torch.randperm(20, device="cuda")[:8]
            with torch.no_grad():
                torch.testing.assert_close(graph(data, rows)[0], layer(data["x"][rows]).tanh())
                layer.weight.mul_(1.1)
