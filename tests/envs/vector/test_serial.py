"""`SerialVectorEnv` steps its environments in order, and the helpers of all vector environments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv

from torchppo.envs import SerialVectorEnv
from torchppo.envs.vector.interface import EnvDescription, env_seeds, init_vector_env, reset_indices
from torchppo.errors import EnvironmentFailure

NUM_ENVS = 3
BOX, DISCRETE = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)


@pytest.fixture
def serial(counting_env: Callable[..., Any]) -> SerialVectorEnv:
    """Episodes of 2, 3 and 4 steps, the last ones truncated."""
    ends = ("terminated", "terminated", "truncated")
    env_fns = [partial(counting_env, length=2 + i, ends=ends[i], reward=float(i)) for i in range(NUM_ENVS)]
    return SerialVectorEnv(env_fns)


def counting_envs(serial: SerialVectorEnv) -> list[Any]:
    return list(serial.envs)


def step(serial: SerialVectorEnv, num_steps: int = 1) -> tuple[Any, ...]:
    """Copy the results of the last of `num_steps` steps."""
    for _ in range(num_steps):
        observation, reward, terminated, truncated, info = serial.step(np.zeros(NUM_ENVS, np.int64))
    return observation.tolist(), reward.tolist(), terminated.tolist(), truncated.tolist(), info


class TestSpaces:
    def test_spaces_are_those_of_one_environment_and_of_the_batch(self, serial: SerialVectorEnv) -> None:
        assert serial.num_envs == NUM_ENVS
        assert serial.single_observation_space == spaces.Box(-np.inf, np.inf, (2,))
        assert serial.single_action_space == spaces.Discrete(2)
        assert serial.observation_space.shape == (NUM_ENVS, 2)
        assert serial.action_space == spaces.MultiDiscrete([2] * NUM_ENVS)

    def test_autoreset_is_disabled_in_the_metadata_of_the_instance_only(self, serial: SerialVectorEnv) -> None:
        assert serial.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        assert GymnasiumVectorEnv.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED


class TestSteps:
    def test_every_environment_receives_its_own_action(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        serial.step(np.array([1, 0, 1]))
        serial.step(np.array([0, 0, 1]))
        assert [env.actions for env in counting_envs(serial)] == [[1, 0], [0, 0], [1, 1]]

    def test_results_have_the_order_of_the_environments(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        observation, reward, terminated, truncated, _ = step(serial, 2)
        assert observation == [[1, 2], [1, 2], [1, 2]]
        assert reward == [0.0, 1.0, 2.0]
        assert terminated == [True, False, False]
        assert truncated == [False, False, False]

    def test_truncation_is_not_termination(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        step(serial, 2)
        serial.reset(options={"reset_mask": np.array([True, False, False])})
        step(serial)
        serial.reset(options={"reset_mask": np.array([False, True, False])})
        _, _, terminated, truncated, _ = step(serial)
        assert terminated == [True, False, False]
        assert truncated == [False, False, True]

    def test_the_final_observation_is_the_true_one(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        observation, *_ = step(serial, 2)
        assert observation[0] == [1, 2]
        assert serial.reset(options={"reset_mask": np.array([True, False, False])})[0][0].tolist() == [2, 0]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64])
    def test_float64_becomes_float32_and_other_dtypes_are_kept(
        self, dtype: type[np.generic], counting_env: Callable[..., Any]
    ) -> None:
        space = spaces.Box(0, 100, (2,), dtype)  # type: ignore[arg-type]
        serial = SerialVectorEnv([partial(counting_env, observation_space=space)])
        expected = np.float32 if dtype is np.float64 else dtype
        assert serial.reset()[0].dtype == expected
        assert serial.step(np.zeros(1, np.int64))[0].dtype == expected

    def test_render_returns_one_frame_per_environment(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        step(serial)
        assert [frame.tolist() for frame in serial.render()] == [np.ones((2, 2, 3)).tolist()] * NUM_ENVS


class TestResets:
    def test_a_reset_without_a_mask_starts_all_environments(self, serial: SerialVectorEnv) -> None:
        observation, info = serial.reset()
        assert observation.tolist() == [[1, 0]] * NUM_ENVS
        assert info == {}

    def test_environments_outside_the_mask_keep_their_state_and_observation(self, serial: SerialVectorEnv) -> None:
        serial.reset()
        step(serial, 2)
        observation, _ = serial.reset(options={"reset_mask": np.array([True, False, False])})
        assert observation.tolist() == [[2, 0], [1, 2], [1, 2]]
        assert step(serial)[0] == [[2, 1], [1, 3], [1, 3]]

    def test_a_seed_becomes_consecutive_seeds(self, serial: SerialVectorEnv) -> None:
        serial.reset(seed=7)
        assert [env.seeds for env in counting_envs(serial)] == [[7], [8], [9]]

    def test_seeds_of_all_environments_may_be_given(self, serial: SerialVectorEnv) -> None:
        serial.reset(seed=np.array([5, 3, 4]).tolist())
        assert [env.seeds for env in counting_envs(serial)] == [[5], [3], [4]]
        assert all(type(env.seeds[0]) is int for env in counting_envs(serial))

    def test_a_seed_applies_to_one_reset(self, serial: SerialVectorEnv) -> None:
        serial.reset(seed=7)
        serial.reset()
        assert [env.seeds for env in counting_envs(serial)] == [[7, None], [8, None], [9, None]]


def test_a_failed_construction_closes_the_environments_made_before(counting_env: Callable[..., Any]) -> None:
    first = counting_env()
    with pytest.raises(ZeroDivisionError):
        SerialVectorEnv([lambda: first, lambda: counting_env(length=1 // 0)])
    assert first.closed


@pytest.mark.parametrize(("close", "name"), [(lambda: 1 / 0, "ZeroDivisionError"), (sys.exit, "SystemExit")])
def test_an_exception_in_close_is_a_warning_and_all_others_are_closed(
    close: Callable[[], Any], name: str, serial: SerialVectorEnv
) -> None:
    counting_envs(serial)[0].close = close
    with pytest.warns(RuntimeWarning, match=f"failed to close: {name}"):
        serial.close()
    assert [env.closed for env in counting_envs(serial)[1:]] == [True, True]


def test_close_closes_every_environment(serial: SerialVectorEnv) -> None:
    serial.close()
    assert all(env.closed for env in counting_envs(serial))


def test_a_vector_environment_has_the_attributes_of_its_environments() -> None:
    vector: GymnasiumVectorEnv[Any, Any, Any] = GymnasiumVectorEnv()
    init_vector_env(vector, EnvDescription(BOX, DISCRETE, "rgb_array", {"render_fps": 7}), 4)
    assert (vector.num_envs, vector.render_mode) == (4, "rgb_array")
    assert (vector.single_observation_space, vector.single_action_space) == (BOX, DISCRETE)
    assert (vector.observation_space.shape, vector.action_space.shape) == ((4, 3), (4,))
    assert vector.metadata == {"render_fps": 7, "autoreset_mode": AutoresetMode.DISABLED}


@pytest.mark.parametrize("name", ["observation", "action"])
def test_an_unsupported_space_raises(name: str) -> None:
    graph = spaces.Graph(BOX, None)
    pair = (graph, DISCRETE) if name == "observation" else (BOX, graph)
    with pytest.raises(EnvironmentFailure, match=f"{name} space Graph"):
        init_vector_env(GymnasiumVectorEnv(), EnvDescription(*pair, None, {}), 2)


@pytest.mark.parametrize(
    ("seed", "seeds"), [(None, [None] * 3), (5, [5, 6, 7]), ([4, None, np.int64(2)], [4, None, 2])], ids=str
)
def test_every_environment_has_its_own_seed(seed: Any, seeds: list[int | None]) -> None:
    assert env_seeds(seed, 3) == seeds


@pytest.mark.parametrize(
    ("options", "indices"),
    [(None, [0, 1, 2]), ({}, [0, 1, 2]), ({"reset_mask": np.array([True, False, True])}, [0, 2])],
    ids=str,
)
def test_reset_indices_are_those_of_the_mask_or_all(options: Any, indices: list[int]) -> None:
    assert list(reset_indices(options, 3)) == indices
