"""What vector environments that step runs of their environments have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from .arrays import ALL, StepArrays


class RowsVectorEnv(VectorEnv[Any, Any, Any]):
    """Steps the environments in `rows` when it is sent their actions, and resets those it is told to."""

    @abstractmethod
    def send(self, actions: Any, rows: slice = ALL) -> None:
        """Let the environments in `rows` take a step."""

    @abstractmethod
    def receive(self, rows: slice = ALL) -> StepArrays:
        """What the steps in `rows` left behind; an observation is the true one also where an episode ended."""

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment and wait."""
        self.send(actions)
        observation, reward, terminated, truncated, raw = self.receive()
        return observation, reward, terminated, truncated, {"raw_episode_reward": raw}

    def halves(self) -> list[slice]:
        """Two runs of environments that can be stepped apart, or nothing where they cannot."""
        return []
