"""Vector environments that reset automatically keep the contract of `VectorEnv` in every autoreset mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper

from torchppo import Collector, make_actor_critic, mlp
from torchppo.envs import VectorEnv, make_env
from torchppo.envs.native.autoreset import NextStepReset
from torchppo.errors import ConfigurationError, EnvironmentFailure
from torchppo.modules.features.recurrent import GRU
from torchppo.modules.heads.continuous import gsde
from torchppo.pipelines.episodes import evaluate
from torchppo.pipelines.metrics.episode_statistics import EpisodeStatistics


class Native(VectorWrapper):
    """A vector environment that cannot reset single environments, such as Gymnasium's native CartPole."""

    @property
    def unwrapped(self) -> Any:
        return self

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self.env.reset(seed=seed)


def make_vector(env: Callable[..., Any], mode: AutoresetMode, lengths: tuple[int, ...], *, native: bool) -> VectorEnv:
    vector = SyncVectorEnv([lambda n=n: env(length=n, ends="truncated") for n in lengths], autoreset_mode=mode)
    return VectorEnv(Native(vector) if native else vector)


def collect(env: VectorEnv, steps: int, **options: Any) -> Any:
    actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp, **options)
    collector = Collector(env, actor, frames_per_env=steps, total_frames=steps * env.num_envs)
    return next(iter(collector))


EXACT = [
    (AutoresetMode.DISABLED, False),
    (AutoresetMode.SAME_STEP, False),
    (AutoresetMode.SAME_STEP, True),
    (AutoresetMode.NEXT_STEP, False),
]


@pytest.mark.parametrize(("mode", "native"), EXACT)
def test_the_data_is_that_of_separate_environments(
    mode: AutoresetMode, native: bool, counting_env: Callable[..., Any]
) -> None:
    rollout = collect(make_vector(counting_env, mode, (2, 3), native=native), 6)
    assert rollout["observation"].tolist() == [
        [[1, 0], [1, 1], [2, 0], [2, 1], [3, 0], [3, 1]],
        [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]],
    ]
    assert rollout["next", "observation"][0].tolist() == [[1, 1], [1, 2], [2, 1], [2, 2], [3, 1], [3, 2]]
    assert rollout["next", "truncated"].squeeze(-1).int().tolist() == [[0, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1]]
    assert (rollout["next", "reward"] == 1).all()


def test_episodes_that_end_together_are_reset_together(counting_env: Callable[..., Any]) -> None:
    env = make_vector(counting_env, AutoresetMode.NEXT_STEP, (2, 2), native=True)
    assert isinstance(env.vector.vector, NextStepReset)
    rollout = collect(env, 5)
    assert rollout["observation"][1].tolist() == [[1, 0], [1, 1], [2, 0], [2, 1], [3, 0]]


class TestSkippedSteps:
    @pytest.fixture
    def env(self, counting_env: Callable[..., Any]) -> VectorEnv:
        return make_vector(counting_env, AutoresetMode.NEXT_STEP, (2, 4, 4), native=True)

    def test_are_replaced_by_the_transition_of_another_environment(self, env: VectorEnv) -> None:
        rollout = collect(env, 4)
        skipped, source = rollout[0, 2], rollout[1, 2]
        for key in ("observation", "action", "action_log_prob", "logits"):
            torch.testing.assert_close(skipped[key], source[key], rtol=0, atol=0)
        torch.testing.assert_close(skipped["next", "observation"], source["next", "observation"], rtol=0, atol=0)
        assert skipped["next", "reward"] == 1.0
        flags = [bool(skipped["next", name]) for name in ("terminated", "truncated", "done")]
        assert flags == [False, True, True]
        assert skipped["is_init"]
        assert rollout["observation"][0].tolist() == [[1, 0], [1, 1], [1, 2], [2, 0]]
        assert rollout["next", "observation"][0, 1].tolist() == [1, 2], "the true final observation is kept"

    def test_at_the_start_of_a_rollout_are_replaced_too(self, env: VectorEnv) -> None:
        actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
        rollouts = list(Collector(env, actor, frames_per_env=2, total_frames=12))
        assert rollouts[1]["observation"][0].tolist() == [[1, 2], [2, 0]]
        assert rollouts[1]["next", "observation"][0].tolist() == [[1, 3], [2, 1]]

    def test_are_no_episodes(self, env: VectorEnv) -> None:
        statistics = EpisodeStatistics()
        statistics.update(collect(env, 5))
        assert sorted(statistics.episodes) == [(2.0, 2), (2.0, 2), (4.0, 4), (4.0, 4)]
        actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
        assert sorted(evaluate(actor, env, 6).lengths) == [2, 2, 4, 4, 4, 4]

    def test_are_replaced_for_persistent_noise_but_not_for_a_memory(self, counting_env: Callable[..., Any]) -> None:
        box = partial(counting_env, action_space=spaces.Box(-1.0, 1.0, (1,)))
        env = make_vector(box, AutoresetMode.NEXT_STEP, (2, 4, 4), native=True)
        make = partial(make_actor_critic, env.observation_spec, env.full_action_spec["action"], body=mlp)
        actor, _ = make(head=gsde)
        rollout = next(iter(Collector(env, actor, frames_per_env=4, total_frames=12)))
        for key in ("observation", "action", "action_log_prob"):
            torch.testing.assert_close(rollout[0, 2][key], rollout[1, 2][key], rtol=0, atol=0)
        log_prob = actor.get_dist(rollout.select("observation", "is_init")).log_prob(rollout["action"])
        torch.testing.assert_close(rollout["action_log_prob"], log_prob)
        with pytest.raises(ConfigurationError, match="policies with a memory need"):
            collect(env, 4, memory=partial(GRU, width=6))

    def test_have_no_length_for_torchrl_collectors(self, env: VectorEnv) -> None:
        rollout = env.rollout(4, break_when_any_done=False)
        assert rollout["next", "step_count"][0].flatten().tolist() == [1, 2, 0, 1]
        assert rollout["observation"][0, 2].tolist() == rollout["next", "observation"][0, 2].tolist() == [1, 2]


def test_an_episode_that_has_not_ended_is_not_reset_alone(counting_env: Callable[..., Any]) -> None:
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        env = make_vector(counting_env, mode, (4, 4), native=True)
        env.reset_arrays()
        env.send(np.zeros(2, np.int64))
        env.receive()
        with pytest.raises(EnvironmentFailure, match="has not ended"):
            env.reset_arrays(np.array([True, False]))


def test_the_native_cartpole_of_gymnasium_works() -> None:
    env = make_env(gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point"))
    rollout = collect(env, 100)
    assert (rollout["next", "reward"] == 1).all(), "a skipped step would have the reward 0"
    assert rollout["next", "observation"].isfinite().all()


def test_metadata_without_an_autoreset_mode_raises(counting_env: Callable[..., Any]) -> None:
    vector = SyncVectorEnv([counting_env])
    vector.metadata = {}
    with pytest.raises(EnvironmentFailure, match=r"metadata\['autoreset_mode'\]"):
        VectorEnv(vector)
