"""The metrics of a step are a mapping over one vector, and the error of skipped steps names the cause."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchppo.errors import NumericalError
from torchppo.pipelines.updates.skipped import SkippedSteps, StepMetrics, stacked_metrics


def test_metrics_of_a_step_are_a_mapping_of_scalars() -> None:
    metrics = StepMetrics(["loss", "grad_norm"], torch.tensor([3.0, 4.0]))
    assert {name: value.item() for name, value in metrics.items()} == {"loss": 3.0, "grad_norm": 4.0}
    assert all(value.shape == () for value in metrics.values())
    assert "kl" not in metrics
    with pytest.raises(KeyError, match="kl"):
        metrics["kl"]


def test_a_dictionary_of_metrics_becomes_the_same_vector() -> None:
    metrics = StepMetrics(["loss", "grad_norm"], torch.tensor([3.0, 4.0]))
    assert stacked_metrics(metrics) is metrics.vector
    assert stacked_metrics(dict(metrics)).tolist() == [3.0, 4.0]


@pytest.mark.parametrize(
    ("value", "advantage", "word"), [(1.0, float("nan"), "estimator"), (float("nan"), float("nan"), r"optimizer\.lr")]
)
def test_the_error_names_the_estimator_if_only_its_results_are_not_finite(
    value: float, advantage: float, word: str
) -> None:
    data = {"state_value": value, "advantage": advantage, "value_target": 1.0}
    rollout = TensorDict({key: torch.full((2, 3, 1), number) for key, number in data.items()}, (2, 3))
    skipped = SkippedSteps(1)
    for _ in range(2):
        skipped.add({"grad_norm": torch.tensor(float("nan"))})
    with pytest.raises(NumericalError, match=word):
        skipped.count(rollout, 6, is_last=False)
