"""An environment that draws from every kind of random generator."""

from __future__ import annotations

import random
from typing import Any

import gymnasium
import numpy as np

OF_MODULE = np.random.default_rng(3)


class Noise(gymnasium.Env[Any, Any]):
    """Observes random numbers of Python, NumPy, its module, its space and its own generators."""

    observation_space = gymnasium.spaces.Box(-1, 1, (6,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self) -> None:
        self.own, self.other = np.random.default_rng(1), random.Random(2)

    def numbers(self) -> Any:
        own = (self.own.random(), self.other.random(), self.np_random.random())
        return np.array([*own, OF_MODULE.random(), random.random(), np.random.rand()], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.numbers(), {}

    def step(self, action: Any) -> Any:
        found = self.numbers()
        return found, float(found.sum() * action + self.action_space.sample()), bool(found[0] > 0.9), False, {}
