"""The interface of our vector environments, and the one that steps its environments in this process."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ..spaces.encoding import check_first_observations, encode_spaces
from ..spaces.specs import ALL_ENVS, StepArrays, action_spec, observation_spec, step_arrays_for

EnvFn = Callable[[], gymnasium.Env[Any, Any]]


class SlicedVectorEnv(GymnasiumVectorEnv[Any, Any, Any]):
    """Base class of vector environments that step slices of their environments and reset only on request."""

    @abstractmethod
    def send(self, actions: Any, env_slice: slice = ALL_ENVS) -> None:
        """Start a step of the environments in `env_slice`."""

    @abstractmethod
    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        """Wait for the step of the environments in `env_slice`. An episode ends with its true final observation."""

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        self.send(actions)
        observation, reward, terminated, truncated, raw_episode_reward = self.receive()
        return observation, reward, terminated, truncated, {"raw_episode_reward": raw_episode_reward}

    def double_buffer_groups(self) -> list[slice]:
        """Return two groups of environments that can be stepped independently; empty if there are none."""
        return []


class SerialVectorEnv(SlicedVectorEnv):
    """Steps its environments one after the other in this process.

    It is faster than Gymnasium's `SyncVectorEnv`, which merges the `info` of all environments at every step. Here
    `info` is dropped, except for `raw_episode_reward`. Observations of a Dict or Tuple space are structured arrays.
    Actions of such a space must be structured arrays too (see `action_converter`).

    Args:
        env_fns: one function per environment that makes it.
        arrays: arrays that the steps write to; `None` allocates them.

    Raises:
        EnvironmentFailure: if a space is not supported; while running, if one of the first two observations of an
            environment does not fit its space.

    """

    def __init__(self, env_fns: Sequence[EnvFn], arrays: StepArrays | None = None) -> None:
        self.envs: list[gymnasium.Env[Any, Any]] = []
        try:
            for env_fn in env_fns:
                self.envs.append(encode_spaces(check_first_observations(env_fn())))
        except BaseException:
            self.close_extras()
            raise
        init_vector_env(self, describe_env(self.envs[0]), len(self.envs))
        self.spec = self.envs[0].spec
        self.arrays = step_arrays_for(self.single_observation_space, self.num_envs) if arrays is None else arrays

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        seeds = env_seeds(seed, self.num_envs)
        for index in reset_indices(options, self.num_envs):
            self.arrays.observation[index], _ = self.envs[index].reset(seed=seeds[index])
        return self.arrays.observation, {}

    def send(self, actions: Any, env_slice: slice = ALL_ENVS) -> None:
        observations, rewards, terminated, truncated, raw_episode_rewards = self.arrays
        for index, action in zip(range(self.num_envs)[env_slice], actions, strict=True):
            observations[index], rewards[index], terminated[index], truncated[index], info = self.envs[index].step(
                action
            )
            if "raw_episode_reward" in info:
                raw_episode_rewards[index] = info["raw_episode_reward"]

    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        return self.arrays.select(env_slice)

    def render(self) -> tuple[Any, ...]:
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        for env in self.envs:
            close(env)


class EnvDescription(NamedTuple):
    """The attributes that a vector environment takes from one of its environments."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    render_mode: str | None
    metadata: dict[str, Any]


def describe_env(env: gymnasium.Env[Any, Any]) -> EnvDescription:
    return EnvDescription(env.observation_space, env.action_space, env.render_mode, env.metadata)


def init_vector_env(vector: GymnasiumVectorEnv[Any, Any, Any], single: EnvDescription, num_envs: int) -> None:
    """Set the attributes of `gymnasium.vector.VectorEnv` from the description of a single environment.

    Raises:
        EnvironmentFailure: if a space is not supported.

    """
    observation_spec(single.observation_space)  # raises if the space is not supported
    action_spec(single.action_space)
    vector.num_envs = num_envs
    vector.single_observation_space = single.observation_space
    vector.single_action_space = single.action_space
    vector.observation_space = batch_space(single.observation_space, num_envs)
    vector.action_space = batch_space(single.action_space, num_envs)
    vector.render_mode = single.render_mode
    vector.metadata = {**single.metadata, "autoreset_mode": AutoresetMode.DISABLED}


def env_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> Sequence[int | None]:
    """Return one seed per environment: consecutive seeds from a number, or `None` for each without a seed."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int):
        return [seed + index for index in range(num_envs)]
    return [None if one is None else int(one) for one in seed]


def reset_indices(options: dict[str, Any] | None, num_envs: int) -> Sequence[int]:
    """Return the indices of the environments to reset: those of `options["reset_mask"]`, or all."""
    mask = (options or {}).get("reset_mask")
    return range(num_envs) if mask is None else np.flatnonzero(mask).tolist()


def close(env: gymnasium.Env[Any, Any]) -> None:
    """Close an environment and turn its exceptions into a warning, so that all other environments are closed too."""
    try:
        env.close()
    except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
        warnings.warn(f"{env} failed to close: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
