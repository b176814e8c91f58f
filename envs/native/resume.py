"""Tests whether the episodes of a vector environment can continue after a restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space

from ..resume.resumability import resume_class
from .autoreset import Vector


class WholeBatch(gymnasium.Env[Any, Any]):
    """A vector environment as one environment that never ends. A step also resets environments whose episode ends."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        self.observation_space = batch_space(vector.single_observation_space, vector.num_envs)
        self.action_space = batch_space(vector.single_action_space, vector.num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.vector.reset(seed=seed)[0], {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        results = [np.array(result) for result in self.vector.step(action)[:4]]
        ended = results[2] | results[3]
        if ended.any():
            results.append(np.array(self.vector.reset(options={"reset_mask": ended})[0]))
        return results, 0.0, False, False, {}

    def close(self) -> None:
        self.vector.close()


def native_resume_class(make: Callable[[], Vector], max_seconds: float) -> str:
    """Return `snapshot` if the state of vector environments can be saved and restored, else `inexact`.

    A `replay` would repeat all steps since the first reset, because single environments have no seeds of their own.

    Args:
        make: returns a vector environment that resets on request, at every call.
        max_seconds: limit of the duration.

    """
    found = resume_class(lambda: WholeBatch(make()), max_seconds)
    return found if found == "snapshot" else "inexact"
