"""A memory task: recall the first symbol of an episode."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..errors import ConfigurationError


class Recall(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Shows a cue, then `delay` distractors that look like cues, then a question: which symbol was the cue?

    An episode has `delay + 2` steps: the policy acts on the cue, on every distractor and on the question. Its last
    action is the answer. It is rewarded with 1.0 if it equals the cue, else with 0.0, and terminates the episode.
    All other actions have no effect. The expected return of a policy without memory is at most 1 / `num_cues`.

    Observations are float32 `[num_cues + 2]`: the symbol as a one-hot vector, a flag for the cue and a flag for the
    question, which shows no symbol. The observation after the answer is zero.

    Args:
        num_cues: number of symbols, at least 2. The cue and the distractors are drawn uniformly from them.
        delay: number of distractors, at least 0.

    Raises:
        ConfigurationError: if `num_cues` or `delay` is too small.

    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, num_cues: int = 4, delay: int = 32) -> None:
        if num_cues < 2:
            raise ConfigurationError(f"env.num_cues={num_cues} must be at least 2")
        if delay < 0:
            raise ConfigurationError(f"env.delay={delay} must be at least 0")
        self.num_cues, self.delay = num_cues, delay
        self.observation_space = spaces.Box(0.0, 1.0, (num_cues + 2,), np.float32)
        self.action_space = spaces.Discrete(num_cues)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._num_steps = 0
        self._cue = self.np_random.integers(self.num_cues)
        observation = self._one_hot(self._cue)
        observation[-2] = 1.0
        return observation, {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._num_steps += 1
        if self._num_steps <= self.delay:
            return self._one_hot(self.np_random.integers(self.num_cues)), 0.0, False, False, {}
        observation = np.zeros(self.num_cues + 2, np.float32)
        if self._num_steps == self.delay + 1:
            observation[-1] = 1.0
            return observation, 0.0, False, False, {}
        return observation, float(action == self._cue), True, False, {}

    def _one_hot(self, symbol: np.int64) -> NDArray[np.float32]:
        observation = np.zeros(self.num_cues + 2, np.float32)
        observation[symbol] = 1.0
        return observation
