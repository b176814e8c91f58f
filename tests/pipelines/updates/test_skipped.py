"""The metrics of a step are a mapping over one vector."""

from __future__ import annotations

import pytest
import torch

from torchppo.pipelines.updates.skipped import StepMetrics, vector_of


def test_metrics_of_a_step_are_a_mapping_of_scalars() -> None:
    metrics = StepMetrics(["loss", "grad_norm"], torch.tensor([3.0, 4.0]))
    assert {name: value.item() for name, value in metrics.items()} == {"loss": 3.0, "grad_norm": 4.0}
    assert all(value.shape == () for value in metrics.values())
    assert "kl" not in metrics
    with pytest.raises(KeyError, match="kl"):
        metrics["kl"]


def test_a_dictionary_of_metrics_becomes_the_same_vector() -> None:
    metrics = StepMetrics(["loss", "grad_norm"], torch.tensor([3.0, 4.0]))
    assert vector_of(metrics) is metrics.vector
    assert vector_of(dict(metrics)).tolist() == [3.0, 4.0]
