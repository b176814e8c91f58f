"""Epochs of shuffled minibatches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchppo.errors import ConfigurationError
from torchppo.pipelines.updates import MinibatchUpdate


def data(frames: int) -> dict[str, Tensor]:
    return {"advantage": torch.arange(frames).unsqueeze(-1).float()}


class TestMinibatchUpdate:
    def test_every_frame_comes_once_in_every_epoch_in_a_new_order(self) -> None:
        seen: list[Tensor] = []

        def step(rollout: dict[str, Tensor], indices: Tensor) -> Tensor:
            seen.append(rollout["advantage"][indices].squeeze(-1))
            return torch.zeros(1)

        _, num_steps = MinibatchUpdate(epochs=3, minibatch_size=4)(data(12), step)
        epochs = [torch.cat(seen[start : start + 3]) for start in (0, 3, 6)]
        assert num_steps == 9
        assert all(torch.equal(epoch.sort().values, torch.arange(12.0)) for epoch in epochs)
        assert not torch.equal(epochs[0], epochs[1])

    def test_metrics_are_the_mean_over_the_steps_taken(self) -> None:
        results = iter([torch.tensor([1.0]), torch.tensor([3.0]), None])
        means, num_steps = MinibatchUpdate(epochs=5, minibatch_size=4)(data(8), lambda *_: next(results))
        assert (means.item(), num_steps) == (2.0, 2)

    @pytest.mark.parametrize(
        ("size", "frames", "message"),
        [
            (100, 256, r"100 does not divide the rollout of 256 .* fits is 64 or 128"),
            (512, 256, r"512 is larger than the rollout of 256 .* fits is 256"),
        ],
    )
    def test_a_size_that_does_not_fit_is_refused_with_the_nearest(self, size: int, frames: int, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            MinibatchUpdate(minibatch_size=size).check(frames)

    @pytest.mark.parametrize("options", [{"epochs": 0}, {"minibatch_size": 0}, {"target_kl": 0.0}, {"target_kl": -1.0}])
    def test_impossible_settings_are_refused(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            MinibatchUpdate(**options)  # type: ignore[arg-type]
