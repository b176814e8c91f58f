"""Collects rollouts of a vector environment, which is stepped on NumPy arrays."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from ...envs import ALL_ENVS, VectorEnv
from ...envs.resume.plain_data import load_array, save_array
from ...envs.vector_env import vector_of
from ...errors import ConfigurationError, EnvironmentFailure
from ...modules.features.extractor import is_recurrent
from ..metrics.episode_statistics import EpisodeInfo, write_episode_info
from ..step_factory import Compile, PolicyFunction, warn_once
from .recurrent_context import RecurrentContext
from .rollout_buffer import EpisodeCounters, RolloutBuffer
from .skipped_steps import SkippedStep, discard_failed, replace_skipped


class VectorRollouts:
    """Steps a vector environment on NumPy arrays and returns each rollout as one TensorDict.

    Args:
        num_steps: length of a rollout.
        compile: how the policy step runs.
        num_policy_steps: expected number of policy steps, for `compile="auto"`.
        double_buffer: let the policy act for one half of the environments while the other half steps (Atari only).

    Raises:
        ConfigurationError: if the environment does not support `double_buffer`, or skips steps and the policy has a
            memory.

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
        self._has_memory = is_recurrent(policy)
        # With double buffering, only the waiting time can be measured, not the time of the environment.
        self._stepping = "waiting" if double_buffer else "environment"
        self.seconds = {self._stepping: 0.0, "policy": 0.0}
        self._groups = env.double_buffer_groups() if double_buffer else [ALL_ENVS]
        self._action_indices = {key: i for i, key in enumerate(self.policy.output_keys) if is_action(key)}
        self._may_skip = env.skipped is not None
        self._may_fail = env.vector.num_restarts is not None
        self._observation: NDArray[Any] | None = None  # `None`: the next rollout begins with a reset
        self._context: RecurrentContext | None = None
        self._last_states: Mapping[str, Tensor] | None = None
        self._has_resume_class = False

    def __call__(self) -> TensorDictBase:
        """Collect the next rollout, `[num_envs, time]`."""
        if self._observation is None:
            self._observation = self.env.reset_arrays()
            self._is_init = np.ones(self.env.num_envs, np.bool_)
            self._counters = EpisodeCounters(self.env.num_envs)
        first, self._observation = self._observation, None  # stays `None` if this rollout is interrupted
        self.policy.refresh()
        self._infos: list[EpisodeInfo] = []
        self._skipped: list[SkippedStep] = []
        self._failed: list[SkippedStep] = []
        self._restarts = self.env.vector.num_restarts.copy() if self._may_fail else None
        device, states = self.policy.device, self.policy.state_shapes
        if self._has_memory and self._may_skip:  # a sequence cannot contain a step of another environment
            raise ConfigurationError(
                "policies with a memory need environments that reset on request; make the vector environment with "
                "AutoresetMode.SAME_STEP or DISABLED, or use its id"
            )
        if states:
            self._context = RecurrentContext(states, self.num_steps, self.env.num_envs, device, self._last_states)
        buffer = RolloutBuffer(first, self._is_init, self.num_steps, device, len(self._groups))
        try:
            self._collect(buffer)
        except Exception:  # the cause may be an observation that is not finite; report it first
            buffer.check_finite()
            raise
        self._observation = buffer.observations.array[-1].copy()
        self._is_init = buffer.is_init[-1].copy()
        if self._context is not None:
            self._last_states = self._context.last_states()
        windows = self._context.windows() if self._context else {}
        rollout = buffer.as_tensordict(self.policy.output_keys, windows, self._counters)
        if self._skipped:
            rollout = replace_skipped(rollout, self._skipped)
        if self._failed:
            rollout = discard_failed(rollout, self._failed, is_recurrent=bool(states))
        return write_episode_info(rollout, self.env.info_keys, self._infos) if self._infos else rollout

    def restart(self) -> None:
        """Let the next rollout begin with a reset."""
        self._observation = self._last_states = None

    def state_dict(self) -> dict[str, Any]:
        """Return what the next rollout continues from, as plain data; empty if it begins with a reset."""
        vector, name = self.env.vector, self.resume_class
        if self._observation is None:
            return {}
        try:
            envs = vector.env_states() if name != "inexact" else []
        except EnvironmentFailure as error:
            warn_once(f"torchppo: {error}; a restart begins new episodes")
            return {}
        arrays = (self._observation, self._is_init, self._counters.reward, self._counters.length)
        return {
            "resume_class": name,
            "envs": envs,
            "arrays": [save_array(array) for array in arrays],
            "recurrent_states": dict(self._last_states or {}),
            "seconds": dict(self.seconds),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the episodes of `state_dict`, or begin new ones if it has none of as many environments."""
        self._observation = None
        if state.get("resume_class", "inexact") == "inexact" or len(state["envs"]) != self.env.num_envs:
            warn_once("torchppo: new episodes start, because the checkpoint has no state of these environments")
            self._has_resume_class = state.get("resume_class") == "inexact"
            return
        self.env.vector.set_resume_class(state["resume_class"])
        self.env.vector.load_env_states(state["envs"])
        arrays = [load_array(array) for array in state["arrays"]]
        self._observation, self._is_init = arrays[:2]
        self._counters = EpisodeCounters(self.env.num_envs)
        self._counters.reward, self._counters.length = arrays[2:]
        self._last_states = state["recurrent_states"] or None
        self.seconds.update({key: value for key, value in state["seconds"].items() if key in self.seconds})

    @property
    def resume_class(self) -> str:
        """How episodes continue after a restart (see `SlicedVectorEnv`)."""
        return str(self.env.vector.resume_class)

    def set_resume_class(self, name: str | None = None) -> None:
        """Set `resume_class` once, before the first reset. Without a name, test new environments."""
        if self._observation is None and not self._has_resume_class:
            self.env.vector.set_resume_class(name)
        self._has_resume_class = True

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
            if self._may_fail:
                self._note_failed(step, env_slice)
            mask = np.zeros(self.env.num_envs, np.bool_)
            mask[ended] = True
            start = time.perf_counter()
            observation = self.env.reset_arrays(mask)
            self.seconds[self._stepping] += time.perf_counter() - start
            buffer.observations.array[step + 1, env_slice] = observation[env_slice]
            if self._may_skip and (skipped := self.env.skipped) is not None and skipped.any():
                self._skipped.append(SkippedStep(step, skipped))
            info = self.env.episode_info
            if info is not None and not np.isnan(info[ended]).all():
                self._infos.append(EpisodeInfo(step, ended, info[ended]))

    def _note_failed(self, step: int, env_slice: slice) -> None:
        """Note the environments in `env_slice` that failed in this step."""
        counts, mask = self.env.vector.num_restarts, np.zeros(self.env.num_envs, np.bool_)
        mask[env_slice] = (counts != self._restarts)[env_slice]
        self._restarts = np.where(mask, counts, self._restarts)
        if mask.any():
            self._failed.append(SkippedStep(step, mask))


def failed_steps(collector: Any) -> dict[str, float]:
    """Return the number of steps so far in which environments failed and were recreated, as a metric.

    Empty if failures are raised.
    """
    vector = vector_of(getattr(collector, "env", None))
    counts = None if vector is None else vector.num_restarts
    return {} if counts is None else {"rollout/failed_steps": float(counts.sum())}


def is_action(key: NestedKey) -> bool:
    """Return whether `key` is the action or a leaf of a nested action."""
    return key == "action" or (isinstance(key, tuple) and key[0] == "action")


def as_array(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as a NumPy array on the CPU."""
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
