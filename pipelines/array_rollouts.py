"""Rollouts of a vector environment, stepped on arrays."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase

from ..envs import ALL, VectorEnv, leaves
from .finite import refuse_not_finite
from .policy_step import PolicyStep
from .storage import Ends, storage_for


class ArrayRollouts:
    """Writes steps into time-major storage `[time, num_envs, ...]`, and makes one TensorDict of a whole rollout.

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
        self._episodes = RunningEpisodes(env.num_envs)
        self._observation: NDArray[Any] | None = None  # where the episodes go on
        self._begins = np.ones(env.num_envs, np.bool_)

    def __call__(self) -> TensorDictBase:
        """The next rollout, `[num_envs, time]`."""
        self._begin()
        try:
            self._roll()
        except Exception:  # an observation that is not finite makes an action that is none: look for the reason
            for key, observed in leaves(self._storage.arrays[: self._step + 1]).items():
                refuse_not_finite(key, torch.from_numpy(observed).transpose(0, 1), "rollout", -1)
            raise
        self._observation = self._storage.arrays[-1].copy()
        self._begins = self.is_init[-1].copy()
        return self._as_tensordict()

    def _roll(self) -> None:
        for step in range(self.num_steps):
            self._step = step
            for group, rows in enumerate(self._groups):
                if step > 0:
                    self._receive(step - 1, rows)
                self._act(step, group, rows)
        for rows in self._groups:
            self._receive(self.num_steps - 1, rows)

    def _begin(self) -> None:
        """Make room; for observations one step more, the first of the next rollout."""
        first = self.env.reset_arrays() if self._observation is None else self._observation
        time_by_envs = (self.num_steps, self.env.num_envs)
        self.act.begin(self._groups, self.env.num_envs, self.num_steps)
        self._storage = storage_for((self.num_steps + 1, *first.shape), first.dtype, self.act.device)
        self._storage.arrays[0] = first
        self.is_init = np.empty((self.num_steps + 1, self.env.num_envs), np.bool_)
        self.is_init[0] = self._begins
        self.rewards, self.raw_episode_rewards = np.empty(time_by_envs), np.empty(time_by_envs)
        self.terminated, self.truncated = np.empty(time_by_envs, np.bool_), np.empty(time_by_envs, np.bool_)
        self._ends: list[Ends] = []

    def _act(self, step: int, group: int, rows: slice) -> None:
        start = time.perf_counter()
        action = self.act(group, self._storage.given(step, rows), self.is_init[step, rows])
        acted = time.perf_counter()
        self.env.send(action, rows)
        self.seconds["policy"] += acted - start
        self.seconds[self._stepping] += time.perf_counter() - acted

    def _receive(self, step: int, rows: slice) -> None:
        start = time.perf_counter()
        observation, reward, terminated, truncated, raw = self.env.receive(rows)
        self.seconds[self._stepping] += time.perf_counter() - start
        self.rewards[step, rows] = reward
        self.terminated[step, rows] = terminated
        self.truncated[step, rows] = truncated
        self.raw_episode_rewards[step, rows] = raw
        done = terminated | truncated
        self.is_init[step + 1, rows] = done
        if np.count_nonzero(done):  # a fifth of `any`'s time
            ended = np.arange(self.env.num_envs)[rows][done]
            self._ends.append(Ends(step, ended, observation[done]))
            mask = np.zeros(self.env.num_envs, np.bool_)
            mask[ended] = True
            start = time.perf_counter()
            observation = self.env.reset_arrays(mask)[rows]
            self.seconds[self._stepping] += time.perf_counter() - start
        self._storage.arrays[step + 1, rows] = observation

    def _as_tensordict(self) -> TensorDictBase:
        done = self.terminated | self.truncated
        episode_reward, step_count = self._episodes(self.rewards, done, self.raw_episode_rewards)
        scalars = {
            "reward": self.rewards.astype(np.float32),
            "terminated": self.terminated,
            "truncated": self.truncated,
            "done": done,
            "episode_reward": episode_reward.astype(np.float32),
            "step_count": step_count,
        }
        carried = self.act.carried()
        data = {
            **self._storage.observed(),
            "is_init": torch.from_numpy(self.is_init[:-1]).unsqueeze(-1),
            **{key: windows[:-1] for key, windows in carried.items()},
            **self.act.written(),
            "next": {
                **self._storage.following(self._ends),
                **{key: windows[1:] for key, windows in carried.items()},
                **{key: torch.from_numpy(array).unsqueeze(-1) for key, array in scalars.items()},
            },
        }
        return TensorDict(data, batch_size=(self.num_steps, self.env.num_envs)).transpose(0, 1)


class RunningEpisodes:
    """Return and length of the episodes so far, at every step: what `RewardSum` and `StepCounter` write."""

    def __init__(self, num_envs: int) -> None:
        """No episode has begun."""
        self._reward = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int64)

    def __call__(
        self, rewards: NDArray[np.float64], done: NDArray[np.bool_], raw: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Go on through a rollout.

        Args:
            rewards: `[time, num_envs]`.
            done: whether the episode ended with this step, `[time, num_envs]`.
            raw: the environment's own return where wrappers change the reward, else NaN, `[time, num_envs]`.

        """
        returns, lengths = np.empty_like(rewards), np.empty(rewards.shape, np.int64)
        for env in range(rewards.shape[1]):
            start = 0
            for end in (*(np.flatnonzero(done[:, env]) + 1).tolist(), len(rewards)):
                part = rewards[start:end, env].copy()
                if start == end:
                    continue
                part[0] += self._reward[env]
                returns[start:end, env] = part.cumsum()
                lengths[start:end, env] = np.arange(1, end - start + 1) + self._length[env]
                over = done[end - 1, env]
                self._reward[env] = 0.0 if over else returns[end - 1, env]
                self._length[env] = 0 if over else lengths[end - 1, env]
                start = end
        return np.where(np.isnan(raw), returns, raw), lengths
