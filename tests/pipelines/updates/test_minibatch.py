"""Epochs of shuffled minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from torchppo.errors import ConfigurationError
from torchppo.pipelines.advantages import RolloutBatch
from torchppo.pipelines.updates.minibatch import MinibatchUpdate
from torchppo.pipelines.updates.update import Learner as LearnerProtocol

Metrics = dict[str, Tensor]


class Learner:
    """Records the advantages of every step, and who is trainable."""

    def __init__(self, step: Callable[[], Metrics | None] | None = None) -> None:
        self.normalize_advantage: Literal["rollout", "minibatch"] | None = None
        self.seen: list[Tensor] = []
        self.trainable: list[tuple[bool, bool]] = []
        self.policy_is_frozen = False
        self._step = step or (lambda: {"loss": torch.zeros(())})

    def step(self, rows: TensorDictBase, indices: Tensor) -> Metrics | None:
        self.seen.append(rows["advantage"][indices].squeeze(-1))
        return self._step()

    def set_trainable(self, *, policy: bool, critic: bool) -> bool:
        self.trainable.append((policy, critic))
        return (policy and not self.policy_is_frozen) or critic


class Batch:
    """Rows with the advantages 0, 1, 2, ...; records how they are refreshed."""

    def __init__(self, *shape: int) -> None:
        advantage = torch.arange(np.prod(shape)).reshape(*shape, 1).float()
        self.rows = TensorDict({"advantage": advantage}, shape[:1])
        self.refreshes: list[dict[str, Any]] = []

    def refreshed(self, **options: Any) -> TensorDictBase:
        self.refreshes.append(options)
        return self.rows


def run(update: MinibatchUpdate, batch: Batch, learner: Learner | None = None) -> tuple[dict[str, float], Learner]:
    learner = learner or Learner()
    update.setup(cast(LearnerProtocol, learner))
    return update(cast(RolloutBatch, batch)), learner


class TestEpochs:
    def test_every_epoch_has_every_frame_once_in_a_new_order(self) -> None:
        metrics, learner = run(MinibatchUpdate(epochs=3, minibatch_size=4), Batch(12))
        epochs = [torch.cat(learner.seen[start : start + 3]) for start in (0, 3, 6)]
        assert metrics["num_steps"] == 9
        assert all(torch.equal(epoch.sort().values, torch.arange(12.0)) for epoch in epochs)
        assert not torch.equal(epochs[0], epochs[1])

    def test_minibatches_hold_whole_sequences(self) -> None:
        _, learner = run(MinibatchUpdate(epochs=1, minibatch_size=8), Batch(6, 4))
        assert [part.shape for part in learner.seen] == [(2, 4)] * 3
        assert torch.equal(torch.cat(learner.seen).sort(0).values, torch.arange(24.0).reshape(6, 4))

    def test_rows_are_refreshed_before_every_epoch_but_the_first(self) -> None:
        batch = Batch(8)
        run(MinibatchUpdate(3, 4, sequence_length=2, burn_in=1, recompute_advantage=True), batch)
        assert batch.refreshes == [{"burn_in": 1, "recompute_advantage": True}] * 2

    def test_the_longer_of_policy_and_critic_epochs_continues_alone(self) -> None:
        update = MinibatchUpdate(epochs=2, minibatch_size=4, critic_epochs=3)
        metrics, learner = run(update, Batch(8))
        assert learner.trainable == [(True, True), (True, True), (False, True), (True, True)]
        assert metrics["num_steps"] == update.num_steps(8) == 6

    def test_update_ends_when_nothing_is_trainable_and_unfreezes_everything(self) -> None:
        learner = Learner()
        learner.policy_is_frozen = True
        metrics, _ = run(MinibatchUpdate(epochs=4, minibatch_size=4, critic_epochs=1), Batch(8), learner)
        assert metrics["num_steps"] == 2
        assert learner.trainable[-1] == (True, True)


class TestMetrics:
    def test_metrics_are_means_over_the_steps_taken(self) -> None:
        results = iter([{"a": torch.tensor(1.0)}, {"a": torch.tensor(3.0)}, None])
        metrics, learner = run(MinibatchUpdate(epochs=5, minibatch_size=4), Batch(8), Learner(lambda: next(results)))
        assert metrics == {"a": 2.0, "num_steps": 2.0, "num_epochs": 1.0}
        assert learner.trainable[-1] == (True, True)

    def test_without_a_step_there_is_only_the_number_of_steps(self) -> None:
        metrics, _ = run(MinibatchUpdate(epochs=5, minibatch_size=4), Batch(8), Learner(lambda: None))
        assert metrics == {"num_steps": 0.0, "num_epochs": 0.0}


class TestAdvantages:
    def test_every_minibatch_is_normalized_on_request_and_the_rows_stay_unchanged(self) -> None:
        learner, batch = Learner(), Batch(12)
        learner.normalize_advantage = "minibatch"
        run(MinibatchUpdate(epochs=2, minibatch_size=4), batch, learner)
        for part in learner.seen:
            np.testing.assert_allclose([part.mean(), part.std(correction=0)], [0, 1], atol=1e-6)
        assert torch.equal(batch.rows["advantage"], Batch(12).rows["advantage"])


class TestErrors:
    @pytest.mark.parametrize(
        ("size", "message"),
        [(100, r"minibatch_size=100 .*\(256 frames\); use 64 or 128"), (512, r"minibatch_size=512 .*; use 256")],
    )
    def test_minibatch_size_that_does_not_fit_is_refused_with_the_nearest(self, size: int, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            MinibatchUpdate(1, size).check(4, 64, in_sequences=False)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"epochs": 0}, "epochs=0"),
            ({"minibatch_size": 0}, "minibatch_size=0"),
            ({"critic_epochs": 0}, "critic.epochs=0"),
            ({"sequence_length": 0}, "sequence_length=0"),
            ({"target_kl": 0.0}, "target_kl=0.0"),
            ({"target_kl": -1.0}, "target_kl=-1.0"),
            ({"burn_in": 1}, "burn_in=1"),
            ({"burn_in": 5, "sequence_length": 4}, "burn_in=5.*sequence_length=4"),
        ],
    )
    def test_values_out_of_range_are_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            MinibatchUpdate(**{"epochs": 1, "minibatch_size": 8} | options)

    @pytest.mark.parametrize(
        ("length", "size", "message"),
        [
            (5, 8, r"sequence_length=5 .*frames_per_env=16; use 4 or 8"),
            (8, 4, r"minibatch_size=4 .*; use 8"),
        ],
    )
    def test_sequences_that_do_not_fit_are_refused_with_the_nearest(self, length: int, size: int, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            MinibatchUpdate(1, size, sequence_length=length).check(2, 16, in_sequences=True)
