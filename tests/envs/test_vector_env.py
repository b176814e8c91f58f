"""`VectorEnv` keeps TorchRL's contract for environments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit, TransformReward
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.envs import FrameSkipTransform, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchppo.envs import SerialVectorEnv, VectorEnv, make_env
from torchppo.errors import ConfigurationError, EnvironmentFailure

ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "discrete from five": spaces.Discrete(3, start=5),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-discrete from minus one": spaces.MultiDiscrete([2, 3], start=[-1, 4]),
    "multi-binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (2,)),
    "box of float64": spaces.Box(-1, 1, (2,), np.float64),
    "unbounded box": spaces.Box(-np.inf, np.inf, (2,)),
}
Make = Callable[..., VectorEnv]


@pytest.fixture
def make(counting_env: Callable[..., Any]) -> Make:
    """Makes a `VectorEnv` with one scripted environment per length."""

    def make_counting(*lengths: int, **options: Any) -> VectorEnv:
        return VectorEnv(SerialVectorEnv([partial(counting_env, length=length, **options) for length in lengths]))

    return make_counting


def counting_envs(env: VectorEnv) -> list[Any]:
    return list(getattr(env.vector, "vector", env.vector).envs)


def column(rollout: TensorDict, *key: str) -> list[Any]:
    """Convert an entry `[num_envs, time, 1]` to nested lists `[num_envs][time]`."""
    return list(rollout[key].squeeze(-1).tolist())


def rollout_of(env: VectorEnv, steps: int, **options: Any) -> TensorDict:
    return env.rollout(steps, break_when_any_done=False, **options)


class TestSpecs:
    @pytest.mark.parametrize("space", ACTION_SPACES)
    def test_check_env_specs_passes_for_every_action_space(self, space: str, make: Make) -> None:
        check_env_specs(make(3, 4, action_space=ACTION_SPACES[space]), seed=0)

    @pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
    def test_check_env_specs_passes_for_environments_of_gymnasium(self, name: str) -> None:
        check_env_specs(make_env(name, 2), seed=0)

    def test_all_specs_have_the_batch_size(self, make: Make) -> None:
        env = make(3, 4, 5)
        assert env.batch_size == (3,)
        assert env.observation_spec["observation"].shape == (3, 2)
        assert env.action_spec.shape == (3,)
        for key in ("episode_reward", "step_count"):
            assert env.observation_spec[key].shape == (3, 1)
        assert env.reward_spec.shape == (3, 1)
        assert {key: spec.shape for key, spec in env.full_done_spec.items()} == dict.fromkeys(
            ("done", "terminated", "truncated"), (3, 1)
        )

    def test_later_steps_do_not_overwrite_a_rollout(self, make: Make) -> None:
        env = make(50)
        rollout = rollout_of(env, 3)
        before = rollout.clone()
        rollout_of(env, 3)
        assert (rollout == before).all()


class TestFinalObservation:
    @pytest.mark.parametrize("ends", ["terminated", "truncated"])
    def test_the_final_observation_is_the_true_one(self, ends: str, make: Make) -> None:
        rollout = rollout_of(make(2, 3, ends=ends), 6)
        assert rollout["observation"].tolist() == [
            [[1, 0], [1, 1], [2, 0], [2, 1], [3, 0], [3, 1]],
            [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]],
        ]
        assert rollout["next", "observation"].tolist() == [
            [[1, 1], [1, 2], [2, 1], [2, 2], [3, 1], [3, 2]],
            [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]],
        ]

    @pytest.mark.parametrize("ends", ["terminated", "truncated"])
    def test_terminated_and_truncated_are_kept_apart(self, ends: str, make: Make) -> None:
        rollout = rollout_of(make(2, 3, ends=ends), 6)
        done = [[False, True] * 3, [False, False, True] * 2]
        never = [[False] * 6] * 2
        assert column(rollout, "next", "done") == done
        assert column(rollout, "next", ends) == done
        assert column(rollout, "next", "truncated" if ends == "terminated" else "terminated") == never

    def test_an_episode_may_be_terminated_and_truncated(self, counting_env: Callable[..., Any]) -> None:
        env = VectorEnv(SerialVectorEnv([lambda: TimeLimit(counting_env(length=2), 2)]))
        rollout = rollout_of(env, 2)
        for key in ("terminated", "truncated", "done"):
            assert column(rollout, "next", key) == [[False, True]]

    def test_the_smallest_time_limit_of_an_environment_without_a_spec_is_known(
        self, counting_env: Callable[..., Any]
    ) -> None:
        env = VectorEnv(SerialVectorEnv([lambda: TimeLimit(TimeLimit(counting_env(length=9), 2), 5)]))
        assert env.vector.spec.max_episode_steps == 2


class TestResets:
    def test_a_masked_reset_keeps_the_other_environments(self, make: Make) -> None:
        env = make(10, 10, 10)
        state = rollout_of(env, 4)[:, -1]["next"]
        state["_reset"] = torch.tensor([[False], [True], [False]])
        state = env.reset(state)
        assert state["observation"].tolist() == [[1, 4], [2, 0], [1, 4]]
        assert state["step_count"].tolist() == [[4], [0], [4]]
        assert state["episode_reward"].tolist() == [[4], [0], [4]]

    def test_a_full_reset_starts_all_environments(self, make: Make) -> None:
        env = make(10, 10)
        rollout_of(env, 4)
        state = env.reset()
        assert state["observation"].tolist() == [[2, 0], [2, 0]]
        assert state["step_count"].tolist() == state["episode_reward"].tolist() == [[0], [0]]

    def test_no_environment_is_stepped_after_the_end_of_an_episode(self, make: Make) -> None:
        rollout_of(make(1, 2, 3, 5), 30)  # asserted by `CountingEnv.step`

    def test_actions_may_have_a_gradient(self) -> None:
        policy = TensorDictModule(torch.nn.Linear(3, 1), ["observation"], ["action"])
        assert make_env("Pendulum-v1", num_envs=1).rollout(2, policy)["action"].requires_grad

    def test_a_step_after_the_end_of_an_episode_raises(self, make: Make) -> None:
        env = TransformedEnv(make(4, 6), FrameSkipTransform(2))
        assert column(rollout_of(env, 4), "next", "step_count") == [[2, 4, 2, 4], [2, 4, 6, 2]]
        env = TransformedEnv(make(4, 5), FrameSkipTransform(2))
        with pytest.raises(ConfigurationError, match=r"environment 1 .*FrameSkipTransform"):
            rollout_of(env, 4)


class TestSeeds:
    def test_a_seed_gives_every_environment_its_own_seed(self, make: Make) -> None:
        seeds = []
        for seed in (3, 3, 4):
            env = make(9, 9, 9)
            env.set_seed(seed)
            env.reset()
            seeds.append([counting.seeds for counting in counting_envs(env)])
        assert seeds[0] == seeds[1]
        assert len({seed for group in (seeds[0], seeds[2]) for [seed] in group}) == 6

    def test_a_seed_applies_to_the_first_episode_only(self, make: Make) -> None:
        env = make(2, 3)
        env.set_seed(0)
        rollout_of(env, 6)
        for counting in counting_envs(env):
            assert isinstance(counting.seeds[0], int)
            assert counting.seeds[1:] == [None] * (len(counting.seeds) - 1)

    def test_a_seed_applies_at_the_next_full_reset(self, make: Make) -> None:
        env = make(9, 9)
        env.reset()
        env.set_seed(0)
        env.reset_arrays(np.array([True, False]))
        env.reset_arrays()
        first, second = (counting.seeds for counting in counting_envs(env))
        assert first[:2] == [None, None]
        assert first[2] is not None
        assert second[0] is None
        assert second[1] is not None

    def test_a_seed_repeats_a_rollout(self) -> None:
        rollouts = []
        for _ in range(2):
            env = make_env("CartPole-v1", 3)
            env.set_seed(5)
            torch.manual_seed(0)
            rollouts.append(rollout_of(env, 40))
        assert (rollouts[0] == rollouts[1]).all()
        starts = rollouts[0]["observation"][:, 0]
        assert len({tuple(start) for start in starts.tolist()}) == 3


class TestActions:
    def step_once(self, env: VectorEnv, action: Any) -> tuple[torch.Tensor, list[Any]]:
        """Return the action in the data and the actions that the environments received."""
        state = env.reset()
        state["action"] = torch.as_tensor(action)
        stepped = env.step(state)
        return stepped["action"], [counting.actions[-1] for counting in counting_envs(env)]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_only_the_environment_receives_clipped_actions(self, dtype: type[np.floating[Any]], make: Make) -> None:
        space = spaces.Box(np.array([-1, 0], dtype), np.array([1, 3], dtype), dtype=dtype)
        policy_action = [[3.0, -2.0], [-0.5, 2.5]]
        action, received = self.step_once(make(9, 9, action_space=space), policy_action)
        assert action.tolist() == policy_action
        assert [action.tolist() for action in received] == [[1.0, 0.0], [-0.5, 2.5]]
        assert all(action.dtype == dtype for action in received)

    @pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2), spaces.Box(-9, 9, (2,))])
    def test_an_environment_may_modify_its_action(self, space: spaces.Space[Any], make: Make) -> None:
        env = make(9, 9, action_space=space)
        for counting in counting_envs(env):
            counting.step = lambda action, step=counting.step: (action.fill(7), step(action))[1]
        action, received = self.step_once(env, np.ones((2, 2), space.dtype))
        assert action.tolist() == [[1, 1], [1, 1]]
        assert [action.tolist() for action in received] == [[7, 7], [7, 7]]

    @pytest.mark.parametrize("status", [0, "no licence"])
    def test_an_environment_that_calls_sys_exit_raises(
        self, status: Any, make: Make, capfd: pytest.CaptureFixture[str]
    ) -> None:
        env = make(9)
        counting_envs(env)[0].step = lambda _: sys.exit(status)
        with pytest.raises(EnvironmentFailure, match=f"environment 0 at step 1 .*failed: SystemExit: {status}"):
            self.step_once(env, [1])
        capfd.readouterr()

    def test_an_action_of_an_unbounded_box_is_unchanged(self, make: Make) -> None:
        space = ACTION_SPACES["unbounded box"]
        _, received = self.step_once(make(9, action_space=space), [[300.0, -1e6]])
        assert received[0].tolist() == [300.0, -1e6]

    @pytest.mark.parametrize(
        ("space", "policy_action", "expected"),
        [
            ("discrete", [0, 2], [0, 2]),
            ("discrete from five", [0, 2], [5, 7]),
            ("multi-discrete", [[0, 2], [1, 0]], [[0, 2], [1, 0]]),
            ("multi-discrete from minus one", [[0, 2], [1, 0]], [[-1, 6], [0, 4]]),
        ],
    )
    def test_discrete_actions_start_at_zero_in_the_data_and_at_start_in_the_environment(
        self, space: str, policy_action: list[Any], expected: list[Any], make: Make
    ) -> None:
        action, received = self.step_once(make(9, 9, action_space=ACTION_SPACES[space]), policy_action)
        assert action.tolist() == policy_action
        assert [value.tolist() for value in received] == expected
        assert all(ACTION_SPACES[space].contains(value) for value in received)

    def test_an_action_of_a_multi_binary_space_is_int8(self, make: Make) -> None:
        action, received = self.step_once(
            make(9, action_space=ACTION_SPACES["multi-binary"]), torch.tensor([[1, 0, 1]], dtype=torch.int8)
        )
        assert action.tolist() == [[1, 0, 1]]
        assert ACTION_SPACES["multi-binary"].contains(received[0])


class TestObservations:
    @pytest.mark.parametrize("bound", [np.inf, 1000.0])
    def test_float64_becomes_float32(self, bound: float, make: Make) -> None:
        env = make(2, observation_space=spaces.Box(-bound, bound, (2,), np.float64))
        rollout = rollout_of(env, 3)
        assert rollout["observation"].dtype == rollout["next", "observation"].dtype == torch.float32
        assert env.observation_spec["observation"].dtype == torch.float32
        assert env.reset_arrays().dtype == np.float32

    def test_uint8_stays_uint8(self, make: Make) -> None:
        rollout = rollout_of(make(2, observation_space=spaces.Box(0, 255, (2,), np.uint8)), 3)
        assert rollout["observation"].dtype == torch.uint8

    @pytest.mark.parametrize(
        "space",
        [spaces.Sequence(spaces.Discrete(2)), spaces.OneOf([spaces.Discrete(2)])],
        ids=str,
    )
    def test_an_unsupported_observation_space_raises(self, space: spaces.Space[Any], make: Make) -> None:
        with pytest.raises(EnvironmentFailure, match=f"observation space {type(space).__name__}"):
            make(2, observation_space=space)

    @pytest.mark.parametrize("space", [spaces.Tuple([spaces.Text(5)]), spaces.Text(3)], ids=str)
    def test_an_unsupported_action_space_raises(self, space: spaces.Space[Any], make: Make) -> None:
        with pytest.raises(EnvironmentFailure, match=r"action space .* is not supported"):
            make(2, action_space=space)


def times_a_hundred(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return TransformReward(env, lambda reward: 100 * float(reward))


class TestEpisodeStatistics:
    def test_return_and_length_accumulate_and_are_reset_with_every_episode(self, make: Make) -> None:
        rollout = rollout_of(make(2, 3, reward=0.5), 6)
        assert column(rollout, "next", "step_count") == [[1, 2, 1, 2, 1, 2], [1, 2, 3, 1, 2, 3]]
        assert column(rollout, "step_count") == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2]]
        assert column(rollout, "next", "episode_reward") == [[0.5, 1] * 3, [0.5, 1, 1.5] * 2]
        assert column(rollout, "episode_reward") == [[0, 0.5] * 3, [0, 0.5, 1] * 2]

    def test_the_return_does_not_depend_on_reward_wrappers(self, counting_id: str) -> None:
        env = make_env(counting_id, 2, wrappers=[times_a_hundred])
        rollout = rollout_of(env, 6)
        assert column(rollout, "next", "reward") == [[100.0] * 6] * 2
        assert column(rollout, "next", "episode_reward") == [[1, 2, 3, 1, 2, 3]] * 2

    def test_the_return_is_reset_where_a_wrapper_ends_the_episode(self, counting_id: str) -> None:
        two_steps = partial(TimeLimit, max_episode_steps=2)
        rollout = rollout_of(make_env(counting_id, 1, wrappers=[times_a_hundred, two_steps]), 4)
        assert column(rollout, "next", "truncated") == [[False, True, False, True]]
        assert column(rollout, "next", "episode_reward") == [[1, 2, 1, 2]]

    def test_record_episode_statistics_may_be_a_wrapper(self, counting_id: str) -> None:
        rollout = rollout_of(make_env(counting_id, 2, wrappers=[RecordEpisodeStatistics]), 6)
        assert column(rollout, "next", "episode_reward") == [[1, 2, 3, 1, 2, 3]] * 2


class TestArrays:
    def test_send_and_receive_return_the_data_of_a_torchrl_rollout(self, make: Make) -> None:
        rollout = rollout_of(make(2, 3, reward=0.5), 6)
        env = make(2, 3, reward=0.5)
        observation = env.reset_arrays()
        for time in range(6):
            expected = rollout[:, time]
            np.testing.assert_array_equal(observation, expected["observation"].numpy())
            env.send(np.zeros(2, np.int64))
            arrays = env.receive()
            for key in ("observation", "reward", "terminated", "truncated"):
                array = getattr(arrays, key)
                np.testing.assert_array_equal(array, expected["next", key].numpy().reshape(array.shape), err_msg=key)
            done = arrays.terminated | arrays.truncated
            observation = env.reset_arrays(done) if done.any() else arrays.observation


class TestGymnasiumVectorEnv:
    @pytest.fixture
    def sync(self, counting_env: Callable[..., Any]) -> Callable[..., SyncVectorEnv]:
        def make_sync(mode: AutoresetMode, *wrappers: Callable[[Any], Any]) -> SyncVectorEnv:
            def make() -> Any:
                env = counting_env()
                for wrapper in wrappers:
                    env = wrapper(env)
                return env

            return SyncVectorEnv([make, make], autoreset_mode=mode)

        return make_sync

    @pytest.mark.parametrize(
        "options",
        [
            {"observation_space": spaces.Dict({"a": spaces.Discrete(2)})},
            {"observation_space": spaces.Discrete(2, start=1)},
            {"action_space": spaces.Tuple([spaces.Discrete(2)])},
        ],
        ids=str,
    )
    def test_spaces_that_need_encoding_raise(self, options: dict[str, Any], counting_env: Callable[..., Any]) -> None:
        vector = SyncVectorEnv([partial(counting_env, **options)], autoreset_mode=AutoresetMode.DISABLED)
        with pytest.raises(EnvironmentFailure, match="SubprocessVectorEnv"):
            VectorEnv(vector)

    def test_disabled_automatic_resets_are_accepted(self, sync: Callable[..., SyncVectorEnv]) -> None:
        env = VectorEnv(sync(AutoresetMode.DISABLED))
        env.set_seed(0)
        rollout = rollout_of(env, 4)
        assert rollout["next", "observation"].tolist() == [[[1, 1], [1, 2], [1, 3], [2, 1]]] * 2
        assert len({counting.seeds[0] for counting in counting_envs(env)}) == 2

    def test_float64_observations_become_float32(self, counting_env: Callable[..., Any]) -> None:
        env_fn = partial(counting_env, observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float64))
        env = VectorEnv(SyncVectorEnv([env_fn, env_fn], autoreset_mode=AutoresetMode.DISABLED))
        assert env.reset_arrays().dtype == np.float32
        assert env.reset_arrays(np.array([True, False])).tolist() == [[2, 0], [1, 0]]

    def test_record_episode_statistics_is_accepted(self, sync: Callable[..., SyncVectorEnv]) -> None:
        rollout = rollout_of(VectorEnv(sync(AutoresetMode.DISABLED, RecordEpisodeStatistics)), 4)
        assert column(rollout, "next", "episode_reward") == [[1, 2, 3, 1]] * 2


def test_closing_closes_the_environments(make: Make) -> None:
    env = make(2, 3)
    env.close()
    assert all(counting.closed for counting in counting_envs(env))
    env.close(raise_if_closed=False)
