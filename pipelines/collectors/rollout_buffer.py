"""What a rollout is written into, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from ...envs import ALL_ENVS, StepArrays, leaf_arrays
from ...errors import NumericalError
from .device_buffer import DeviceStorage, Ends, tensors


class Record:
    """One rollout as time-major arrays `[time, num_envs, ...]`; of observations and `is_init` one step more.

    Args:
        first: the observations it begins with, `[num_envs, *observation]`.
        is_init: whether episodes begin with them, bool `[num_envs]`.
        num_steps: its length.
        device: the policy's.

    """

    def __init__(self, first: NDArray[Any], is_init: NDArray[np.bool_], num_steps: int, device: torch.device) -> None:
        """Make room."""
        self.storage = storage_for((num_steps + 1, *first.shape), first.dtype, device)
        self.storage.arrays[0] = first
        self.is_init = np.empty((num_steps + 1, len(first)), np.bool_)
        self.is_init[0] = is_init
        self._num_steps = 0
        self._rewards, self._raw_episode_rewards = (np.empty((num_steps, len(first))) for _ in range(2))
        self._terminated, self._truncated = (np.empty((num_steps, len(first)), np.bool_) for _ in range(2))
        self._ends: list[Ends] = []

    def write(self, step: int, rows: slice, stepped: StepArrays) -> NDArray[np.intp] | None:
        """Keep what a step of the environments in `rows` left behind, its observation as what comes next.

        Returns:
            Those whose episodes ended, if any did: their observations are kept as the last ones, and what comes next
            is for a reset to say.

        """
        observation, reward, terminated, truncated, raw = stepped
        self._num_steps = step + 1
        self._rewards[step, rows] = reward
        self._terminated[step, rows] = terminated
        self._truncated[step, rows] = truncated
        self._raw_episode_rewards[step, rows] = raw
        self.storage.arrays[step + 1, rows] = observation
        self.is_init[step + 1, rows] = done = terminated | truncated
        if not np.count_nonzero(done):  # a fifth of `any`'s time
            return None
        ended: NDArray[np.intp] = np.arange(self.is_init.shape[1])[rows][done]
        self._ends.append(Ends(step, ended, self.storage.arrays[step + 1][ended]))
        return ended

    def refuse_not_finite(self) -> None:
        """Raise a NumericalError for the first observation so far that is not finite."""
        for key, observed in leaf_arrays(self.storage.arrays[: self._num_steps + 1]).items():
            refuse_not_finite(key, torch.from_numpy(observed).transpose(0, 1), "rollout", -1)

    def as_tensordict(
        self, episodes: RunningEpisodes, written: Mapping[Any, Tensor], carried: Mapping[str, Tensor]
    ) -> TensorDictBase:
        """The whole rollout, `[num_envs, time]`.

        Args:
            episodes: goes on through it.
            written: what the policy wrote, `[time, num_envs, ...]`.
            carried: what it carried into every step and out of the last, `[time + 1, num_envs, ...]`.

        """
        done = self._terminated | self._truncated
        episode_reward, step_count = episodes(self._rewards, done, self._raw_episode_rewards)
        scalars = {
            "reward": self._rewards.astype(np.float32),
            "terminated": self._terminated,
            "truncated": self._truncated,
            "done": done,
            "episode_reward": episode_reward.astype(np.float32),
            "step_count": step_count,
        }
        data = {
            **self.storage.observed(),
            "is_init": torch.from_numpy(self.is_init[:-1]).unsqueeze(-1),
            **{key: windows[:-1] for key, windows in carried.items()},
            **written,
            "next": {
                **self.storage.following(self._ends),
                **{key: windows[1:] for key, windows in carried.items()},
                **{key: torch.from_numpy(array).unsqueeze(-1) for key, array in scalars.items()},
            },
        }
        return TensorDict(data, batch_size=done.shape).transpose(0, 1)


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


class HostStorage:
    """Observations in time-major order, which a policy on a CPU reads where environments leave them.

    Args:
        shape: `[time, num_envs, *observation]`.
        dtype: theirs, structured where they are nested.

    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Make room; with zeros, not what was in memory before: a failed rollout is searched for what is not finite."""
        self.arrays: NDArray[Any] = np.zeros(shape, dtype)

    def given(self, step: int, rows: slice = ALL_ENVS) -> dict[NestedKey, Tensor]:
        """What a policy reads at a step, `[rows, ...]`, once it is in `arrays`; to be asked for once."""
        return tensors(leaf_arrays(self.arrays[step, rows]))

    def observed(self) -> dict[NestedKey, Tensor]:
        """All that was given but the last step's, `[time - 1, num_envs, ...]`."""
        return tensors(leaf_arrays(self.arrays[:-1]))

    def following(self, ends: Sequence[Ends]) -> dict[NestedKey, Tensor]:
        """What came next: one step later, or where an episode ended its last, `[time - 1, num_envs, ...]`.

        Without a copy if none did.
        """
        following = self.arrays[1:].copy() if ends else self.arrays[1:]
        for step, envs, observation in ends:
            following[step, envs] = observation
        return tensors(leaf_arrays(following))


def storage_for(shape: tuple[int, ...], dtype: np.dtype[Any], device: torch.device) -> HostStorage | DeviceStorage:
    """Storage in this process's memory for a policy on the CPU, else on both sides."""
    return HostStorage(shape, dtype) if device.type == "cpu" else DeviceStorage(shape, dtype, device)


def require_finite(rollout: TensorDictBase, *, of: str = "rollout", first_step: int = 0) -> TensorDictBase:
    """The rollout, if every observation and reward in it is finite.

    Args:
        rollout: `[num_envs, time]`.
        of: what it is, or is a part of.
        first_step: where in it the part begins.

    Raises:
        NumericalError: naming the environment, the step of the rollout and the key.

    """
    observation = rollout.select("observation")
    for key in observation.keys(include_nested=True, leaves_only=True):
        refuse_not_finite(key, rollout["next"][key], of, first_step)
        refuse_not_finite(key, rollout[key], of, first_step - 1)
    refuse_not_finite("reward", rollout["next", "reward"], of, first_step)
    return rollout


def refuse_not_finite(key: NestedKey, values: Tensor, of: str, first_step: int) -> None:
    """Raise a NumericalError for the first entry of `[num_envs, time, ...]` that is not finite."""
    if not values.is_floating_point() or values.sum().isfinite() or values.isfinite().all():
        return
    step, env = values.isfinite().reshape(*values.shape[:2], -1).all(-1).T.logical_not().nonzero()[0].tolist()
    bad = values[env, step]
    name = key if isinstance(key, str) else "/".join(key)
    raise NumericalError(
        f"{name} of environment {env} is {bad[~bad.isfinite()][0].item()} at step {step + first_step} of the {of}; "
        "mend the environment"
    )
