"""The memory task Recall, and the returns of policies with and without memory."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from torchppo.envs import make_env
from torchppo.envs.recall import Recall
from torchppo.errors import ConfigurationError


def rollout_episode(
    env: Recall, answer: int | None, seed: int | None = None
) -> tuple[NDArray[np.float32], list[float]]:
    """Observations `[delay + 3, num_cues + 2]` and rewards of an episode; `None` answers with the cue."""
    observation, _ = env.reset(seed=seed)
    cue = int(observation[:-2].argmax())
    observations, rewards, terminated = [observation], [], False
    while not terminated:
        observation, reward, terminated, truncated, _ = env.step(np.int64(cue if answer is None else answer))
        assert not truncated
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), rewards


class TestEpisode:
    @given(st.integers(2, 6), st.integers(0, 5), st.integers(0, 1000))
    @settings(max_examples=30)
    def test_an_episode_is_a_cue_distractors_and_a_question(self, num_cues: int, delay: int, seed: int) -> None:
        env = Recall(num_cues, delay)
        observations, rewards = rollout_episode(env, None, seed)
        assert observations.shape == (delay + 3, num_cues + 2)
        assert len(rewards) == delay + 2
        assert all(env.observation_space.contains(observation) for observation in observations)
        symbols, is_cue, is_question = observations[:, :-2], observations[:, -2], observations[:, -1]
        assert symbols.sum(-1).tolist() == [1.0] * (delay + 1) + [0.0, 0.0]
        assert is_cue.tolist() == [1.0] + [0.0] * (delay + 2)
        assert is_question.tolist() == [0.0] * (delay + 1) + [1.0, 0.0]
        assert rewards == [0.0] * (delay + 1) + [1.0]

    def test_a_seed_repeats_an_episode_and_the_next_episode_differs(self) -> None:
        env = Recall()
        first, _ = rollout_episode(env, 0, seed=5)
        second, _ = rollout_episode(env, 0)
        repeated, _ = rollout_episode(Recall(), 0, seed=5)
        np.testing.assert_array_equal(first, repeated)
        assert (first != second).any()

    def test_cues_and_distractors_are_uniform(self) -> None:
        env = Recall(4, 8)
        episodes = np.stack([rollout_episode(env, 0, seed)[0] for seed in range(400)])
        frequencies = episodes[:, :9, :-2].mean(0)  # [9, 4]; the standard deviation for 400 draws is 0.022
        np.testing.assert_allclose(frequencies, 0.25, atol=0.09)


class TestReward:
    def test_the_return_is_one_for_the_right_answer(self) -> None:
        env = Recall(4, 3)
        assert [sum(rollout_episode(env, None, seed)[1]) for seed in range(20)] == [1.0] * 20

    @pytest.mark.parametrize("answer", [0, 3])
    def test_the_mean_return_of_a_guess_is_one_over_num_cues(self, answer: int) -> None:
        env = Recall(4, 2)
        mean = np.mean([sum(rollout_episode(env, answer, seed)[1]) for seed in range(1000)])
        assert abs(mean - 1 / 4) < 4 * np.sqrt(1 / 4 * 3 / 4 / 1000)

    def test_the_last_distractor_does_not_predict_the_cue(self) -> None:
        env, hits = Recall(4, 2), []
        for seed in range(1000):
            observations, _ = rollout_episode(env, 0, seed)
            hits.append(observations[0, :-2].argmax() == observations[2, :-2].argmax())
        assert abs(np.mean(hits) - 1 / 4) < 4 * np.sqrt(1 / 4 * 3 / 4 / 1000)


def test_recall_is_registered_with_gymnasium() -> None:
    assert gymnasium.make("torchppo/Recall-v0").unwrapped.delay == 32
    env = make_env("torchppo/Recall-v0", 2, num_cues=3, delay=1)
    rollout = env.rollout(7, break_when_any_done=False)
    assert rollout["observation"].shape == (2, 7, 5)
    assert rollout["next", "terminated"].squeeze(-1).tolist() == [[False, False, True, False, False, True, False]] * 2


@pytest.mark.parametrize(("option", "value"), [("num_cues", 1), ("delay", -1)])
def test_an_option_out_of_range_raises(option: str, value: int) -> None:
    options: dict[str, Any] = {option: value}
    with pytest.raises(ConfigurationError, match=f"{option}={value}"):
        Recall(**options)
