"""Collects rollouts from an environment with a policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from ...envs import ALL_ENVS, EPISODE_KEYS, VectorEnv
from ...errors import ConfigurationError
from ..distributed import num_ranks, raise_on_all_ranks
from ..step_factory import Compile, PolicyFunction
from .recurrent_context import RecurrentContext
from .rollout_buffer import EpisodeCounters, RolloutBuffer, require_finite
from .torchrl import TorchRLRollouts


class Rollouts(Protocol):
    """Collects one rollout `[num_envs, time]` in every call."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in the parts of the collection that are measured."""

    def __call__(self) -> TensorDictBase: ...


class Collector:
    """A sized iterable of rollouts `[num_envs, frames_per_env]`, each collected with the current weights.

    It is the `train_dataloaders` of a Trainer. Lightning does not prefetch from a sized iterable, so every rollout sees
    the last update. Episodes continue from one rollout to the next.

    A rollout has `observation`, `is_init`, the policy's outputs (`action`, `action_log_prob`, the parameters of the
    distribution), and under `next` the true next `observation` (the final one where an episode ends), `reward`,
    `terminated`, `truncated`, `done`, `episode_reward` (raw) and `step_count`.

    Args:
        env: a batched environment (see `envs.batched`). A `VectorEnv` is stepped on NumPy arrays, any other through
            TorchRL.
        policy: reads observations, writes `action` and `action_log_prob`.
        frames_per_env: length of a rollout.
        total_frames: environment steps of the whole training, over all environments and ranks.
        compile: how the policy step runs (see `step_factory.Compile`).
        double_buffer: let the policy act for one half of the environments while the other half steps in worker
            processes or Atari threads.
        rollouts: factory of another way to collect rollouts, called with the environment, the policy and
            `frames_per_env`; `compile` does not apply to it. `None` chooses the fastest way.

    Raises:
        ConfigurationError: if a number is out of range or the environment lacks an entry of the rollout.
        NumericalError: while iterating, if an observation or reward is not finite.

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
        if not env.batch_size or not {*EPISODE_KEYS}.issubset(env.observation_spec.keys(include_nested=True)):
            raise ConfigurationError(
                "a collector's environment needs a batch dimension, episode_reward and step_count; "
                "torchppo.envs.batched(env) adds them"
            )
        for name, value in (("collector.frames_per_env", frames_per_env), ("total_frames", total_frames)):
            if value < 1:
                raise ConfigurationError(f"{name}={value} must be at least 1")
        self.env = env
        self.frames_per_env = frames_per_env
        self.total_frames = total_frames
        self._acting_context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._seconds = 0.0
        steps: Any = {"compile": compile, "num_policy_steps": total_frames / self.frames_per_batch * frames_per_env}
        if rollouts is not None:
            self._rollouts = rollouts(env, policy, frames_per_env)
        elif isinstance(env, VectorEnv):
            self._rollouts = VectorRollouts(env, policy, frames_per_env, double_buffer=double_buffer, **steps)
        else:
            self._rollouts = TorchRLRollouts(env, policy, frames_per_env, **steps)
        if double_buffer and not isinstance(self._rollouts, VectorRollouts):
            raise ConfigurationError(
                "collector.double_buffer=true does not work with transforms or collector.rollouts; remove them, or set "
                "collector.double_buffer=false"
            )

    @property
    def frames_per_batch(self) -> int:
        """Environment steps in one rollout of this rank."""
        return int(self.env.batch_size.numel()) * self.frames_per_env

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in `collect`, and in its parts if they are measured.

        The parts are `policy` and `environment`, or with a double buffer `waiting` for the environment.
        """
        return {"collect": self._seconds, **self._rollouts.seconds}

    def act_under(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Set the context in which the policy acts, such as the precision of a Trainer."""
        self._acting_context = context

    def __len__(self) -> int:
        """Return the number of rollouts of each rank that fit into `total_frames`, at least one."""
        return max(1, self.total_frames // (self.frames_per_batch * num_ranks()))

    def __iter__(self) -> Iterator[TensorDictBase]:
        for _ in range(len(self)):
            start = time.perf_counter()
            with torch.no_grad(), self._acting_context(), set_exploration_type(ExplorationType.RANDOM):
                rollout = raise_on_all_ranks(lambda: require_finite(self._rollouts()))
            self._seconds += time.perf_counter() - start
            yield rollout


class VectorRollouts:
    """Steps a vector environment on NumPy arrays and returns each rollout as one TensorDict.

    Args:
        num_steps: length of a rollout.
        compile: how the policy step runs.
        num_policy_steps: expected number of policy steps, for `compile="auto"`.
        double_buffer: let the policy act for one half of the environments while the other half steps.

    Raises:
        ConfigurationError: if `double_buffer` is true and the environments cannot be stepped in halves.

    """

    def __init__(
        self,
        env: VectorEnv,
        policy: TensorDictModuleBase,
        num_steps: int,
        *,
        compile: Compile = False,  # noqa: A002
        num_policy_steps: float = 0,
        double_buffer: bool = False,
    ) -> None:
        self.env = env
        self.num_steps = num_steps
        self.policy = PolicyFunction(policy, compile, num_policy_steps)
        # With two halves, only the waiting time can be measured, not the time of the environment.
        self._stepping = "waiting" if double_buffer else "environment"
        self.seconds = {self._stepping: 0.0, "policy": 0.0}
        self._groups = env.double_buffer_groups() if double_buffer else [ALL_ENVS]
        self._action_indices = {key: i for i, key in enumerate(self.policy.output_keys) if is_action(key)}
        self._observation: NDArray[Any] | None = None  # `None`: the next rollout begins with a reset
        self._context: RecurrentContext | None = None

    def __call__(self) -> TensorDictBase:
        """Collect the next rollout, `[num_envs, time]`."""
        if self._observation is None:
            self._observation = self.env.reset_arrays()
            self._is_init = np.ones(self.env.num_envs, np.bool_)
            self._counters = EpisodeCounters(self.env.num_envs)
        first, self._observation = self._observation, None  # stays `None` if this rollout is interrupted
        self.policy.refresh()
        device, states = self.policy.device, self.policy.state_shapes
        if states:
            self._context = RecurrentContext(states, self.num_steps, self.env.num_envs, device, self._context)
        buffer = RolloutBuffer(first, self._is_init, self.num_steps, device, len(self._groups))
        try:
            self._collect(buffer)
        except Exception:  # the cause may be an observation that is not finite; report that first
            buffer.check_finite()
            raise
        self._observation = buffer.observations.array[-1].copy()
        self._is_init = buffer.is_init[-1].copy()
        windows = self._context.windows() if self._context else {}
        return buffer.as_tensordict(self.policy.output_keys, windows, self._counters)

    def _collect(self, buffer: RolloutBuffer) -> None:
        for step in range(self.num_steps):
            for group, env_slice in enumerate(self._groups):
                if step > 0:
                    self._receive(buffer, step - 1, env_slice)
                self._act(buffer, step, group, env_slice)
        for env_slice in self._groups:
            self._receive(buffer, self.num_steps - 1, env_slice)

    def _act(self, buffer: RolloutBuffer, step: int, group: int, env_slice: slice) -> None:
        start = time.perf_counter()
        inputs = buffer.observations.read(step, env_slice)
        if self._context is not None:
            inputs |= self._context.read(step, env_slice, buffer.is_init[step, env_slice])
        outputs = self.policy(inputs)
        if self._context is not None:
            num_outputs = len(self.policy.output_keys)
            self._context.write(step, env_slice, outputs[num_outputs:])
            outputs = outputs[:num_outputs]
        buffer.add_outputs(group, outputs)
        actions = {key: as_array(outputs[index]) for key, index in self._action_indices.items()}
        acted = time.perf_counter()
        self.env.send(actions.get("action", actions), env_slice)
        self.seconds["policy"] += acted - start
        self.seconds[self._stepping] += time.perf_counter() - acted

    def _receive(self, buffer: RolloutBuffer, step: int, env_slice: slice) -> None:
        start = time.perf_counter()
        arrays = self.env.receive(env_slice)
        self.seconds[self._stepping] += time.perf_counter() - start
        ended = buffer.write(step, env_slice, arrays)
        if ended is not None:
            mask = np.zeros(self.env.num_envs, np.bool_)
            mask[ended] = True
            start = time.perf_counter()
            observation = self.env.reset_arrays(mask)
            self.seconds[self._stepping] += time.perf_counter() - start
            buffer.observations.array[step + 1, env_slice] = observation[env_slice]


def is_action(key: NestedKey) -> bool:
    """Return whether `key` is the action or a leaf of a nested action."""
    return key == "action" or (isinstance(key, tuple) and key[0] == "action")


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as a NumPy array on the CPU."""
    array: NDArray[Any] = tensor.cpu().numpy()
    return array


def seconds_of(collector: Any) -> dict[str, float]:
    """Return the seconds that a collector measured; a user's own collector may not measure any."""
    return getattr(collector, "seconds", {})
