"""Rollouts of a vector environment, stepped on arrays."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensordict import TensorDictBase

from ..envs import ALL, VectorEnv
from .policy_step import PolicyStep
from .record import Record, RunningEpisodes


class ArrayRollouts:
    """Steps a vector environment with a policy, and makes one TensorDict of a whole rollout.

    Args:
        env: what to step.
        act: what to step it with.
        num_steps: length of a rollout.
        double_buffer: let the policy act for one half of the environments while the other half steps.

    Raises:
        ConfigurationError: if `double_buffer` is asked for where halves cannot be stepped apart.

    """

    def __init__(self, env: VectorEnv, act: PolicyStep, num_steps: int, *, double_buffer: bool) -> None:
        """Nothing is stepped yet."""
        self.env = env
        self.act = act
        self.num_steps = num_steps
        # Of two halves only the waiting is seen, which is not the time that they take.
        self._stepping = "waiting" if double_buffer else "environment"
        self.seconds = {self._stepping: 0.0, "policy": 0.0}
        self._groups = env.halves() if double_buffer else [ALL]
        self._observation: NDArray[Any] | None = None  # where the episodes go on; none: they begin

    def __call__(self) -> TensorDictBase:
        """The next rollout, `[num_envs, time]`."""
        if self._observation is None:
            self._observation = self.env.reset_arrays()
            self._is_init = np.ones(self.env.num_envs, np.bool_)
            self._episodes = RunningEpisodes(self.env.num_envs)
        first, self._observation = self._observation, None  # which it stays where this rollout is broken off
        self.act.begin(self._groups, self.env.num_envs, self.num_steps)
        record = Record(first, self._is_init, self.num_steps, self.act.device)
        try:
            self._roll(record)
        except Exception:  # an observation that is not finite makes an action that is none: look for the reason
            record.refuse_not_finite()
            raise
        self._observation = record.storage.arrays[-1].copy()
        self._is_init = record.is_init[-1].copy()
        return record.as_tensordict(self._episodes, self.act.written(), self.act.carried())

    def _roll(self, record: Record) -> None:
        for step in range(self.num_steps):
            for group, rows in enumerate(self._groups):
                if step > 0:
                    self._receive(record, step - 1, rows)
                self._act(record, step, group, rows)
        for rows in self._groups:
            self._receive(record, self.num_steps - 1, rows)

    def _act(self, record: Record, step: int, group: int, rows: slice) -> None:
        start = time.perf_counter()
        action = self.act(group, record.storage.given(step, rows), record.is_init[step, rows])
        acted = time.perf_counter()
        self.env.send(action, rows)
        self.seconds["policy"] += acted - start
        self.seconds[self._stepping] += time.perf_counter() - acted

    def _receive(self, record: Record, step: int, rows: slice) -> None:
        start = time.perf_counter()
        stepped = self.env.receive(rows)
        self.seconds[self._stepping] += time.perf_counter() - start
        ended = record.write(step, rows, stepped)
        if ended is not None:
            mask = np.zeros(self.env.num_envs, np.bool_)
            mask[ended] = True
            start = time.perf_counter()
            observation = self.env.reset_arrays(mask)
            self.seconds[self._stepping] += time.perf_counter() - start
            record.storage.arrays[step + 1, rows] = observation[rows]
