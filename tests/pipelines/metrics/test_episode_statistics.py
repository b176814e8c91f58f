"""Returns, lengths and infos of ended episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchppo.pipelines.metrics.episode_statistics import EpisodeStatistics


class TestEpisodeStatistics:
    @staticmethod
    def rollout(done: list[list[int]]) -> TensorDict:
        """Episodes whose return is `10 env + step` and whose length is `step + 1`."""
        ends = torch.tensor(done).bool().unsqueeze(-1)
        envs, steps = (torch.arange(size) for size in ends.shape[:2])
        reward = (10.0 * envs[:, None] + steps).unsqueeze(-1)
        count = (steps + 1).expand(len(envs), -1).unsqueeze(-1)
        entries = {"done": ends, "terminated": ends, "episode_reward": reward, "step_count": count}
        return TensorDict({"next": entries}, ends.shape[:2])

    def test_episodes_are_in_the_order_of_time(self) -> None:
        statistics = EpisodeStatistics()
        statistics.update(self.rollout([[0, 1, 1], [1, 0, 0]]))
        assert list(statistics.episodes) == [(10.0, 1), (1.0, 2), (2.0, 3)]
        assert statistics.metrics == {
            "rollout/ep_rew_mean": np.mean([10, 1, 2]),
            "rollout/ep_rew_std": pytest.approx(np.std([10, 1, 2])),
            "rollout/ep_len_mean": 2.0,
            "rollout/truncated": 0.0,
        }

    def test_only_the_last_100_episodes_count_for_the_mean(self) -> None:
        statistics = EpisodeStatistics()
        statistics.update(self.rollout([[1] * 130]))
        assert statistics.num_episodes == 130
        assert statistics.metrics["rollout/ep_len_mean"] == np.mean(range(31, 131))

    def test_there_are_no_metrics_before_the_first_episode_has_ended(self) -> None:
        statistics = EpisodeStatistics()
        statistics.update(self.rollout([[0, 0]]))
        assert statistics.metrics == {}

    def test_state_dict_restores_the_episodes(self) -> None:
        statistics, other = EpisodeStatistics(), EpisodeStatistics()
        statistics.update(self.rollout([[0, 1, 1]]))
        other.update(self.rollout([[1]]))
        other.load_state_dict(statistics.state_dict())
        assert (other.num_episodes, other.episodes) == (statistics.num_episodes, statistics.episodes)
