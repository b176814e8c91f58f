"""A Gymnasium vector environment as TorchRL sees it."""

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
from torchrl.envs.utils import check_env_specs

from torchppo.envs import SerialVectorEnv, VectorEnv, make_vector_env
from torchppo.errors import EnvironmentFailure

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
    """Makes a batch of scripted environments, one for every length."""

    def make_env(*lengths: int, **options: Any) -> VectorEnv:
        return VectorEnv(SerialVectorEnv([partial(counting_env, length=length, **options) for length in lengths]))

    return make_env


def inside(env: VectorEnv) -> list[Any]:
    """The environments of the batch."""
    return list(env.vector.envs)  # type: ignore[attr-defined]


def column(rollout: TensorDict, *key: str) -> list[Any]:
    """`[num_envs, time, 1]` as nested lists `[num_envs][time]`."""
    return list(rollout[key].squeeze(-1).tolist())


def roll(env: VectorEnv, steps: int, **options: Any) -> TensorDict:
    return env.rollout(steps, break_when_any_done=False, **options)


class TestTheContractOfTorchRL:
    @pytest.mark.parametrize("space", ACTION_SPACES)
    def test_specs_hold_for_every_action_space(self, space: str, make: Make) -> None:
        check_env_specs(make(3, 4, action_space=ACTION_SPACES[space]), seed=0)

    @pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1"])
    def test_specs_hold_for_gymnasiums_environments(self, name: str) -> None:
        check_env_specs(make_vector_env(name, 2), seed=0)

    def test_the_batch_is_the_environments(self, make: Make) -> None:
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

    def test_data_of_a_rollout_are_not_overwritten_by_later_steps(self, make: Make) -> None:
        env = make(50)
        rollout = roll(env, 3)
        before = rollout.clone()
        roll(env, 3)
        assert (rollout == before).all()


class TestTheFinalObservation:
    @pytest.mark.parametrize("ends", ["terminated", "truncated"])
    def test_of_every_episode_is_in_the_data_and_the_next_episode_follows_it(self, ends: str, make: Make) -> None:
        rollout = roll(make(2, 3, ends=ends), 6)
        assert rollout["observation"].tolist() == [
            [[1, 0], [1, 1], [2, 0], [2, 1], [3, 0], [3, 1]],
            [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]],
        ]
        assert rollout["next", "observation"].tolist() == [
            [[1, 1], [1, 2], [2, 1], [2, 2], [3, 1], [3, 2]],
            [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]],
        ]

    @pytest.mark.parametrize("ends", ["terminated", "truncated"])
    def test_comes_with_the_reason_of_the_end(self, ends: str, make: Make) -> None:
        rollout = roll(make(2, 3, ends=ends), 6)
        done = [[False, True] * 3, [False, False, True] * 2]
        never = [[False] * 6] * 2
        assert column(rollout, "next", "done") == done
        assert column(rollout, "next", ends) == done
        assert column(rollout, "next", "truncated" if ends == "terminated" else "terminated") == never

    def test_may_be_terminated_and_truncated_at_once(self, counting_env: Callable[..., Any]) -> None:
        env = VectorEnv(SerialVectorEnv([lambda: TimeLimit(counting_env(length=2), 2)]))
        rollout = roll(env, 2)
        for key in ("terminated", "truncated", "done"):
            assert column(rollout, "next", key) == [[False, True]]


class TestResets:
    def test_only_the_masked_environments_start_anew(self, make: Make) -> None:
        env = make(10, 10, 10)
        state = roll(env, 4)[:, -1]["next"]
        state["_reset"] = torch.tensor([[False], [True], [False]])
        state = env.reset(state)
        assert state["observation"].tolist() == [[1, 4], [2, 0], [1, 4]]
        assert state["step_count"].tolist() == [[4], [0], [4]]
        assert state["episode_reward"].tolist() == [[4], [0], [4]]

    def test_a_full_reset_starts_all(self, make: Make) -> None:
        env = make(10, 10)
        roll(env, 4)
        state = env.reset()
        assert state["observation"].tolist() == [[2, 0], [2, 0]]
        assert state["step_count"].tolist() == state["episode_reward"].tolist() == [[0], [0]]

    def test_a_finished_environment_is_never_stepped_before_its_reset(self, make: Make) -> None:
        roll(make(1, 2, 3, 5), 30)  # `CountingEnv.step` would refuse


class TestSeeds:
    def test_every_environment_has_its_own_and_a_seed_repeats_them(self, make: Make) -> None:
        seeds = []
        for seed in (3, 3, 4):
            env = make(9, 9, 9)
            env.set_seed(seed)
            env.reset()
            seeds.append([counting.seeds for counting in inside(env)])
        assert seeds[0] == seeds[1]
        assert len({seed for group in (seeds[0], seeds[2]) for [seed] in group}) == 6

    def test_a_seed_counts_for_the_first_episode_alone(self, make: Make) -> None:
        env = make(2, 3)
        env.set_seed(0)
        roll(env, 6)
        for counting in inside(env):
            assert isinstance(counting.seeds[0], int)
            assert counting.seeds[1:] == [None] * (len(counting.seeds) - 1)

    def test_a_seed_waits_for_the_next_full_reset(self, make: Make) -> None:
        env = make(9, 9)
        env.reset()
        env.set_seed(0)
        env.reset_arrays(np.array([True, False]))
        env.reset_arrays()
        first, second = (counting.seeds for counting in inside(env))
        assert first[:2] == [None, None]
        assert first[2] is not None
        assert second[0] is None
        assert second[1] is not None

    def test_a_seed_repeats_a_whole_rollout(self) -> None:
        rollouts = []
        for _ in range(2):
            env = make_vector_env("CartPole-v1", 3)
            env.set_seed(5)
            torch.manual_seed(0)
            rollouts.append(roll(env, 40))
        assert (rollouts[0] == rollouts[1]).all()
        starts = rollouts[0]["observation"][:, 0]
        assert len({tuple(start) for start in starts.tolist()}) == 3


class TestActions:
    def stepped(self, env: VectorEnv, action: Any) -> tuple[torch.Tensor, list[Any]]:
        """The action in the data, and the actions that reached the environments."""
        state = env.reset()
        state["action"] = torch.as_tensor(action)
        stepped = env.step(state)
        return stepped["action"], [counting.actions[-1] for counting in inside(env)]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_are_clipped_on_their_way_to_the_environment_alone(self, dtype: type[np.floating[Any]], make: Make) -> None:
        space = spaces.Box(np.array([-1, 0], dtype), np.array([1, 3], dtype), dtype=dtype)
        policys_own = [[3.0, -2.0], [-0.5, 2.5]]
        action, received = self.stepped(make(9, 9, action_space=space), policys_own)
        assert action.tolist() == policys_own
        assert [row.tolist() for row in received] == [[1.0, 0.0], [-0.5, 2.5]]
        assert all(row.dtype == dtype for row in received)

    @pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(2), spaces.Box(-9, 9, (2,))])
    def test_an_environment_may_change_its_own(self, space: spaces.Space[Any], make: Make) -> None:
        env = make(9, 9, action_space=space)
        for counting in inside(env):
            counting.step = lambda action, step=counting.step: (action.fill(7), step(action))[1]
        action, received = self.stepped(env, np.ones((2, 2), space.dtype))
        assert action.tolist() == [[1, 1], [1, 1]]
        assert [row.tolist() for row in received] == [[7, 7], [7, 7]]

    @pytest.mark.parametrize("status", [0, "no licence"])
    def test_an_environment_that_ends_the_program_has_failed(
        self, status: Any, make: Make, capfd: pytest.CaptureFixture[str]
    ) -> None:
        env = make(9)
        inside(env)[0].step = lambda _: sys.exit(status)
        with pytest.raises(EnvironmentFailure, match=f"an environment failed: SystemExit: {status}"):
            self.stepped(env, [1])
        capfd.readouterr()

    def test_of_an_unbounded_box_are_passed_on(self, make: Make) -> None:
        space = ACTION_SPACES["unbounded box"]
        _, received = self.stepped(make(9, action_space=space), [[300.0, -1e6]])
        assert received[0].tolist() == [300.0, -1e6]

    @pytest.mark.parametrize(
        ("space", "policys_own", "expected"),
        [
            ("discrete", [0, 2], [0, 2]),
            ("discrete from five", [0, 2], [5, 7]),
            ("multi-discrete", [[0, 2], [1, 0]], [[0, 2], [1, 0]]),
            ("multi-discrete from minus one", [[0, 2], [1, 0]], [[-1, 6], [0, 4]]),
        ],
    )
    def test_are_counted_from_zero_in_the_data_and_from_the_start_in_the_environment(
        self, space: str, policys_own: list[Any], expected: list[Any], make: Make
    ) -> None:
        action, received = self.stepped(make(9, 9, action_space=ACTION_SPACES[space]), policys_own)
        assert action.tolist() == policys_own
        assert [value.tolist() for value in received] == expected
        assert all(ACTION_SPACES[space].contains(value) for value in received)

    def test_of_a_multi_binary_space_are_bytes(self, make: Make) -> None:
        action, received = self.stepped(
            make(9, action_space=ACTION_SPACES["multi-binary"]), torch.tensor([[1, 0, 1]], dtype=torch.int8)
        )
        assert action.tolist() == [[1, 0, 1]]
        assert ACTION_SPACES["multi-binary"].contains(received[0])


class TestObservations:
    @pytest.mark.parametrize("bound", [np.inf, 1000.0])
    def test_of_float64_become_float32(self, bound: float, make: Make) -> None:
        env = make(2, observation_space=spaces.Box(-bound, bound, (2,), np.float64))
        rollout = roll(env, 3)
        assert rollout["observation"].dtype == rollout["next", "observation"].dtype == torch.float32
        assert env.observation_spec["observation"].dtype == torch.float32
        assert env.reset_arrays().dtype == np.float32

    def test_of_bytes_stay_bytes(self, make: Make) -> None:
        rollout = roll(make(2, observation_space=spaces.Box(0, 255, (2,), np.uint8)), 3)
        assert rollout["observation"].dtype == torch.uint8

    @pytest.mark.parametrize(
        "space",
        [spaces.Sequence(spaces.Discrete(2)), spaces.MultiBinary([2, 3]), spaces.OneOf([spaces.Discrete(2)])],
        ids=str,
    )
    def test_of_an_unsupported_space_are_refused_by_name(self, space: spaces.Space[Any], make: Make) -> None:
        with pytest.raises(EnvironmentFailure, match=f"observation space {type(space).__name__}.*supported are Box"):
            make(2, observation_space=space)

    @pytest.mark.parametrize("space", [spaces.Tuple([spaces.Text(5)]), spaces.Box(0, 3, (2,), np.int64)], ids=str)
    def test_an_unsupported_action_space_is_refused_by_name(self, space: spaces.Space[Any], make: Make) -> None:
        with pytest.raises(EnvironmentFailure, match=r"action space .* is not supported; supported are Discrete"):
            make(2, action_space=space)


def times_a_hundred(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return TransformReward(env, lambda reward: 100 * float(reward))


class TestEpisodeStatistics:
    def test_reward_and_length_run_through_an_episode_and_start_anew_with_the_next(self, make: Make) -> None:
        rollout = roll(make(2, 3, reward=0.5), 6)
        assert column(rollout, "next", "step_count") == [[1, 2, 1, 2, 1, 2], [1, 2, 3, 1, 2, 3]]
        assert column(rollout, "step_count") == [[0, 1, 0, 1, 0, 1], [0, 1, 2, 0, 1, 2]]
        assert column(rollout, "next", "episode_reward") == [[0.5, 1] * 3, [0.5, 1, 1.5] * 2]
        assert column(rollout, "episode_reward") == [[0, 0.5] * 3, [0, 0.5, 1] * 2]

    def test_the_reward_is_the_environments_own_under_wrappers_that_change_it(self, counting_id: str) -> None:
        env = make_vector_env(counting_id, 2, wrappers=[times_a_hundred])
        rollout = roll(env, 6)
        assert column(rollout, "next", "reward") == [[100.0] * 6] * 2
        assert column(rollout, "next", "episode_reward") == [[1, 2, 3, 1, 2, 3]] * 2

    def test_the_reward_is_the_environments_own_where_a_wrapper_ends_the_episode(self, counting_id: str) -> None:
        two_steps = partial(TimeLimit, max_episode_steps=2)
        rollout = roll(make_vector_env(counting_id, 1, wrappers=[times_a_hundred, two_steps]), 4)
        assert column(rollout, "next", "truncated") == [[False, True, False, True]]
        assert column(rollout, "next", "episode_reward") == [[1, 2, 1, 2]]

    def test_a_wrapper_of_the_users_may_record_episodes_as_well(self, counting_id: str) -> None:
        rollout = roll(make_vector_env(counting_id, 2, wrappers=[RecordEpisodeStatistics]), 6)
        assert column(rollout, "next", "episode_reward") == [[1, 2, 3, 1, 2, 3]] * 2


class TestArrays:
    def test_are_the_same_steps_without_tensordicts(self, make: Make) -> None:
        through_torchrl = roll(make(2, 3, reward=0.5), 6)
        env = make(2, 3, reward=0.5)
        observation = env.reset_arrays()
        for time in range(6):
            expected = through_torchrl[:, time]
            np.testing.assert_array_equal(observation, expected["observation"].numpy())
            env.send(np.zeros(2, np.int64))
            arrays = env.receive()
            for key in ("observation", "reward", "terminated", "truncated"):
                array = getattr(arrays, key)
                np.testing.assert_array_equal(array, expected["next", key].numpy().reshape(array.shape), err_msg=key)
            done = arrays.terminated | arrays.truncated
            observation = env.reset_arrays(done) if done.any() else arrays.observation


class TestVectorEnvironmentsOfGymnasium:
    @pytest.fixture
    def sync(self, counting_env: Callable[..., Any]) -> Callable[..., SyncVectorEnv]:
        def make_sync(mode: AutoresetMode, *wrappers: Callable[[Any], Any]) -> SyncVectorEnv:
            def one() -> Any:
                env = counting_env()
                for wrapper in wrappers:
                    env = wrapper(env)
                return env

            return SyncVectorEnv([one, one], autoreset_mode=mode)

        return make_sync

    @pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
    def test_that_reset_by_themselves_are_refused_with_the_way_out(
        self, mode: AutoresetMode, sync: Callable[..., SyncVectorEnv]
    ) -> None:
        with pytest.raises(EnvironmentFailure, match=r"resets by itself \(.*\); make it with AutoresetMode\.DISABLED"):
            VectorEnv(sync(mode))

    @pytest.mark.parametrize(
        "options",
        [
            {"observation_space": spaces.Dict({"a": spaces.Discrete(2)})},
            {"observation_space": spaces.Discrete(2, start=1)},
            {"action_space": spaces.Tuple([spaces.Discrete(2)])},
        ],
        ids=str,
    )
    def test_with_spaces_that_are_not_plain_are_refused(
        self, options: dict[str, Any], counting_env: Callable[..., Any]
    ) -> None:
        vector = SyncVectorEnv([partial(counting_env, **options)], autoreset_mode=AutoresetMode.DISABLED)
        with pytest.raises(EnvironmentFailure, match=r"cannot have the spaces .*SubprocessVectorEnv can"):
            VectorEnv(vector)

    def test_that_do_not_are_accepted_and_seeded(self, sync: Callable[..., SyncVectorEnv]) -> None:
        env = VectorEnv(sync(AutoresetMode.DISABLED))
        env.set_seed(0)
        rollout = roll(env, 4)
        assert rollout["next", "observation"].tolist() == [[[1, 1], [1, 2], [1, 3], [2, 1]]] * 2
        assert len({counting.seeds[0] for counting in inside(env)}) == 2

    def test_of_double_precision_give_the_single_one_of_their_spec(self, counting_env: Callable[..., Any]) -> None:
        one = partial(counting_env, observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float64))
        env = VectorEnv(SyncVectorEnv([one, one], autoreset_mode=AutoresetMode.DISABLED))
        assert env.reset_arrays().dtype == np.float32
        assert env.reset_arrays(np.array([True, False])).tolist() == [[2, 0], [1, 0]]

    def test_that_record_episodes_are_accepted(self, sync: Callable[..., SyncVectorEnv]) -> None:
        rollout = roll(VectorEnv(sync(AutoresetMode.DISABLED, RecordEpisodeStatistics)), 4)
        assert column(rollout, "next", "episode_reward") == [[1, 2, 3, 1]] * 2


def test_closing_closes_the_environments(make: Make) -> None:
    env = make(2, 3)
    env.close()
    assert all(counting.closed for counting in inside(env))
    env.close(raise_if_closed=False)
