"""An environment that fails in one way from its 40th step on; `+env.mode=raise_step` chooses the way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class OddError(Exception):
    """Cannot be pickled, and its text raises."""

    def __init__(self) -> None:
        super().__init__("odd")
        self.function = lambda: 0

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Base(BaseException):
    """Not an Exception."""


def raise_(error: BaseException) -> None:
    raise error


def spin() -> None:
    while True:
        pass


ACTIONS: dict[str, Callable[[], Any]] = {
    "raise_step": lambda: raise_(ValueError("physics exploded")),
    "odd_exc": lambda: raise_(OddError()),
    "base_exc": lambda: raise_(Base("not an Exception")),
    "kbd": lambda: raise_(KeyboardInterrupt()),
    "sysexit": lambda: raise_(SystemExit(0)),
    "memory": lambda: raise_(MemoryError("cannot allocate")),
    "long_text": lambda: raise_(ValueError("long " * 100_000)),
    "exit3": lambda: os._exit(3),
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": lambda: time.sleep(10**6),
    "spin": spin,
    "print": lambda: print("x" * 50),
}
OBSERVATIONS: dict[str, Callable[[Any], Any]] = {
    "nan_obs": lambda obs: obs + np.float32("nan"),
    "inf_obs": lambda obs: obs + np.float32("inf"),
    "f64": lambda obs: obs.astype(np.float64) * 1e300 + 1e300,
    "shape": lambda _: np.zeros(4, np.float32),
    "shape1": lambda _: np.zeros(1, np.float32),
    "shape13": lambda _: np.zeros((1, 3), np.float32),
    "scalar": lambda _: 0.5,
    "dtype": lambda obs: (obs * 0 + 7).astype(np.int64),
    "text_dtype": lambda _: np.array(["1", "2", "3"]),
    "complex": lambda obs: obs + 1j,
    "object": lambda _: np.array([None, 1, 2], object),
    "list": lambda obs: obs.tolist(),
    "none_obs": lambda _: None,
    "text_obs": lambda _: "abc",
    "dict_obs": lambda obs: {"x": obs},
    "out_of_space": lambda obs: obs + 100,
}
REWARDS = {
    "nan_rew": float("nan"),
    "inf_rew": float("inf"),
    "huge_rew": 1e38,
    "f64_rew": 1e300,
    "none_rew": None,
    "array_rew": np.array([1.0, 2.0]),
    "list_rew": [1.0, 2.0],
    "text_rew": "x",
    "digit_rew": "1.0",
    "complex_rew": 1j,
    "one_rew": np.array([1.0]),
}
FLAGS = {
    "text_done": "no",
    "none_done": None,
    "list_done": [False],
    "two_done": 2,
    "nan_done": float("nan"),
    "arrays_done": np.array([False, True]),
    "one_done": np.array([False]),
    "int_done": 0,
}
RESETS = ("raise_reset", "slow_reset", "nan_reset", "shape_reset", "none_reset", "hang_reset")
OTHERS = ("none", "four_values", "no_info", "no_reset_info", "never_ends", "close_hang", "close_spin", "close_raise")
MODES = (*ACTIONS, *OBSERVATIONS, *REWARDS, *FLAGS, *RESETS, *OTHERS)


class Faulty(gymnasium.Env[Any, Any]):
    """Episodes of 20 steps. `once` repairs the environments that are made after the first failure."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, mode: str = "none", at: int = 40, once: str = "", render_mode: str | None = None) -> None:
        self.mode = "none" if once and Path(once).exists() else mode
        self.at, self.once, self.render_mode = at, once, render_mode
        self.num_steps = self.time = 0

    def observe(self) -> Any:
        return (0.9 * np.sin(self.time * np.array([0.1, 0.2, 0.3]))).astype(np.float32)

    def fails(self) -> bool:
        if self.num_steps < self.at or self.mode == "none":
            return False
        if self.once:
            Path(self.once).touch()
        return True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        if self.fails():
            match self.mode:
                case "raise_reset":
                    raise RuntimeError("reset exploded")
                case "slow_reset":
                    time.sleep(0.3)
                case "nan_reset":
                    return np.full(3, np.nan, np.float32), {}
                case "shape_reset":
                    return np.zeros(4, np.float32), {}
                case "none_reset":
                    return None, {}
                case "no_reset_info":
                    return self.observe()
                case "hang_reset":
                    time.sleep(10**6)
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.num_steps += 1
        self.time += 1
        result: list[Any] = [self.observe(), 1.0, False, self.time >= 20, {}]
        if not self.fails():
            return tuple(result)
        if self.mode in ACTIONS:
            ACTIONS[self.mode]()
        if self.mode in OBSERVATIONS:
            result[0] = OBSERVATIONS[self.mode](result[0])
        if self.mode in REWARDS:
            result[1] = REWARDS[self.mode]
        if self.mode in FLAGS:
            result[2] = FLAGS[self.mode]
        if self.mode == "four_values":
            return tuple(result[:4])
        if self.mode == "no_info":
            result[4] = None
        if self.mode == "never_ends":
            result[3] = False
        return tuple(result)

    def close(self) -> None:
        match self.mode:
            case "close_hang":
                time.sleep(10**6)
            case "close_spin":
                spin()
            case "close_raise":
                raise RuntimeError("close exploded")


gymnasium.register("Faulty-v0", entry_point=f"{__name__}:Faulty")
