"""A rollout is written as it was stepped, and its episodes are counted as they run on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase

from torchppo.envs import ALL_ENVS, StepArrays
from torchppo.errors import NumericalError
from torchppo.pipelines.collectors.device_buffer import DeviceObservations
from torchppo.pipelines.collectors.rollout_buffer import EpisodeCounters, RolloutBuffer

CPU = torch.device("cpu")
NUM_ENVS, NUM_STEPS = 4, 3


def stepped(step: int, rows: slice = ALL_ENVS, *, terminated: bool = False, truncated: bool = False) -> StepArrays:
    """Observations `10 step + env`, rewards `step + env / 10`; the first of the rows may end."""
    envs = np.arange(NUM_ENVS)[rows]
    ends = np.zeros((2, len(envs)), np.bool_)
    ends[:, 0] = terminated, truncated
    observation = (10.0 * step + envs)[:, None].astype(np.float32)
    return StepArrays(observation, step + envs / 10, *ends, np.full(len(envs), np.nan))


def record() -> RolloutBuffer:
    return RolloutBuffer(stepped(0).observation, np.ones(NUM_ENVS, np.bool_), NUM_STEPS, CPU)


def rollout_of(one: RolloutBuffer) -> TensorDictBase:
    actions = torch.arange(NUM_STEPS * NUM_ENVS).reshape(NUM_STEPS, NUM_ENVS)
    return one.as_tensordict(EpisodeCounters(NUM_ENVS), {"action": actions}, {})


class TestRecord:
    def test_holds_what_came_before_and_after_every_step(self) -> None:
        one = record()
        for step in range(NUM_STEPS):
            assert one.write(step, ALL_ENVS, stepped(step + 1)) is None
        rollout = rollout_of(one)
        assert rollout.shape == (NUM_ENVS, NUM_STEPS)
        assert rollout["observation"][2, :, 0].tolist() == [2, 12, 22]
        assert rollout["next", "observation"][2, :, 0].tolist() == [12, 22, 32]
        assert rollout["action"][2].tolist() == [2, 6, 10]
        assert rollout["is_init"][2, :, 0].tolist() == [True, False, False]
        torch.testing.assert_close(rollout["next", "reward"][2, :, 0], torch.tensor([1.2, 2.2, 3.2]))
        assert not rollout["next", "done"].any()

    @pytest.mark.parametrize("how", ["terminated", "truncated"])
    def test_keeps_the_last_observation_of_an_episode_beside_the_first_of_the_next(self, how: str) -> None:
        one = record()
        half = slice(2, 4)
        one.write(0, slice(0, 2), stepped(1, slice(0, 2)))
        ended = one.write(0, half, stepped(1, half, **{how: True}))
        assert ended is not None
        assert ended.tolist() == [2]
        one.storage.arrays[1, 2] = -1.0  # what a reset says
        for step in (1, 2):
            one.write(step, ALL_ENVS, stepped(step + 1))
        rollout = rollout_of(one)
        assert rollout["next", "observation"][2, :, 0].tolist() == [12, 22, 32]
        assert rollout["observation"][2, :, 0].tolist() == [2, -1, 22]
        assert rollout["is_init"][2, :, 0].tolist() == [True, True, False]
        assert (
            rollout["next", how][2, :, 0].tolist() == rollout["next", "done"][2, :, 0].tolist() == [True, False, False]
        )
        assert rollout["next", "done"].sum() == 1

    def test_takes_double_precision_for_a_device_too(self) -> None:
        one = record()
        one.storage = DeviceObservations((NUM_STEPS + 1, NUM_ENVS, 1), np.dtype(np.float32), CPU)
        for step in range(NUM_STEPS):
            one.storage.given(step)
            arrays = stepped(step + 1, terminated=step == 1)
            one.write(step, ALL_ENVS, arrays._replace(observation=arrays.observation.astype(np.float64)))
        assert rollout_of(one)["next", "observation"][0, :, 0].tolist() == [10, 20, 30]

    def test_names_the_first_observation_that_is_not_finite_and_looks_no_further_than_it_was_stepped(self) -> None:
        one = record()
        one.storage.arrays[2:] = np.nan  # not stepped yet
        one.write(0, ALL_ENVS, stepped(1))
        one.raise_if_not_finite()
        one.storage.arrays[1, 3] = np.inf
        with pytest.raises(NumericalError, match="observation of environment 3 is inf at step 0 of the rollout"):
            one.raise_if_not_finite()


class TestRunningEpisodes:
    def test_run_on_from_rollout_to_rollout_and_begin_anew_after_their_end(self) -> None:
        rewards = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
        done = np.array([[False, True], [True, False], [False, False]])
        episodes = EpisodeCounters(2)
        raw = np.full((3, 2), np.nan)
        returns, lengths = episodes(rewards, done, raw)
        assert returns.T.tolist() == [[1, 3, 3], [10, 20, 50]]
        assert lengths.T.tolist() == [[1, 2, 1], [1, 1, 2]]
        returns, lengths = episodes(rewards, done, raw)
        assert returns.T.tolist() == [[4, 6, 3], [60, 20, 50]]
        assert lengths.T.tolist() == [[2, 3, 1], [3, 1, 2]]

    def test_returns_of_the_environments_own_are_taken_as_they_are(self) -> None:
        raw: NDArray[np.float64] = np.array([[7.0, np.nan]])
        returns, _ = EpisodeCounters(2)(np.array([[1.0, 2.0]]), np.zeros((1, 2), np.bool_), raw)
        assert returns.tolist() == [[7.0, 2.0]]
