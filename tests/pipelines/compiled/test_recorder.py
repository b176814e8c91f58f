"""A recorder records every operation, refuses values of tensors, and undoes changes of closed-over tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchppo.errors import GraphError
from torchppo.pipelines.compiled.graph import TracedFunction
from torchppo.pipelines.compiled.graph_passes import inputs_written_by
from torchppo.pipelines.compiled.recorder import Recorder


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + float(x.numpy()[0]),
        lambda x: x + float(np.asarray(x)[0]),
        lambda x: x + x.max().item(),
        lambda x: x.nonzero(),
        lambda x: x[(x > 0).byte()],
        lambda x: x if torch.equal(x, x) else -x,
    ],
)
@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
def test_every_way_to_read_values_is_refused(function: Any) -> None:
    with torch.no_grad(), pytest.raises(GraphError, match="depends on the values of tensors"):
        TracedFunction(function, compile=False)(torch.ones(3))


def test_all_kinds_of_arguments_are_replayed() -> None:
    def function(x: Tensor, rows: Tensor) -> list[Tensor]:
        parts = x.double().split([1, 2], dim=1)
        bounded = torch.cat([*parts, torch.full((4, 1), math.nan)], -1).clamp(-math.inf, 0.5)
        return [bounded[rows], x.new_zeros(2, dtype=torch.int64), torch.stack([x.mean(), x.std(correction=0)])]

    graph, rows = TracedFunction(function, compile=False), torch.tensor([2, 0])
    with torch.no_grad():
        for seed in range(3):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
            for actual, expected in zip(graph(x, rows), function(x, rows), strict=True):
                assert actual.dtype == expected.dtype
                torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_changes_of_tensors_that_share_memory_are_undone() -> None:
    vector, x = torch.arange(6.0), torch.ones(3)
    start, end = vector[:4], vector[2:]
    recorder = Recorder([x], keep_copies=True)
    with torch.no_grad(), recorder:
        vector.mul_(2.0)
        start[1:].add_(x)
        result = end.sub_(1.0) + 0.0
    graph = recorder.finish([result])
    assert vector.tolist() == [0.0, 3.0, 4.0, 6.0, 7.0, 9.0]
    recorder.restore(inputs_written_by(graph))
    assert vector.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_casts_that_autocast_has_cached_are_recorded() -> None:
    layer, x = nn.Linear(3, 4), torch.randn(5, 3)
    graph = TracedFunction(layer, compile=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
        graph(x)
        layer.weight.mul_(2.0)
        assert torch.equal(graph(x), layer(x))
