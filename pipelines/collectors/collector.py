"""From an environment and a policy to rollouts of a fixed length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from ...envs import ALL_ENVS, EPISODE_KEYS, VectorEnv
from ...errors import ConfigurationError
from ..distributed import num_ranks, together
from ..step_factory import Compile
from .policy_step import PolicyStep
from .rollout_buffer import Record, RunningEpisodes, require_finite
from .torchrl import SteppedRollouts


class Rollouts(Protocol):
    """Rollouts without end, `[num_envs, time]` each."""

    @property
    def seconds(self) -> dict[str, float]:
        """What its parts took, where they are known."""

    def __call__(self) -> TensorDictBase:
        """The next one."""


class Collector:
    """Rollouts `[num_envs, frames_per_env]` from a batched environment, the policy acting as it is now.

    A sized iterable, so it is a Trainer's dataloader as it stands; Lightning does not prefetch from sized
    loaders, and each rollout therefore sees the weights of the last update. Episodes run on from one
    rollout into the next.

    A rollout holds `observation`, `is_init`, what the policy writes (`action`, `action_log_prob`, the
    parameters of the distribution), and under `next` the true next `observation` (also where an episode
    ends), `reward`, `terminated`, `truncated`, `done`, `episode_reward` (raw) and `step_count`.

    Args:
        env: a batched environment (see `envs.batched`); a `VectorEnv` is stepped on NumPy arrays, any other through
            TorchRL.
        policy: reads observations, writes `action` and `action_log_prob`.
        frames_per_env: length of a rollout.
        total_frames: environment steps over all environments and ranks that iteration stays within.
        compile: whether the policy's step is a graph, compiled (true) or run as it was traced (`"trace"`).
        double_buffer: let the policy act for one half of the environments while worker processes, or the threads of
            an Atari game, step the other.
        rollouts: another way to make rollouts from environment, policy and length, to which `compile` does not apply;
            none: the fastest that fits.

    Raises:
        ConfigurationError: if the numbers are not positive, or the environment lacks what rollouts hold.
        NumericalError: while iterating, at the first observation or reward that is not finite.

    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        *,
        frames_per_env: int,
        total_frames: int,
        compile: Compile = False,  # noqa: A002
        double_buffer: bool = False,
        rollouts: Callable[[EnvBase, TensorDictModuleBase, int], Rollouts] | None = None,
    ) -> None:
        """Nothing is stepped before the first rollout is asked for."""
        if not env.batch_size or not {*EPISODE_KEYS}.issubset(env.observation_spec.keys(include_nested=True)):
            raise ConfigurationError(
                "a collector's environment needs a batch dimension, episode_reward and step_count; "
                "torchppo.envs.batched(env) gives it them"
            )
        for name, value in (("collector.frames_per_env", frames_per_env), ("total_frames", total_frames)):
            if value < 1:
                raise ConfigurationError(f"{name}={value} must be at least 1")
        self.env = env
        self.frames_per_env = frames_per_env
        self.total_frames = total_frames
        self._acting: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._seconds = 0.0
        if rollouts is not None:
            self._rollouts = rollouts(env, policy, frames_per_env)
        elif isinstance(env, VectorEnv):
            act = PolicyStep(policy, compile=compile)
            self._rollouts = ArrayRollouts(env, act, frames_per_env, double_buffer=double_buffer)
        else:
            self._rollouts = SteppedRollouts(env, policy, frames_per_env, compile=compile)
        if double_buffer and not isinstance(self._rollouts, ArrayRollouts):
            raise ConfigurationError(
                "collector.double_buffer=true needs a vector environment without transforms, and no collector.rollouts"
            )

    @property
    def frames_per_batch(self) -> int:
        """Environment steps in one rollout of this rank."""
        return int(self.env.batch_size.numel()) * self.frames_per_env

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent to `collect`, and in its parts where they are known.

        They are the `policy` and the `environment`, or, double-buffered, the `waiting` for it.
        """
        return {"collect": self._seconds, **self._rollouts.seconds}

    def act_under(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Let the policy act within a context, such as a Trainer's precision."""
        self._acting = context

    def __len__(self) -> int:
        """The number of rollouts on each rank: as many as `total_frames` has room for, at least one."""
        return max(1, self.total_frames // (self.frames_per_batch * num_ranks()))

    def __iter__(self) -> Iterator[TensorDictBase]:
        """Collect, rollout by rollout."""
        for _ in range(len(self)):
            start = time.perf_counter()
            with torch.no_grad(), self._acting(), set_exploration_type(ExplorationType.RANDOM):
                rollout = together(lambda: require_finite(self._rollouts()))
            self._seconds += time.perf_counter() - start
            yield rollout


def seconds_of(collector: Any) -> dict[str, float]:
    """What a collector says of its time; one of a user's own may say nothing."""
    return getattr(collector, "seconds", {})


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
        self._groups = env.double_buffer_groups() if double_buffer else [ALL_ENVS]
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
