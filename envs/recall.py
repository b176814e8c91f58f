"""A test of memory: what was the first thing that you saw?"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..errors import ConfigurationError


class Recall(gymnasium.Env[NDArray[np.float32], np.int64]):
    """A cue, `delay` distractors that look like cues, and a question: which was the cue?

    An episode is `delay + 2` steps long: the policy acts on the cue, on every distractor and on the question. Its
    last action is the answer, worth 1.0 if it is the cue and else 0.0, and ends the episode; all others have no
    effect. No policy without memory can expect more than 1 / `num_cues`.

    Observations are float32 `[num_cues + 2]`: the symbol as a one-hot vector, whether it is the cue, and whether
    this is the question, which shows no symbol. The one after the answer is zero.

    Args:
        num_cues: how many symbols there are, at least 2; cue and distractors are drawn alike, each one uniformly.
        delay: how many distractors, 0 or more.

    Raises:
        ConfigurationError: for fewer.

    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, num_cues: int = 4, delay: int = 32) -> None:
        """Nothing is drawn yet."""
        if num_cues < 2 or delay < 0:
            raise ConfigurationError(f"Recall needs num_cues={num_cues} of at least 2 and delay={delay} of at least 0")
        self.num_cues, self.delay = num_cues, delay
        self.observation_space = spaces.Box(0.0, 1.0, (num_cues + 2,), np.float32)
        self.action_space = spaces.Discrete(num_cues)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Show the cue."""
        super().reset(seed=seed)
        self._num_steps = 0
        self._cue = self.np_random.integers(self.num_cues)
        observation = self._symbol(self._cue)
        observation[-2] = 1.0
        return observation, {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Show a distractor or the question, or judge the answer."""
        self._num_steps += 1
        if self._num_steps <= self.delay:
            return self._symbol(self.np_random.integers(self.num_cues)), 0.0, False, False, {}
        observation = np.zeros(self.num_cues + 2, np.float32)
        if self._num_steps == self.delay + 1:
            observation[-1] = 1.0
            return observation, 0.0, False, False, {}
        return observation, float(action == self._cue), True, False, {}

    def _symbol(self, symbol: np.int64) -> NDArray[np.float32]:
        observation = np.zeros(self.num_cues + 2, np.float32)
        observation[symbol] = 1.0
        return observation
