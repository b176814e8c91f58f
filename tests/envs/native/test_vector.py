"""Native vector environments return the data of a plain loop, in every autoreset mode."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.objectives.value import GAE

from torchppo import Collector, make_actor_critic, make_env, mlp
from torchppo.envs import VectorEnv
from torchppo.envs.guards import Watchdog
from torchppo.errors import ConfigurationError, EnvironmentFailure
from torchppo.modules.features.recurrent import GRU

GAMMA = 0.5


def collect(env: Any, steps: int, rollouts: int = 1) -> Any:
    actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
    total = steps * env.num_envs * rollouts
    return torch.cat([*Collector(env, actor, frames_per_env=steps, total_frames=total)], 1)


def value(observation: Any) -> Any:
    return 10.0 * observation[..., :1] + observation[..., 1:]


@pytest.mark.parametrize("mode", ["SameStep", "Disabled", "NextStep"])
def test_truncation_bootstraps_from_the_final_observation_of_a_plain_loop(mode: str, counting_vector: Any) -> None:
    """In the mode NextStep, episodes that end together have no skipped step."""
    num_envs = 1 if mode == "NextStep" else 3
    env = make_env(counting_vector, num_envs, vectorization="native", mode=mode, info_keys=["score"])
    critic = TensorDictModule(value, ["observation"], ["state_value"])
    rollout = GAE(gamma=GAMMA, lmbda=0.0, value_network=critic)(collect(env, 4, 2))
    for index in range(num_envs):
        episode, count = 1, 0
        for step in range(8):
            after, is_last = count + 1, count + 1 == 2 + index
            now = rollout[index, step]
            assert now["observation"].tolist() == [episode, count]
            assert now["next", "observation"].tolist() == [episode, after]
            assert (bool(now["next", "truncated"]), bool(now["is_init"])) == (is_last, count == 0)
            expected = 1.0 + GAMMA * (10 * episode + after) - (10 * episode + count)
            assert float(now["advantage"]) == expected
            assert int(now["next", "step_count"]) == float(now["next", "episode_reward"]) == after
            score = float(now["next", "episode_info", "score"])
            assert score == episode if is_last else np.isnan(score)
            episode, count = (episode + 1, 0) if is_last else (episode, after)


class TestCartPole:
    """Gymnasium's native CartPole."""

    @pytest.fixture
    def make(self) -> Callable[..., VectorEnv]:
        return partial(make_env, "CartPole-v1", vectorization="native")

    def test_the_data_is_that_of_single_environments_from_the_same_states(self, make: Callable[..., VectorEnv]) -> None:
        env = make(3, max_episode_steps=20)
        env.set_seed(0)
        rollout = collect(env, 60)
        assert rollout["next", "terminated"].any()
        assert rollout["next", "truncated"].any()
        single = gymnasium.make("CartPole-v1").unwrapped
        single.reset(seed=0)
        for index in range(3):
            for step in range(60):
                now = rollout[index, step]
                if now["is_init"]:
                    single.state, count = now["observation"].double().numpy(), 0  # type: ignore[attr-defined]
                observation, reward, terminated, _, _ = single.step(int(now["action"]))
                count += 1
                np.testing.assert_allclose(now["next", "observation"], observation, rtol=1e-4, atol=1e-6)
                assert float(now["next", "reward"]) == reward
                assert bool(now["next", "terminated"]) == terminated
                assert bool(now["next", "truncated"]) == (count == 20)
                single.steps_beyond_terminated = None  # type: ignore[attr-defined] # steps after the end are allowed

    def test_seeds_are_reproducible_and_states_differ(self, make: Callable[..., VectorEnv]) -> None:
        first, second = make(4), make(4)
        for env in (first, second):
            env.set_seed(3)
        assert torch.equal(first.reset()["observation"], second.reset()["observation"])
        assert len(first.reset()["observation"].unique(dim=0)) == 4

    def test_the_state_continues_in_another_environment_bit_for_bit(self, make: Callable[..., VectorEnv]) -> None:
        first, second = make(3), make(3)
        assert first.vector.set_resume_class() == "snapshot"
        first.set_seed(1)
        first.reset_arrays()
        generator = np.random.default_rng(0)
        play(first, generator.integers(0, 2, (30, 3)))
        states, actions = first.vector.env_states(), generator.integers(0, 2, (40, 3))
        assert len(states) == 3
        second.vector.load_env_states(states)
        assert play(first, actions) == play(second, actions)

    def test_policies_with_a_memory_work(self, make: Callable[..., VectorEnv]) -> None:
        env = make(2, max_episode_steps=15)
        body, memory = partial(mlp, num_cells=[8]), partial(GRU, width=6)
        actor, _ = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=body, memory=memory)
        assert next(iter(Collector(env, actor, frames_per_env=40, total_frames=80)))["next", "done"].any()


def play(env: VectorEnv, actions: Any) -> list[Any]:
    """Return the results of steps; begin new episodes where they end."""
    results = []
    for action in actions:
        env.send(action)
        observation, _, terminated, truncated, _ = env.receive()
        results.append((observation.tolist(), terminated.tolist()))
        if (ended := terminated | truncated).any():
            results.append(env.reset_arrays(ended).tolist())
    return results


def test_a_step_of_a_wrong_shape_raises(counting_vector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(counting_vector(2))
    env.reset_arrays()
    wrong = (np.zeros((2, 2)), np.zeros(3), np.zeros(2, bool), np.zeros(2, bool), {})
    monkeypatch.setattr(counting_vector, "step", lambda *_: wrong)
    with pytest.raises(EnvironmentFailure, match=r"reward of shape \(3,\)"):
        env.send(np.zeros(2, np.int64))


def test_a_step_that_does_not_return_is_ended(counting_vector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(counting_vector, 2, vectorization="native", step_timeout=0.1)
    env.reset_arrays()
    monkeypatch.setattr(counting_vector, "step", lambda *_: time.sleep(20))
    with Watchdog(lambda _: None), pytest.raises(EnvironmentFailure, match=r"env.step_timeout=0\.1"):
        env.send(np.zeros(2, np.int64))


def test_calls_reach_the_vector_environment_if_it_supports_them(counting_vector: Any, counting_env: Any) -> None:
    vector = gymnasium.vector.SyncVectorEnv([counting_env, counting_env])
    assert make_env(vector).get_attr("length") == (3, 3)
    with pytest.raises(ConfigurationError, match=r"get_attr\('length'\)"):
        make_env(counting_vector(2)).get_attr("length")
