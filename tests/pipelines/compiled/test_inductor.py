"""Compiled kernels: the cache on disk and CUDA graphs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from torchppo.pipelines.compiled.graph import TracedFunction
from torchppo.pipelines.compiled.inductor import CudaGraph

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class TestKernels:
    def test_kernel_is_read_from_the_cache_on_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        layer, x = nn.Linear(3, 4), torch.randn(5, 3)
        with torch.no_grad():
            TracedFunction(layer)(x)
            before = counters["inductor"]["fxgraph_cache_hit"]
            torch.testing.assert_close(TracedFunction(layer)(x), layer(x))
        assert counters["inductor"]["fxgraph_cache_hit"] == before + 1

    @CUDA
    def test_cuda_graph_equals_its_function(self) -> None:
        layer = nn.Linear(3, 4).cuda()
        graph = TracedFunction(lambda data, rows: [layer(data["x"][rows]).tanh(), data["x"][rows].sum()])
        for _ in range(4):
            data, rows = {"x": torch.randn(20, 3, device="cuda")}, torch.randperm(20, device="cuda")[:8]
            with torch.no_grad():
                torch.testing.assert_close(graph(data, rows)[0], layer(data["x"][rows]).tanh())
                layer.weight.mul_(1.1)
                layer.weight.data = layer.weight.detach().clone()  # other memory

    def test_cuda_graph_is_recorded_again_only_if_a_tensor_has_moved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        recorded: list[object] = []

        class FakeGraph:
            def replay(self) -> None: ...

        monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
        monkeypatch.setattr(torch.cuda, "graph", lambda graph: recorded.append(graph) or nullcontext())
        argument, weight = torch.ones(2), torch.ones(2)
        graph = CudaGraph(lambda inputs: [inputs[0] * inputs[1]], [argument, weight], 1)
        for _ in range(3):
            graph([torch.rand(2), weight])
            weight.mul_(2.0)
        assert len(recorded) == 1
        weight.data = torch.full((2,), 3.0)
        (result,) = graph([argument, weight])
        assert len(recorded) == 2
        assert result.tolist() == [3.0, 3.0]
