"""Statistics of the training episodes."""

from __future__ import annotations

from collections import deque
from operator import itemgetter
from typing import Any

from tensordict import TensorDictBase

from ..checks import require_entries
from ..distributed import gathered


class EpisodeStatistics:
    """Returns and lengths of the last 100 training episodes of all ranks.

    Attributes:
        episodes: `(return, length)` of each episode, oldest first.
        num_episodes: number of episodes that have ended since training began.

    """

    def __init__(self) -> None:
        self.episodes: deque[tuple[float, int]] = deque(maxlen=100)
        self.num_episodes = 0

    def update(self, rollout: TensorDictBase) -> None:
        """Add the episodes that ended in a rollout `[num_envs, time]`, in the order of time."""
        require_entries(rollout, ("next", "episode_reward"), ("next", "step_count"))
        data = rollout["next"].select("done", "episode_reward", "step_count").transpose(0, 1)
        done = data["done"]
        columns = (done.nonzero()[:, 0], data["episode_reward"][done], data["step_count"][done])
        ended = gathered([*zip(*(column.tolist() for column in columns), strict=True)])
        self.episodes.extend((reward, length) for _, reward, length in sorted(ended, key=itemgetter(0)))
        self.num_episodes += len(ended)

    @property
    def metrics(self) -> dict[str, float]:
        """Mean return and length; empty before the first episode has ended."""
        if not self.episodes:
            return {}
        rewards, lengths = zip(*self.episodes, strict=True)
        return {
            "rollout/ep_rew_mean": sum(rewards) / len(rewards),
            "rollout/ep_len_mean": sum(lengths) / len(lengths),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"num_episodes": self.num_episodes, "episodes": list(self.episodes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_episodes = state["num_episodes"]
        self.episodes.clear()
        self.episodes.extend(tuple(episode) for episode in state["episodes"])
