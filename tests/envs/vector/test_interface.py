"""Entries of `info`, methods, attributes and unusual rewards of environments, in this process and in workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.envs import RewardScaling, TransformedEnv

from torchppo import Collector, make_actor_critic, mlp
from torchppo.envs import VectorEnv, make_env
from torchppo.envs.vector import forked_call
from torchppo.envs.wrappers import RawEpisodeReward
from torchppo.errors import ConfigurationError, EnvironmentFailure
from torchppo.pipelines.episodes import evaluate
from torchppo.pipelines.metrics.episode_statistics import EpisodeStatistics


class Reports(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Reports the step of the episode as `info["progress"]`, and a success in every second episode, at its end."""

    factor = 1.0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        episode, step = observation
        info = {"progress": self.factor * step}
        return (
            observation,
            reward,
            terminated,
            truncated,
            info | ({"is_success": episode % 2 == 0} if step == 3 else {}),
        )

    def scaled(self, value: float, *, by: float = 1.0) -> float:
        if by == 0:
            raise ValueError("by is 0")
        return value * by * self.factor


@pytest.fixture(params=[0, 2], ids=["serial", "workers"])
def env(request: pytest.FixtureRequest, counting_id: str) -> Iterator[VectorEnv]:
    made = make_env(counting_id, 3, num_workers=request.param, wrappers=[Reports], info_keys=["progress"])
    yield made
    made.close()


def rollouts_of(env: Any, steps: int, total: int) -> list[Any]:
    actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
    return list(Collector(env, actor, frames_per_env=steps, total_frames=total))


class TestInfo:
    def test_the_last_step_of_an_episode_counts(self, env: VectorEnv) -> None:
        (rollout,) = rollouts_of(env, 6, 18)
        nan = float("nan")
        info = rollout["next", "episode_info"]
        expected = {"progress": [nan, nan, 3.0] * 2, "is_success": [nan, nan, 0.0, nan, nan, 1.0]}
        assert sorted(info.keys()) == sorted(expected)
        for key, values in expected.items():
            np.testing.assert_equal(info[key].squeeze(-1).numpy(), [values] * 3)

    def test_rollouts_through_tensordicts_contain_success_when_it_is_listed(self, env: VectorEnv) -> None:
        env.list_all_info_keys()
        (rollout,) = rollouts_of(TransformedEnv(env, RewardScaling(0.0, 1.0)), 6, 18)
        nan = float("nan")
        np.testing.assert_equal(
            rollout["next", "episode_info", "is_success"].squeeze(-1).numpy(), [[nan, nan, 0.0, nan, nan, 1.0]] * 3
        )
        assert rollout["next", "episode_info", "success"].isnan().all()
        statistics = EpisodeStatistics()
        statistics.update(rollout)
        assert (statistics.metrics["rollout/success_rate"], statistics.metrics["rollout/progress"]) == (0.5, 3.0)

    def test_training_and_evaluation_report_means(self, env: VectorEnv) -> None:
        statistics = EpisodeStatistics()
        for rollout in rollouts_of(env, 4, 36):
            statistics.update(rollout)
        assert {key: value for key, value in statistics.metrics.items() if "ep_" not in key} == {
            "rollout/success_rate": 0.5,
            "rollout/progress": 3.0,
            "rollout/truncated": 0.0,
        }
        restored = EpisodeStatistics()
        restored.load_state_dict(statistics.state_dict())
        assert restored.metrics == statistics.metrics
        actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
        metrics = evaluate(actor, env, 6).metrics
        assert metrics["eval/success_rate"] == 0.5
        assert metrics["eval/progress"] == 3.0

    def test_listed_keys_are_in_the_specs_and_steps_of_torchrl(self, env: VectorEnv) -> None:
        rollout = env.rollout(6, break_when_any_done=False)
        assert list(env.observation_spec["episode_info"].keys()) == ["progress"]
        nan = float("nan")
        np.testing.assert_equal(rollout["next", "episode_info", "progress"][0].flatten().numpy(), [nan, nan, 3.0] * 2)

    def test_a_key_that_is_not_reported_is_named_in_a_warning(self, counting_id: str) -> None:
        env = make_env(counting_id, 2, wrappers=[Reports], info_keys=["progres"])
        with pytest.warns(RuntimeWarning, match=r"info\['progres'\].*progress, is_success") as caught:
            rollouts_of(env, 6, 12)
        assert len(caught) == 1

    @pytest.mark.parametrize("value", [np.float32(2), np.array([2]), torch.tensor([2.0]), 2, True])
    def test_values_may_be_arrays_and_tensors(self, value: Any) -> None:
        from torchppo.envs.vector.episode_info import info_number

        assert info_number("x", value) == float(np.ravel(value)[0])

    @pytest.mark.parametrize("value", [float("inf"), -np.inf, np.nan, 1e300])
    def test_values_that_are_not_finite_are_left_out(self, value: float, counting_env: Callable[..., Any]) -> None:
        class NotFinite(Reports):
            def step(self, action: Any) -> Any:
                return *self.env.step(action)[:4], {"distance": value, "is_success": value}

        (rollout,) = rollouts_of(make_env(lambda: NotFinite(counting_env()), info_keys=["distance"]), 4, 4)
        statistics = EpisodeStatistics()
        statistics.update(rollout)
        assert {name for name in statistics.metrics if "distance" in name or "success" in name} == set()

    @pytest.mark.parametrize("name", ["mean_reward", "return_mean", "episodes", "shape"])
    def test_names_of_other_metrics_are_rejected(self, name: str) -> None:
        with pytest.raises(ConfigurationError, match=rf"env\.info_keys: '{name}'"):
            make_env("CartPole-v1", info_keys=[name])

    def test_an_entry_that_is_not_a_number_is_named(self, counting_env: Callable[..., Any]) -> None:
        class Text(Reports):
            def step(self, action: Any) -> Any:
                return *self.env.step(action)[:4], {"note": "abc", "is_success": "yes"}

        with pytest.raises(EnvironmentFailure, match=r"info\['note'\] is a str"):
            rollouts_of(make_env(lambda: Text(counting_env()), info_keys=["note"]), 4, 4)
        rollouts_of(make_env(lambda: Text(counting_env())), 4, 4)  # a success that is not a number is left out

    def test_info_keys_must_be_a_list(self) -> None:
        with pytest.raises(ConfigurationError, match=r"env\.info_keys=score.*\[name\]"):
            make_env("CartPole-v1", info_keys="score")


class TestCalls:
    def test_methods_and_attributes_of_wrappers_and_environments_are_reached(self, env: VectorEnv) -> None:
        assert env.call("scaled", 2.0, by=3.0) == (6.0,) * 3
        env.set_attr("factor", [1.0, 2.0, 3.0])
        assert env.get_attr("factor") == (1.0, 2.0, 3.0)
        env.set_attr("length", 5)
        assert env.get_attr("length") == (5,) * 3
        rollout = env.rollout(5, break_when_any_done=False)
        assert rollout["next", "done"].squeeze(-1).int().tolist() == [[0, 0, 0, 0, 1]] * 3

    def test_large_arguments_and_results_pass(self, env: VectorEnv) -> None:
        env.set_attr("actions", [[np.zeros(300_000)]] * 3)
        assert all(actions[0].shape == (300_000,) for actions in env.get_attr("actions"))

    def test_errors_leave_the_environments_usable(self, env: VectorEnv) -> None:
        with pytest.raises(EnvironmentFailure, match=r"'no_such'"):
            env.set_attr("no_such", 1)
        with pytest.raises(EnvironmentFailure, match=r"'scaled'.*by is 0"):
            env.call("scaled", 1.0, by=0)
        with pytest.raises(ConfigurationError, match="2 values for 3 environments"):
            env.set_attr("factor", [1, 2])
        assert env.call("scaled", 1.0) == (1.0,) * 3


REWARDS = [2, True, np.float16(2), np.array(2.0), np.array([2]), torch.tensor([2.0])]
FLAGS: list[Callable[[bool], Any]] = [np.bool_, lambda value: np.array([value]), torch.tensor, int]


@pytest.mark.parametrize(
    ("reward", "flag", "num_workers"),
    [
        *((reward, flag, 0) for reward in REWARDS for flag in FLAGS),
        *((*pair, 1) for pair in zip(REWARDS[2:], FLAGS, strict=True)),
    ],
)
def test_rewards_and_flags_may_be_numpy_or_torch(
    reward: Any, flag: Any, num_workers: int, counting_env: Callable[..., Any]
) -> None:
    class Unusual(gymnasium.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            observation, _, terminated, truncated, info = self.env.step(action)
            return observation, reward, flag(terminated), flag(truncated), info

    for wrappers in ([], [RawEpisodeReward]):
        env = make_env(lambda: Unusual(counting_env()), 1, wrappers=wrappers, num_workers=num_workers)
        rollout = env.rollout(3, break_when_any_done=False)
        env.close()
        assert rollout["next", "terminated"].flatten().tolist() == [False, False, True]
        value = float(np.ravel(reward)[0])
        assert rollout["next", "episode_reward"].flatten().tolist() == [value, 2 * value, 3 * value]


@pytest.mark.parametrize("reward", [np.ones(2), "1.0x", [1.0, 2.0]], ids=repr)
def test_a_reward_that_is_not_one_number_is_named(reward: Any, counting_env: Callable[..., Any]) -> None:
    env = make_env(lambda: counting_env(reward=reward))
    env.reset()
    with pytest.raises(EnvironmentFailure, match="as a reward or flag"):
        env.rollout(1)


def test_workers_need_processes_that_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_call.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ConfigurationError, match=r"env\.num_workers=2.*env\.num_workers=0"):
        make_env("CartPole-v1", 2, num_workers=2)
    make_env("CartPole-v1", 2, num_workers="auto").close()


def test_one_environment_is_constructed_once(counting_env: Callable[..., Any]) -> None:
    made: list[Any] = []

    def make() -> Any:
        made.append(counting_env())
        return made[-1]

    rollouts_of(make_env(make, 1), 4, 8)
    assert len(made) == 1
