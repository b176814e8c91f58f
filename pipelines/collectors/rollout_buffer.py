"""A buffer that stores one rollout step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from ...envs import ALL_ENVS, StepArrays, leaf_arrays
from .device_buffer import DeviceObservations


class FinalObservations(NamedTuple):
    """The final observations of the environments `envs` whose episodes ended at `step`, `[len(envs), *observation]`."""

    step: int
    envs: NDArray[np.intp]
    observation: NDArray[Any]


class RolloutBuffer:
    """One rollout as time-major arrays `[time, num_envs, ...]`.

    Observations and `is_init` have one more step than the other arrays: the first step of the next rollout.

    Args:
        first: first observations of the rollout, `[num_envs, *observation]`.
        is_init: whether an episode begins with these observations, bool `[num_envs]`.
        num_steps: length of the rollout.
        device: device of the policy.
        num_groups: number of groups of environments that are stepped in turn (see `VectorRollouts`).

    """

    def __init__(
        self,
        first: NDArray[Any],
        is_init: NDArray[np.bool_],
        num_steps: int,
        device: torch.device,
        num_groups: int = 1,
    ) -> None:
        self.observations = observation_storage((num_steps + 1, *first.shape), first.dtype, device)
        self.observations.array[0] = first
        self.is_init = np.empty((num_steps + 1, len(first)), np.bool_)
        self.is_init[0] = is_init
        self._num_steps = 0
        self._outputs: list[list[Sequence[Tensor]]] = [[] for _ in range(num_groups)]
        self._rewards, self._raw_episode_rewards = (np.empty((num_steps, len(first))) for _ in range(2))
        self._terminated, self._truncated = (np.empty((num_steps, len(first)), np.bool_) for _ in range(2))
        self._final: list[FinalObservations] = []

    def add_outputs(self, group: int, outputs: Sequence[Tensor]) -> None:
        """Store the policy's outputs at the next step of a group, tensors `[envs, ...]`."""
        self._outputs[group].append(outputs)  # stacked at the end, which is cheaper than a copy at every step

    def write(self, step: int, env_slice: slice, arrays: StepArrays) -> NDArray[np.intp] | None:
        """Store the result of a step of the environments in `env_slice`.

        Returns the indices of the environments whose episode ended, or `None`. Their observation is stored as the final
        one; the caller must reset the environments and overwrite the observation of the next step.
        """
        observation, reward, terminated, truncated, raw = arrays
        self._num_steps = step + 1
        self._rewards[step, env_slice] = reward
        self._terminated[step, env_slice] = terminated
        self._truncated[step, env_slice] = truncated
        self._raw_episode_rewards[step, env_slice] = raw
        self.observations.array[step + 1, env_slice] = observation
        self.is_init[step + 1, env_slice] = done = terminated | truncated
        if not np.count_nonzero(done):  # five times as fast as `np.any`
            return None
        ended: NDArray[np.intp] = np.arange(self.is_init.shape[1])[env_slice][done]
        self._final.append(FinalObservations(step, ended, self.observations.array[step + 1][ended]))
        return ended

    def check_finite(self) -> None:
        """Raise an EnvironmentFailure if an observation stored so far is not finite."""
        for key, observed in leaf_arrays(self.observations.array[: self._num_steps + 1]).items():
            raise_if_not_finite(key, torch.from_numpy(observed).transpose(0, 1), "rollout", -1)

    def as_tensordict(
        self, output_keys: Sequence[NestedKey], states: Mapping[str, Tensor], counters: EpisodeCounters
    ) -> TensorDictBase:
        """Return the rollout, `[num_envs, time]`.

        `states` are recurrent states before every step and after the last, `[time + 1, num_envs, ...]`, and `counters`
        the returns and lengths of the episodes that the rollout continues.
        """
        done = self._terminated | self._truncated
        episode_reward, step_count = counters.advance(self._rewards, done, self._raw_episode_rewards)
        with np.errstate(over="ignore"):  # infinite values are reported
            rewards, returns = self._rewards.astype(np.float32), episode_reward.astype(np.float32)
        scalars = {
            **{"reward": rewards, "terminated": self._terminated, "truncated": self._truncated, "done": done},
            **{"episode_reward": returns, "step_count": step_count},
        }
        groups = [[torch.stack(column) for column in zip(*steps, strict=True)] for steps in self._outputs]
        data = {
            **self.observations.observations(),
            "is_init": torch.from_numpy(self.is_init[:-1]).unsqueeze(-1),
            **{key: state[:-1] for key, state in states.items()},
            **{key: torch.cat(parts, 1) for key, *parts in zip(output_keys, *groups, strict=False)},
            "next": {
                **self.observations.next_observations(self._final),
                **{key: state[1:] for key, state in states.items()},
                **{key: torch.from_numpy(array).unsqueeze(-1) for key, array in scalars.items()},
            },
        }
        return TensorDict(data, batch_size=done.shape).transpose(0, 1)


class HostObservations:
    """The observations of a rollout in the memory of this process, where a policy on the CPU reads them.

    Args:
        shape: `[time, num_envs, *observation]`.
        dtype: dtype of the observations, structured if they are nested.

    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        # Zeros, because `check_finite` may read entries that a failed step has not written.
        self.array: NDArray[Any] = np.zeros(shape, dtype)

    def read(self, step: int, env_slice: slice = ALL_ENVS) -> dict[NestedKey, Tensor]:
        """Return the observations of a step, `[envs, ...]`; call it once per step, after they are in `array`."""
        return as_tensors(self.array[step, env_slice])

    def observations(self) -> dict[NestedKey, Tensor]:
        """Return the observations that the policy has read, `[time - 1, num_envs, ...]`."""
        return as_tensors(self.array[:-1])

    def next_observations(self, final: Sequence[FinalObservations]) -> dict[NestedKey, Tensor]:
        """Return the observations after every step, final ones included, `[time - 1, num_envs, ...]`.

        If no episode ended, they are a view of `observations` shifted by one step.
        """
        next_obs = self.array[1:].copy() if final else self.array[1:]
        for step, envs, observation in final:
            next_obs[step, envs] = observation
        return as_tensors(next_obs)


def observation_storage(
    shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device
) -> HostObservations | DeviceObservations:
    """Return storage for a policy on `device`."""
    if device.type == "cpu":
        return HostObservations(shape, dtype)
    return DeviceObservations(shape, dtype, device)


def as_tensors(array: NDArray[Any]) -> dict[NestedKey, Tensor]:
    """Return observations as tensors that share the memory of the array."""
    return {key: torch.from_numpy(leaf) for key, leaf in leaf_arrays(array).items()}


class EpisodeCounters:
    """Returns and lengths of running episodes, as TorchRL's `RewardSum` and `StepCounter` write them."""

    def __init__(self, num_envs: int) -> None:
        self.reward = np.zeros(num_envs)
        self.length = np.zeros(num_envs, np.int64)

    def advance(
        self, rewards: NDArray[np.float64], done: NDArray[np.bool_], raw: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the return and length of the episode at every step of a rollout, and continue after it.

        Args:
            rewards: `[time, num_envs]`.
            done: whether the episode ended with this step, `[time, num_envs]`.
            raw: the environment's own return if wrappers change the reward, else NaN, `[time, num_envs]`.

        """
        num_steps = len(rewards)
        returns, after = rewards.copy(), np.arange(1, num_steps + 1)
        returns[0] += self.reward
        start = 0
        for end in (np.flatnonzero(done[:-1].any(1)) + 1).tolist():  # no episode ends between start and end
            np.add.accumulate(returns[start:end], 0, out=returns[start:end])
            returns[end] += np.where(done[end - 1], 0.0, returns[end - 1])
            start = end
        np.add.accumulate(returns[start:], 0, out=returns[start:])
        starts = np.zeros(rewards.shape, np.int64)
        np.maximum.accumulate(np.where(done[:-1], after[:-1, None], 0), 0, out=starts[1:])
        lengths = after[:, None] - starts + np.where(starts == 0, self.length, 0)
        self.reward, self.length = np.where(done[-1], 0.0, returns[-1]), np.where(done[-1], 0, lengths[-1])
        return np.where(np.isnan(raw), returns, raw), lengths


def require_finite(
    data: TensorDictBase, *, name: str = "rollout", first_step: int = 0, vector: Any = None
) -> TensorDictBase:
    """Return `data` if all its observations and rewards are finite.

    Args:
        data: `[num_envs, time]`.
        name: name of the data in the error message.
        first_step: index of the first step of the data in the error message.
        vector: the vector environment, if there is one; an observation outside its space is reported once.

    Raises:
        EnvironmentFailure: if a value is not finite; the message names its environment, step and key.

    """
    observation = data.select("observation", strict=False)
    if observation.is_empty():  # then check every entry that exists before and after a step
        observation = data["next"].select(*data.keys(include_nested=True, leaves_only=True), strict=False)
        observation = observation.exclude("episode_info")  # NaN where an episode does not end
    place = (name, first_step, data, vector)
    for key in observation.keys(include_nested=True, leaves_only=True):
        raise_if_not_finite(key, data["next"][key], *place)
        raise_if_not_finite(key, data[key], name, first_step - 1, None, vector)
    raise_if_not_finite("reward", data["next", "reward"], *place)
    space = None if vector is None else vector.single_observation_space
    if isinstance(space, Box) and space.dtype.kind == "f" and not vector.has_left_space:
        observed, bounds = data["next", "observation"], (space.low, space.high)
        low, high = (torch.as_tensor(bound, dtype=observed.dtype, device=observed.device) for bound in bounds)
        if (observed.amin((0, 1)) < low).any() or (observed.amax((0, 1)) > high).any():
            from .invalid_values import warn_about

            vector.has_left_space = True
            warn_about(observed, low, high)
    return data


def raise_if_not_finite(
    key: NestedKey, values: Tensor, name: str, first_step: int, data: Any = None, vector: Any = None
) -> None:
    """Raise an error for the first entry of `values` `[num_envs, time, ...]` that is not finite."""
    if values.is_floating_point() and not values.sum().isfinite() and not values.isfinite().all():
        from .invalid_values import raise_for

        raise_for(key, values, name, first_step, data, vector)
