"""The speed of bfloat16 is measured, and relative to float32's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from torchppo.pipelines import precision


def test_the_speed_is_that_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 3.0, torch.bfloat16: 6.0}
    monkeypatch.setattr(precision, "seconds_to_square", lambda matrix, times: seconds[matrix.dtype] * times)
    assert precision.bf16_speed() == 0.5


def test_the_shortest_of_several_products_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock() -> Iterator[float]:
        yield from (0.0, 5.0, 10.0, 12.0, 20.0, 29.0)

    monkeypatch.setattr(precision.time, "perf_counter", clock().__next__)
    assert precision.seconds_to_square(torch.ones(2, 2), 3) == 2.0


def test_products_are_of_the_matrix_type(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def product(one: Tensor, other: Tensor, *, out: Tensor) -> Tensor:
        seen.append(out.dtype)
        return out

    monkeypatch.setattr(torch, "mm", product)
    precision.seconds_to_square(torch.ones(2, 2, dtype=torch.bfloat16), 2)
    assert seen == [torch.bfloat16] * 2
