"""The buffer that a rollout is written into, its episode counters, and the check for finite values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase

from torchppo.envs import ALL_ENVS, StepArrays
from torchppo.errors import EnvironmentFailure
from torchppo.pipelines.collectors.device_buffer import DeviceObservations
from torchppo.pipelines.collectors.rollout_buffer import (
    EpisodeCounters,
    RolloutBuffer,
    raise_if_not_finite,
    require_finite,
)

CPU = torch.device("cpu")
NUM_ENVS, NUM_STEPS = 4, 3
GROUPS = [slice(0, 2), slice(2, 4)]


def step_arrays(
    step: int, env_slice: slice = ALL_ENVS, *, terminated: bool = False, truncated: bool = False
) -> StepArrays:
    """Observations `10 step + env`, rewards `step + env / 10`; the flags apply to the first environment."""
    envs = np.arange(NUM_ENVS)[env_slice]
    ends = np.zeros((2, len(envs)), np.bool_)
    ends[:, 0] = terminated, truncated
    observation = (10.0 * step + envs)[:, None].astype(np.float32)
    return StepArrays(observation, step + envs / 10, *ends, np.full(len(envs), np.nan))


def make_buffer(num_groups: int = 1) -> RolloutBuffer:
    first = step_arrays(0).observation
    return RolloutBuffer(first, np.ones(NUM_ENVS, np.bool_), NUM_STEPS, CPU, num_groups)


def as_tensordict(buffer: RolloutBuffer) -> TensorDictBase:
    """Return the rollout of a buffer without groups; the actions are 0, 1, 2, ... in the order of time."""
    for actions in torch.arange(NUM_STEPS * NUM_ENVS).reshape(NUM_STEPS, NUM_ENVS):
        buffer.add_outputs(0, [actions])
    return buffer.as_tensordict(["action"], {}, EpisodeCounters(NUM_ENVS))


class TestRolloutBuffer:
    def test_rollout_holds_what_came_before_and_after_every_step(self) -> None:
        buffer = make_buffer()
        for step in range(NUM_STEPS):
            assert buffer.write(step, ALL_ENVS, step_arrays(step + 1)) is None
        rollout = as_tensordict(buffer)
        assert rollout.shape == (NUM_ENVS, NUM_STEPS)
        assert rollout["observation"][2, :, 0].tolist() == [2, 12, 22]
        assert rollout["next", "observation"][2, :, 0].tolist() == [12, 22, 32]
        assert rollout["action"][2].tolist() == [2, 6, 10]
        assert rollout["is_init"][2, :, 0].tolist() == [True, False, False]
        torch.testing.assert_close(rollout["next", "reward"][2, :, 0], torch.tensor([1.2, 2.2, 3.2]))
        assert not rollout["next", "done"].any()

    @pytest.mark.parametrize("flag", ["terminated", "truncated"])
    def test_final_observation_is_kept_beside_the_first_of_the_next_episode(self, flag: str) -> None:
        buffer = make_buffer()
        first, second = GROUPS
        buffer.write(0, first, step_arrays(1, first))
        ended = buffer.write(0, second, step_arrays(1, second, **{flag: True}))
        assert ended is not None
        assert ended.tolist() == [2]
        buffer.observations.array[1, 2] = -1.0  # the observation of the reset
        for step in (1, 2):
            buffer.write(step, ALL_ENVS, step_arrays(step + 1))
        rollout = as_tensordict(buffer)
        assert rollout["next", "observation"][2, :, 0].tolist() == [12, 22, 32]
        assert rollout["observation"][2, :, 0].tolist() == [2, -1, 22]
        assert rollout["is_init"][2, :, 0].tolist() == [True, True, False]
        assert rollout["next", flag][2, :, 0].tolist() == [True, False, False]
        assert rollout["next", "done"][2, :, 0].tolist() == [True, False, False]
        assert rollout["next", "done"].sum() == 1

    def test_outputs_of_two_groups_are_joined_in_the_order_of_environments(self) -> None:
        buffer = make_buffer(num_groups=2)
        for step in range(NUM_STEPS):
            buffer.write(step, ALL_ENVS, step_arrays(step + 1))
            for group, env_slice in enumerate(GROUPS):
                envs = torch.arange(NUM_ENVS)[env_slice]
                buffer.add_outputs(group, [envs + 10 * step, envs.unsqueeze(-1).float()])
        rollout = buffer.as_tensordict(["action", ("nested", "loc")], {}, EpisodeCounters(NUM_ENVS))
        assert rollout["action"].tolist() == [[env, 10 + env, 20 + env] for env in range(NUM_ENVS)]
        assert rollout["nested", "loc"].shape == (NUM_ENVS, NUM_STEPS, 1)

    def test_recurrent_states_before_and_after_a_step_are_in_the_rollout(self) -> None:
        buffer = make_buffer()
        for step in range(NUM_STEPS):
            buffer.write(step, ALL_ENVS, step_arrays(step + 1))
        states = torch.arange(NUM_STEPS + 1.0).reshape(-1, 1, 1, 1).expand(-1, NUM_ENVS, 1, 1)
        rollout = buffer.as_tensordict([], {"state": states}, EpisodeCounters(NUM_ENVS))
        assert rollout["state"][1].flatten().tolist() == [0, 1, 2]
        assert rollout["next", "state"][1].flatten().tolist() == [1, 2, 3]

    def test_float64_observations_are_cast_for_a_device_too(self) -> None:
        buffer = make_buffer()
        buffer.observations = DeviceObservations((NUM_STEPS + 1, NUM_ENVS, 1), np.dtype(np.float32), CPU)
        for step in range(NUM_STEPS):
            buffer.observations.read(step)
            arrays = step_arrays(step + 1, terminated=step == 1)
            buffer.write(step, ALL_ENVS, arrays._replace(observation=arrays.observation.astype(np.float64)))
        assert as_tensordict(buffer)["next", "observation"][0, :, 0].tolist() == [10, 20, 30]

    def test_check_finite_finds_only_observations_that_were_stepped(self) -> None:
        buffer = make_buffer()
        buffer.observations.array[2:] = np.nan  # not stepped yet
        buffer.write(0, ALL_ENVS, step_arrays(1))
        buffer.check_finite()
        buffer.observations.array[1, 3] = np.inf
        with pytest.raises(EnvironmentFailure, match="observation of environment 3 is inf at step 0 of the rollout"):
            buffer.check_finite()


class TestEpisodeCounters:
    def test_episodes_continue_in_the_next_rollout_and_restart_after_their_end(self) -> None:
        rewards = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
        done = np.array([[False, True], [True, False], [False, False]])
        counters = EpisodeCounters(2)
        raw = np.full((3, 2), np.nan)
        returns, lengths = counters.advance(rewards, done, raw)
        assert returns.T.tolist() == [[1, 3, 3], [10, 20, 50]]
        assert lengths.T.tolist() == [[1, 2, 1], [1, 1, 2]]
        returns, lengths = counters.advance(rewards, done, raw)
        assert returns.T.tolist() == [[4, 6, 3], [60, 20, 50]]
        assert lengths.T.tolist() == [[2, 3, 1], [3, 1, 2]]

    def test_returns_and_lengths_equal_those_of_a_plain_loop_bit_for_bit(self) -> None:
        generator, counters = np.random.default_rng(0), EpisodeCounters(5)
        total, count = [0.0] * 5, [0] * 5
        for num_steps in (1, 7, 12):
            rewards, done = generator.normal(size=(num_steps, 5)), generator.random((num_steps, 5)) < 0.3
            returns, lengths = counters.advance(rewards, done, np.full(rewards.shape, np.nan))
            for step, env in np.ndindex(rewards.shape):
                total[env], count[env] = total[env] + float(rewards[step, env]), count[env] + 1
                assert (returns[step, env], lengths[step, env]) == (total[env], count[env])
                if done[step, env]:
                    total[env], count[env] = 0.0, 0

    def test_raw_returns_of_the_environment_are_kept(self) -> None:
        raw: NDArray[np.float64] = np.array([[7.0, np.nan]])
        returns, _ = EpisodeCounters(2).advance(np.array([[1.0, 2.0]]), np.zeros((1, 2), np.bool_), raw)
        assert returns.tolist() == [[7.0, 2.0]]


class TestFinite:
    @pytest.mark.parametrize("shape", [(), (1,), (2, 2)])
    def test_first_value_in_time_is_reported_with_its_place(self, shape: tuple[int, ...]) -> None:
        values = torch.zeros(3, 4, *shape)
        values[0, 3], values[1, 2], values[2, 2] = torch.inf, torch.nan, torch.inf
        with pytest.raises(EnvironmentFailure, match=r"^left/x of environment 1 is nan at step 12 of the evaluation"):
            raise_if_not_finite(("left", "x"), values, "evaluation", 10)

    @pytest.mark.parametrize("values", [torch.full((2, 2), 3e38), torch.full((2, 2), 7)], ids=["overflow", "integers"])
    def test_finite_values_pass_even_if_their_sum_overflows(self, values: torch.Tensor) -> None:
        raise_if_not_finite("x", values, "rollout", 0)

    @pytest.mark.parametrize(
        ("key", "step"),
        [("observation", -1), (("next", "observation"), 0), (("next", "reward"), 0)],
        ids=["observation", "next observation", "reward"],
    )
    def test_observations_and_rewards_are_checked(self, key: str | tuple[str, str], step: int) -> None:
        zeros = torch.zeros(2, 3, 1)
        data = {"observation": zeros.clone(), "next": {"observation": zeros.clone(), "reward": zeros.clone()}}
        rollout = TensorDict(data, [2, 3])
        assert require_finite(rollout) is rollout
        rollout[key][1, 0] = torch.nan
        with pytest.raises(EnvironmentFailure, match=f"environment 1 is nan at step {step + 5} of the evaluation"):
            require_finite(rollout, name="evaluation", first_step=5)
