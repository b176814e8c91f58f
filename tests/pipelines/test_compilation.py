"""A kernel is near the true values, found again on disk, and replayed on CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from torchppo.pipelines.compilation import FEW_ROWS
from torchppo.pipelines.graphs import OneGraph

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class TestCompiled:
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

    def test_is_found_again_on_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        layer, x = nn.Linear(3, 4), torch.randn(5, 3)
        with torch.no_grad():
            OneGraph(layer)(x)
            before = counters["inductor"]["fxgraph_cache_hit"]
            torch.testing.assert_close(OneGraph(layer)(x), layer(x))
        assert counters["inductor"]["fxgraph_cache_hit"] == before + 1

    @CUDA
    def test_a_recording_on_cuda_equals_its_function(self) -> None:
        layer = nn.Linear(3, 4).cuda()
        graph = OneGraph(lambda data, rows: [layer(data["x"][rows]).tanh(), data["x"][rows].sum()])
        for _ in range(4):
            data, rows = {"x": torch.randn(20, 3, device="cuda")}, torch.randperm(20, device="cuda")[:8]
            with torch.no_grad():
                torch.testing.assert_close(graph(data, rows)[0], layer(data["x"][rows]).tanh())
                layer.weight.mul_(1.1)
