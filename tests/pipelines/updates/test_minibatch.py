"""Epochs of shuffled minibatches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from torchppo.errors import ConfigurationError
from torchppo.pipelines.updates.minibatch import MinibatchUpdate


def data(frames: int) -> dict[str, Tensor]:
    return {"advantage": torch.arange(frames).unsqueeze(-1).float()}


class TestMinibatchUpdate:
    def test_every_frame_comes_once_in_every_epoch_in_a_new_order(self) -> None:
        seen: list[Tensor] = []

        def step(rollout: dict[str, Tensor], indices: Tensor) -> Tensor:
            seen.append(rollout["advantage"][indices].squeeze(-1))
            return torch.zeros(1)

        _, num_steps = MinibatchUpdate(epochs=3, minibatch_size=4)(lambda _: data(12), step)
        epochs = [torch.cat(seen[start : start + 3]) for start in (0, 3, 6)]
        assert num_steps == 9
        assert all(torch.equal(epoch.sort().values, torch.arange(12.0)) for epoch in epochs)
        assert not torch.equal(epochs[0], epochs[1])

    def test_metrics_are_the_mean_over_the_steps_taken(self) -> None:
        results = iter([torch.tensor([1.0]), torch.tensor([3.0]), None])
        means, num_steps = MinibatchUpdate(epochs=5, minibatch_size=4)(lambda _: data(8), lambda *_: next(results))
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
            MinibatchUpdate(1, size).check(4, frames // 4, in_sequences=False)

    @pytest.mark.parametrize("size", [5, 16])
    def test_a_rollout_that_does_not_fit_is_refused_when_it_comes(self, size: int) -> None:
        with pytest.raises(ConfigurationError, match=f"minibatch_size={size}"):
            MinibatchUpdate(1, size)(lambda _: data(12), lambda *_: torch.zeros(1))

    @pytest.mark.parametrize("options", [{"epochs": 0}, {"minibatch_size": 0}, {"target_kl": 0.0}, {"target_kl": -1.0}])
    def test_impossible_settings_are_refused(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            MinibatchUpdate(**{"epochs": 1, "minibatch_size": 8} | options)  # type: ignore[arg-type]

    def test_minibatches_hold_whole_sequences(self) -> None:
        seen: list[Tensor] = []

        def step(rollout: dict[str, Tensor], indices: Tensor) -> Tensor:
            seen.append(rollout["advantage"][indices])
            return torch.zeros(1)

        sequences = {"advantage": torch.arange(24.0).reshape(6, 4, 1)}
        MinibatchUpdate(epochs=1, minibatch_size=8)(lambda _: sequences, step)
        assert [part.shape for part in seen] == [(2, 4, 1)] * 3
        assert torch.equal(torch.cat(seen).flatten(1).sort(0).values, torch.arange(24.0).reshape(6, 4))

    def test_advantages_of_every_minibatch_are_normalized_if_asked_to(self) -> None:
        seen: list[Tensor] = []

        def step(rollout: dict[str, Tensor], indices: Tensor) -> Tensor:
            seen.append(rollout["advantage"][indices])
            return torch.zeros(1)

        given = data(12)
        MinibatchUpdate(epochs=2, minibatch_size=4)(lambda _: given, step, normalize=True)
        for part in seen:
            np.testing.assert_allclose([part.mean(), part.std(correction=0)], [0, 1], atol=1e-6)
        assert torch.equal(given["advantage"], data(12)["advantage"])

    def test_the_longer_of_both_learners_decides_how_many_epochs_there_are(self) -> None:
        epochs: list[int] = []

        def begin_epoch(epoch: int) -> dict[str, Tensor]:
            epochs.append(epoch)
            return data(8)

        update = MinibatchUpdate(epochs=2, minibatch_size=4, critic_epochs=3)
        update(begin_epoch, lambda *_: torch.zeros(1))
        assert epochs == [0, 1, 2]
        assert update.num_steps(8) == 6

    @pytest.mark.parametrize(
        ("length", "size", "message"),
        [
            (5, 8, r"sequence_length=5 does not divide collector\.frames_per_env=16; .* 4 or 8"),
            (8, 4, r"minibatch_size=4 does not hold whole sequences of 8 frames, .* fits is 8"),
        ],
    )
    def test_sequences_that_do_not_fit_are_refused_with_the_nearest(self, length: int, size: int, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            MinibatchUpdate(1, size, sequence_length=length).check(2, 16, in_sequences=True)
