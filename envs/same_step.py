"""A vector environment that resets by itself, as one that is told to."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from ..errors import EnvironmentFailure


class ResetWhenTold(VectorWrapper[Any, Any, Any, Any]):
    """Shows an environment of `AutoresetMode.SAME_STEP` as one of `AutoresetMode.DISABLED`.

    A step returns the true last observation of an episode, which the environment puts into
    `info["final_obs"]`; the first one of the next episode is kept until `reset` asks for it.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        """Wrap an environment that resets in the step that ends an episode."""
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.DISABLED}
        self._first: NDArray[Any] = np.empty(0)
        self._ended = np.zeros(env.num_envs, np.bool_)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or hand out the new episodes of those in `options["reset_mask"]`.

        Raises:
            EnvironmentFailure: if an episode in the mask has not ended.

        """
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self._first, info = self.env.reset(seed=seed)
            return self._first, info
        if (mask & ~self._ended).any():
            raise EnvironmentFailure(f"{self.env} cannot leave an episode before its end")
        return self._first, {}

    def step(self, actions: NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every environment; the observations are the true ones, also where an episode ended."""
        self._first, reward, terminated, truncated, info = self.env.step(actions)
        self._ended = terminated | truncated
        observation = self._first
        if self._ended.any():
            observation = observation.copy()
            observation[self._ended] = info["final_obs"][self._ended]
        return observation, reward, terminated, truncated, info
