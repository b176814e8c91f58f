"""Many environments, one after the other, none of which resets by itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv

from torchppo.envs import SerialVectorEnv

NUM_ENVS = 3


@pytest.fixture
def serial(counting_env: Callable[..., Any]) -> SerialVectorEnv:
    """Episodes of 2, 3 and 4 steps, the last ones truncated."""
    ends = ("terminated", "terminated", "truncated")
    makers = [partial(counting_env, length=2 + i, ends=ends[i], reward=float(i)) for i in range(NUM_ENVS)]
    return SerialVectorEnv(makers)


def inside(serial: SerialVectorEnv) -> list[Any]:
    return list(serial.envs)


def act(serial: SerialVectorEnv, times: int = 1) -> tuple[Any, ...]:
    """The last of `times` steps, copied out of the buffers."""
    for _ in range(times):
        observation, reward, terminated, truncated, info = serial.step(np.zeros(NUM_ENVS, np.int64))
    return observation.tolist(), reward.tolist(), terminated.tolist(), truncated.tolist(), info


class TestSpaces:
    def test_they_are_those_of_one_environment_and_of_the_batch(self, serial: SerialVectorEnv) -> None:
        assert serial.num_envs == NUM_ENVS
        assert serial.single_observation_space == spaces.Box(-np.inf, np.inf, (2,))
        assert serial.single_action_space == spaces.Discrete(2)
        assert serial.observation_space.shape == (NUM_ENVS, 2)
        assert serial.action_space == spaces.MultiDiscrete([2] * NUM_ENVS)

    def test_it_says_that_it_never_resets_by_itself_and_does_not_tell_other_classes_so(
        self, serial: SerialVectorEnv
    ) -> None:
        assert serial.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        assert GymnasiumVectorEnv.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED


class TestSteps:
    def test_every_environment_takes_its_own_action(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        serial.step(np.array([1, 0, 1]))
        serial.step(np.array([0, 0, 1]))
        assert [env.actions for env in inside(serial)] == [[1, 0], [0, 0], [1, 1]]

    def test_results_stand_in_the_order_of_the_environments(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        observation, reward, terminated, truncated, _ = act(serial, 2)
        assert observation == [[1, 2], [1, 2], [1, 2]]
        assert reward == [0.0, 1.0, 2.0]
        assert terminated == [True, False, False]
        assert truncated == [False, False, False]

    def test_truncation_is_not_termination(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        act(serial, 2)
        serial.reset(options={"reset_mask": np.array([True, False, False])})
        act(serial)
        serial.reset(options={"reset_mask": np.array([False, True, False])})
        _, _, terminated, truncated, _ = act(serial)
        assert terminated == [True, False, False]
        assert truncated == [False, False, True]

    def test_the_last_observation_of_an_episode_is_its_own(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        observation, *_ = act(serial, 2)
        assert observation[0] == [1, 2]
        assert serial.reset(options={"reset_mask": np.array([True, False, False])})[0][0].tolist() == [2, 0]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
    def test_float64_becomes_float32_and_other_types_stay(
        self, dtype: type[np.generic], counting_env: Callable[..., Any]
    ) -> None:
        space = spaces.Box(0, 100, (2,), dtype)  # type: ignore[arg-type]
        serial = SerialVectorEnv([partial(counting_env, observation_space=space)])
        expected = np.float32 if dtype is np.float64 else dtype
        assert serial.reset()[0].dtype == expected
        assert serial.step(np.zeros(1, np.int64))[0].dtype == expected

    def test_one_frame_for_every_environment(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        act(serial)
        assert [frame.tolist() for frame in serial.render()] == [np.ones((2, 2, 3)).tolist()] * NUM_ENVS


class TestResets:
    def test_all_environments_start_unless_a_mask_says_which(self, serial: SerialVectorEnv) -> None:
        observation, info = serial.reset()
        assert observation.tolist() == [[1, 0]] * NUM_ENVS
        assert info == {}

    def test_those_outside_the_mask_keep_their_state_and_observation(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        act(serial, 2)
        observation, _ = serial.reset(options={"reset_mask": np.array([True, False, False])})
        assert observation.tolist() == [[2, 0], [1, 2], [1, 2]]
        assert act(serial)[0] == [[2, 1], [1, 3], [1, 3]]

    def test_one_seed_becomes_a_different_one_for_every_environment(self, serial: SerialVectorEnv) -> None:
        serial.reset(seed=7)
        assert [env.seeds for env in inside(serial)] == [[7], [8], [9]]

    def test_seeds_can_be_given_one_by_one_as_plain_integers(self, serial: SerialVectorEnv) -> None:
        serial.reset(seed=np.array([5, 3, 4]).tolist())
        assert [env.seeds for env in inside(serial)] == [[5], [3], [4]]
        assert all(type(env.seeds[0]) is int for env in inside(serial))

    def test_a_seed_counts_for_one_reset(self, serial: SerialVectorEnv) -> None:
        serial.reset(seed=7)
        serial.reset()
        assert [env.seeds for env in inside(serial)] == [[7, None], [8, None], [9, None]]


def test_environments_made_before_one_that_cannot_be_are_closed(counting_env: Callable[..., Any]) -> None:
    first = counting_env()
    with pytest.raises(ZeroDivisionError):
        SerialVectorEnv([lambda: first, lambda: counting_env(length=1 // 0)])
    assert first.closed


def test_one_that_fails_to_close_keeps_no_other_open(serial: SerialVectorEnv) -> None:
    inside(serial)[0].close = lambda: 1 / 0
    with pytest.warns(RuntimeWarning, match="failed to close: ZeroDivisionError"):
        serial.close()
    assert [env.closed for env in inside(serial)[1:]] == [True, True]


def test_closing_closes_every_environment(serial: SerialVectorEnv) -> None:
    serial.close()
    assert all(env.closed for env in inside(serial))
