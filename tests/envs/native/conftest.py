"""A vector environment that counts, without single environments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space


class CountingVector(VectorEnv[Any, Any, Any]):
    """Observations are `[episode, step]`. The episodes of environment `i` are truncated after `2 + i` steps.

    In the last step of an episode, `info["score"]` is the number of the episode.
    """

    def __init__(self, num_envs: int, mode: str = "NextStep") -> None:
        self.num_envs, self.mode = num_envs, AutoresetMode(mode)
        self.metadata = {"autoreset_mode": self.mode}
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (2,))
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.state = np.zeros((num_envs, 2))
        self.ended = np.zeros(num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        self._begin(mask)
        return self.state.astype(np.float32), {}

    def _begin(self, mask: Any) -> None:
        self.state[mask, 0] += 1
        self.state[mask, 1] = 0
        self.ended = self.ended & ~mask

    def step(self, actions: Any) -> Any:
        skipped = self.ended.copy() if self.mode is AutoresetMode.NEXT_STEP else np.zeros(self.num_envs, bool)
        self.state[~skipped, 1] += 1
        self._begin(skipped)
        self.ended = truncated = self.state[:, 1] == np.arange(self.num_envs) + 2
        final, info = self.state.astype(np.float32), {"score": self.state[:, 0].copy(), "_score": truncated}
        if self.mode is AutoresetMode.SAME_STEP:
            info = {"final_obs": final, "final_info": info}
            self._begin(truncated)
        observation = self.state.astype(np.float32)
        return observation, np.where(skipped, 0.0, 1.0), np.zeros(self.num_envs, bool), truncated.copy(), info


@pytest.fixture
def counting_vector() -> type[CountingVector]:
    return CountingVector
