"""A traced or compiled function computes the same as the function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchppo.errors import GraphError
from torchppo.pipelines.compiled.graph import TracedFunction


@pytest.mark.parametrize("compile_", [True, False], ids=["compiled", "traced"])
class TestTracedFunction:
    def test_graph_equals_its_function_for_other_arguments(self, compile_: bool) -> None:
        torch.manual_seed(0)
        layer = nn.Linear(3, 4)
        graph = TracedFunction(
            lambda data, rows: [layer(data["x"][rows]).tanh(), data["x"][rows].sum()], compile=compile_
        )
        for seed in range(4):
            data = {"unused": torch.zeros(1), "x": torch.randn(20, 3, generator=torch.Generator().manual_seed(seed))}
            rows = torch.randperm(20)[:8]
            with torch.no_grad():
                out, total = graph(data, rows)
                torch.testing.assert_close(out, layer(data["x"][rows]).tanh())
                torch.testing.assert_close(total, data["x"][rows].sum())

    def test_parameters_may_change_in_place_or_move_to_other_memory(self, compile_: bool) -> None:
        layer = nn.Linear(3, 4)
        graph = TracedFunction(layer, compile=compile_)
        x = torch.randn(20, 3)
        with torch.no_grad():
            graph(x)
            layer.weight.mul_(2.0)
            torch.testing.assert_close(graph(x), layer(x))
            layer.weight.data = torch.randn(4, 3)
            torch.testing.assert_close(graph(x), layer(x))

    def test_refresh_adopts_another_precision(self, compile_: bool) -> None:
        layer, x = nn.Linear(3, 4), torch.randn(20, 3)
        graph = TracedFunction(layer, compile=compile_, keep_casts=True)
        for enabled in (False, True, False):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                graph.refresh()
                graph(x)
                out, expected = graph(x), layer(x)
            assert out.dtype == expected.dtype
            torch.testing.assert_close(out, expected)
            assert torch.equal(out, expected) or compile_

    def test_closed_over_views_are_supported(self, compile_: bool) -> None:
        views = torch.arange(12.0).reshape(-1, 1), torch.randn(5, 3)[1:4, ::2], torch.randn(2, 6).t()

        def use_views(*xs: Tensor) -> list[Tensor]:
            return [x * view + 1 for x, view in zip(xs, views, strict=True)]

        graph, xs = TracedFunction(use_views, compile=compile_), [torch.randn(view.shape) for view in views]
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close([*graph(*xs)], use_views(*xs))
                for view in views:
                    view.add_(1.0)

    def test_closed_over_tensors_change_once_per_call(self, compile_: bool) -> None:
        count, total = torch.zeros(2), torch.zeros(3)

        def add(x: Tensor) -> Tensor:
            count.add_(1.0)
            total[:2].add_(x * count)
            return total.sum() + count[0]

        graph = TracedFunction(add, compile=compile_)
        with torch.no_grad():
            values = [graph(torch.ones(2)).item() for _ in range(3)]
        assert count.tolist() == [3.0, 3.0]
        assert total.tolist() == [6.0, 6.0, 0.0]
        assert values == [3.0, 8.0, 15.0]

    def test_equal_arguments_of_the_first_call_may_differ_later(self, compile_: bool) -> None:
        graph, x, y = TracedFunction(lambda x, y: x - 2 * y, compile=compile_), torch.ones(2), torch.zeros(2)
        with torch.no_grad():
            assert graph(x, x).tolist() == [-1.0, -1.0]
            assert graph(x, y).tolist() == [1.0, 1.0]
            assert graph(y, x).tolist() == [-2.0, -2.0]

    def test_random_numbers_equal_those_of_the_function(self, compile_: bool) -> None:
        def sample(mean: Tensor) -> Tensor:
            return torch.normal(mean, 1.0) + torch.rand(mean.shape)

        graph, mean = TracedFunction(sample, compile=compile_), torch.zeros(5)
        with torch.no_grad():
            graph(mean)
            torch.manual_seed(1)
            drawn = [graph(mean) for _ in range(3)]
            torch.manual_seed(1)
            for value in drawn:
                torch.testing.assert_close(value, sample(mean))

    def test_graphs_of_modules_of_one_class_are_independent(self, compile_: bool) -> None:
        layers = [nn.Linear(2, width) for width in range(1, 3 if compile_ else 11)]  # compilation takes seconds
        x = torch.randn(4, 2)
        with torch.no_grad():
            for layer in layers:
                torch.testing.assert_close(TracedFunction(layer, compile=compile_)(x), layer(x))

    def test_results_are_new_tensors(self, compile_: bool) -> None:
        closed_over = torch.ones(3)
        graph = TracedFunction(lambda x: [x + 1, x, closed_over], compile=compile_)
        with torch.no_grad():
            for start in (0.0, 5.0):
                x = torch.full((3,), start)
                closed_over.fill_(start - 1)
                results = graph(x)
                assert [result.tolist() for result in results] == [[start + 1] * 3, [start] * 3, [start - 1] * 3]
                assert not {result.data_ptr() for result in results} & {x.data_ptr(), closed_over.data_ptr()}

    @pytest.mark.parametrize(
        "function",
        [lambda x: x * 2 if x.sum() > 0 else x * 3, lambda x: x[x > 0] + 1, lambda x: torch.tensor(x.tolist())],
    )
    def test_function_of_tensor_values_is_refused(self, function: Any, compile_: bool) -> None:
        with torch.no_grad(), pytest.raises(GraphError, match="compile=false"):
            TracedFunction(function, compile=compile_)(torch.ones(3))

    def test_error_of_the_function_gets_a_note(self, compile_: bool) -> None:
        with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be multiplied") as raised:
            TracedFunction(nn.Linear(2, 2), compile=compile_)(torch.ones(3, 3))
        assert "compile=false" in raised.value.__notes__[0]


def test_traced_graph_is_bitwise_equal_to_its_function() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4), nn.LogSoftmax(-1))
    graph = TracedFunction(layers, compile=False)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(5, 3)
            assert torch.equal(graph(x), layers(x))


def test_graph_casts_where_its_function_casts() -> None:
    layer, x = nn.Linear(3, 4), torch.randn(5, 3)

    def half_cast(x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", enabled=False):
            uncast = layer(x)
        return [layer(x), uncast]

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = half_cast(x)
        for compile_ in (False, True):
            graph = TracedFunction(half_cast, compile=compile_)
            for _ in range(2):
                for actual, value in zip(graph(x), expected, strict=True):
                    torch.testing.assert_close(actual, value)


class Counting(nn.Module):
    """Changes buffers at every call, one of them through a view, and reads casts of them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.zeros(2, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        result = x * self.count.float() + self.table.float().sum(0)
        self.count += 1
        self.table[1].add_(2.0)
        return result


@pytest.mark.parametrize("compile_", [False, True])
def test_cast_of_a_tensor_that_the_graph_changes_is_not_kept(compile_: bool) -> None:
    x = torch.randn(5, 3)
    module, expected = Counting(), Counting()
    graph = TracedFunction(module, compile=compile_, keep_casts=True)
    for _ in range(3):
        torch.testing.assert_close(graph(x), expected(x))


@pytest.mark.parametrize("compile_", [False, True])
def test_refresh_recomputes_kept_casts(compile_: bool) -> None:
    layer, x = nn.Linear(3, 4).requires_grad_(requires_grad=False), torch.randn(5, 3)
    graph = TracedFunction(layer, compile=compile_, keep_casts=True)
    with torch.autocast("cpu", torch.bfloat16):
        before = layer(x)
        assert torch.equal(graph(x), before)
        layer.weight.mul_(2.0)
        layer.bias.mul_(2.0)
        assert torch.equal(graph(x), before)
        graph.refresh()
        assert torch.equal(graph(x), layer(x))
        assert not torch.equal(layer(x), before)
