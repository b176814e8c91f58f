"""A test of memory, and what can be had in it without one."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from torchppo.envs import make_vector_env
from torchppo.envs.recall import Recall
from torchppo.errors import ConfigurationError


def play(env: Recall, answer: int | None, seed: int | None = None) -> tuple[NDArray[np.float32], list[float]]:
    """Observations `[delay + 3, num_cues + 2]` and rewards of an episode; no answer: that of a perfect memory."""
    observation, _ = env.reset(seed=seed)
    cue = int(observation[:-2].argmax())
    observations, rewards, terminated = [observation], [], False
    while not terminated:
        observation, reward, terminated, truncated, _ = env.step(np.int64(cue if answer is None else answer))
        assert not truncated
        observations.append(observation)
        rewards.append(reward)
    return np.stack(observations), rewards


class TestAnEpisode:
    @given(st.integers(2, 6), st.integers(0, 5), st.integers(0, 1000))
    @settings(max_examples=30)
    def test_is_a_cue_the_distractors_and_a_question(self, num_cues: int, delay: int, seed: int) -> None:
        env = Recall(num_cues, delay)
        observations, rewards = play(env, None, seed)
        assert observations.shape == (delay + 3, num_cues + 2)
        assert len(rewards) == delay + 2
        assert all(env.observation_space.contains(one) for one in observations)
        symbols, is_cue, is_question = observations[:, :-2], observations[:, -2], observations[:, -1]
        assert symbols.sum(-1).tolist() == [1.0] * (delay + 1) + [0.0, 0.0]
        assert is_cue.tolist() == [1.0] + [0.0] * (delay + 2)
        assert is_question.tolist() == [0.0] * (delay + 1) + [1.0, 0.0]
        assert rewards == [0.0] * (delay + 1) + [1.0]

    def test_repeats_with_its_seed_and_differs_from_the_next(self) -> None:
        env = Recall()
        first, _ = play(env, 0, seed=5)
        following, _ = play(env, 0)
        again, _ = play(Recall(), 0, seed=5)
        np.testing.assert_array_equal(first, again)
        assert (first != following).any()

    def test_shows_cues_and_distractors_alike(self) -> None:
        env = Recall(4, 8)
        episodes = np.stack([play(env, 0, seed)[0] for seed in range(400)])
        shares = episodes[:, :9, :-2].mean(0)  # [9, 4]; of 400 draws, the standard deviation is 0.022
        np.testing.assert_allclose(shares, 0.25, atol=0.09)


class TestReward:
    def test_of_a_perfect_memory_is_one(self) -> None:
        env = Recall(4, 3)
        assert [sum(play(env, None, seed)[1]) for seed in range(20)] == [1.0] * 20

    @pytest.mark.parametrize("answer", [0, 3])
    def test_of_a_guess_is_one_in_the_number_of_cues(self, answer: int) -> None:
        env = Recall(4, 2)
        mean = np.mean([sum(play(env, answer, seed)[1]) for seed in range(1000)])
        assert abs(mean - 1 / 4) < 4 * np.sqrt(1 / 4 * 3 / 4 / 1000)

    def test_of_the_last_distractor_is_no_better_than_a_guess(self) -> None:
        env, hits = Recall(4, 2), []
        for seed in range(1000):
            observations, _ = play(env, 0, seed)
            hits.append(observations[0, :-2].argmax() == observations[2, :-2].argmax())
        assert abs(np.mean(hits) - 1 / 4) < 4 * np.sqrt(1 / 4 * 3 / 4 / 1000)


def test_it_is_registered_with_its_options() -> None:
    assert gymnasium.make("torchppo/Recall-v0").unwrapped.delay == 32
    env = make_vector_env("torchppo/Recall-v0", 2, num_cues=3, delay=1)
    rollout = env.rollout(7, break_when_any_done=False)
    assert rollout["observation"].shape == (2, 7, 5)
    assert rollout["next", "terminated"].squeeze(-1).tolist() == [[False, False, True, False, False, True, False]] * 2


@pytest.mark.parametrize("options", [{"num_cues": 1}, {"delay": -1}])
def test_what_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="Recall needs"):
        Recall(**options)
