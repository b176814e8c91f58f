"""A scripted environment whose observations are the numbers of the episode and the step."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray


class CountingEnv(gymnasium.Env[NDArray[Any], Any]):
    """Observations are `[episode, step]`, episodes from 1 and steps from 0; every reward is `reward`.

    An episode ends after `length` steps; `ends` is `terminated` or `truncated`. The environment records `actions`,
    `seeds` and `closed`.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self,
        length: int = 3,
        ends: str = "terminated",
        reward: float = 1.0,
        action_space: spaces.Space[Any] | None = None,
        observation_space: spaces.Space[Any] | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.length, self.ends, self.reward, self.render_mode = length, ends, reward, render_mode
        self.action_space = action_space or spaces.Discrete(2)
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (2,))
        self.episode = self.num_steps = 0
        self.actions: list[Any] = []
        self.seeds: list[int | None] = []
        self.closed = False

    def observe(self) -> NDArray[Any]:
        return np.array([self.episode, self.num_steps], self.observation_space.dtype)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.seeds.append(seed)
        self.episode += 1
        self.num_steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        assert self.num_steps < self.length, "stepped after the end of an episode"
        self.actions.append(action)
        self.num_steps += 1
        end = self.num_steps == self.length
        return self.observe(), self.reward, end and self.ends == "terminated", end and self.ends == "truncated", {}

    def render(self) -> Any:
        return np.full((2, 2, 3), self.num_steps, np.uint8)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def counting_env() -> Callable[..., Any]:
    return CountingEnv


@pytest.fixture
def counting_id() -> Iterator[str]:
    """Registers the scripted environment with Gymnasium for one test."""
    gymnasium.register("Counting-v0", entry_point=CountingEnv)  # type: ignore[arg-type]
    yield "Counting-v0"
    del gymnasium.registry["Counting-v0"]


@pytest.fixture
def garbage_at_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forked process starts with garbage of its parent and exits with code 9 if it collects it."""

    class Garbage:
        def __init__(self) -> None:
            self.cycle, self.owner = self, os.getpid()

        def __del__(self) -> None:
            if os.getpid() != self.owner:
                os._exit(9)

    def fork(original: Callable[[], int] = os.fork) -> int:
        Garbage()
        pid = original()
        if pid == 0:
            gc.set_threshold(1)
        return pid

    monkeypatch.setattr(os, "fork", fork)
