"""One graph computes what its function computes, wherever its tensors have moved to, compiled or as it was traced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torchppo.errors import ConfigurationError
from torchppo.pipelines.compiled.graph import TracedFunction


@pytest.mark.parametrize("compile_", [True, False], ids=["compiled", "traced"])
class TestOneGraph:
    def test_equals_its_function_for_every_argument(self, compile_: bool) -> None:
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

    def test_sees_parameters_change_in_place_and_move_to_other_memory(self, compile_: bool) -> None:
        layer = nn.Linear(3, 4)
        graph = TracedFunction(layer, compile=compile_)
        x = torch.randn(20, 3)
        with torch.no_grad():
            graph(x)
            layer.weight.mul_(2.0)
            torch.testing.assert_close(graph(x), layer(x))
            layer.weight.data = torch.randn(4, 3)
            torch.testing.assert_close(graph(x), layer(x))

    def test_sees_the_precision_change_where_it_is_refreshed(self, compile_: bool) -> None:
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

    def test_takes_views_for_what_they_are(self, compile_: bool) -> None:
        views = torch.arange(12.0).reshape(-1, 1), torch.randn(5, 3)[1:4, ::2], torch.randn(2, 6).t()
        for view in views:
            graph, x = TracedFunction(lambda x, view=view: x * view + 1, compile=compile_), torch.randn(view.shape)
            with torch.no_grad():
                torch.testing.assert_close(graph(x), x * view + 1)
                view.add_(1.0)
                torch.testing.assert_close(graph(x), x * view + 1)

    def test_changes_what_it_closes_over_once_in_every_call(self, compile_: bool) -> None:
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

    def test_tells_arguments_apart_that_were_one_at_first(self, compile_: bool) -> None:
        graph, x, y = TracedFunction(lambda x, y: x - 2 * y, compile=compile_), torch.ones(2), torch.zeros(2)
        with torch.no_grad():
            assert graph(x, x).tolist() == [-1.0, -1.0]
            assert graph(x, y).tolist() == [1.0, 1.0]
            assert graph(y, x).tolist() == [-2.0, -2.0]

    def test_draws_the_random_numbers_of_its_function(self, compile_: bool) -> None:
        def sample(mean: Tensor) -> Tensor:
            return torch.normal(mean, 1.0) + torch.rand(mean.shape)

        graph, mean = TracedFunction(sample, compile=compile_), torch.zeros(5)
        with torch.no_grad():
            graph(mean)
            torch.manual_seed(1)
            drawn = [graph(mean) for _ in range(3)]
            torch.manual_seed(1)
            for one in drawn:
                torch.testing.assert_close(one, sample(mean))

    def test_two_graphs_of_one_function_are_apart(self, compile_: bool) -> None:
        layers = [nn.Linear(2, width) for width in range(1, 11)]
        x = torch.randn(4, 2)
        with torch.no_grad():
            for layer in layers:
                torch.testing.assert_close(TracedFunction(layer, compile=compile_)(x), layer(x))

    def test_copies_a_result_that_is_no_new_tensor(self, compile_: bool) -> None:
        held = torch.ones(3)
        graph = TracedFunction(lambda x: [x + 1, x, held], compile=compile_)
        with torch.no_grad():
            for start in (0.0, 5.0):
                x = torch.full((3,), start)
                held.fill_(start - 1)
                results = graph(x)
                assert [one.tolist() for one in results] == [[start + 1] * 3, [start] * 3, [start - 1] * 3]
                assert not {one.data_ptr() for one in results} & {x.data_ptr(), held.data_ptr()}

    @pytest.mark.parametrize(
        "function",
        [lambda x: x * 2 if x.sum() > 0 else x * 3, lambda x: x[x > 0] + 1, lambda x: torch.tensor(x.tolist())],
    )
    def test_refuses_a_function_of_values_with_the_way_out(self, function: Any, compile_: bool) -> None:
        with torch.no_grad(), pytest.raises(ConfigurationError, match=r"needs the values .* compile=false"):
            TracedFunction(function, compile=compile_)(torch.ones(3))

    def test_an_error_of_its_function_keeps_its_traceback_and_says_when(self, compile_: bool) -> None:
        with torch.no_grad(), pytest.raises(RuntimeError, match="must have same reduction dim") as told:
            TracedFunction(nn.Linear(2, 2), compile=compile_)(torch.ones(3, 3))
        assert "compile=false" in told.value.__notes__[0]


def test_a_graph_as_it_was_traced_has_the_bits_of_its_function() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4), nn.LogSoftmax(-1))
    graph = TracedFunction(layers, compile=False)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(5, 3)
            assert torch.equal(graph(x), layers(x))


def test_casts_where_its_function_casts() -> None:
    layer, x = nn.Linear(3, 4), torch.randn(5, 3)

    def half_cast(x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", enabled=False):
            whole = layer(x)
        return [layer(x), whole]

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = half_cast(x)
        for compile_ in (False, True):
            graph = TracedFunction(half_cast, compile=compile_)
            for _ in range(2):
                for one, other in zip(graph(x), expected, strict=True):
                    torch.testing.assert_close(one, other)


class Warming(nn.Module):
    """Features that fade in with every call that it has counted, in whole numbers and in parts of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.zeros(2, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        warm = x * self.count.float() + self.table.float().sum(0)
        self.count += 1
        self.table[1].add_(2.0)
        return warm


@pytest.mark.parametrize("compile_", [False, True])
def test_a_cast_of_what_a_graph_changes_is_not_kept(compile_: bool) -> None:
    x = torch.randn(5, 3)
    module, own = Warming(), Warming()
    graph = TracedFunction(module, compile=compile_, keep_casts=True)
    for _ in range(3):
        torch.testing.assert_close(graph(x), own(x))


@pytest.mark.parametrize("compile_", [False, True])
def test_a_kept_cast_is_its_tensors_again_once_refreshed(compile_: bool) -> None:
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
