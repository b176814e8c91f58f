"""A vector environment that steps its environments in this process, and functions of all vector environments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ...errors import ConfigurationError
from ..failures import environment_failure
from ..resume.resumability import continue_episode, episode_state, resume_class, resume_class_of, with_replay
from ..spaces.conversion import as_number
from ..spaces.encoding import check_first_observations, encode_spaces, lacks_mask
from ..spaces.specs import (
    ALL_ENVS,
    RESERVED_NAMES,
    Allocate,
    StepArrays,
    action_spec,
    observation_spec,
    step_arrays_for,
)
from .interface import (
    METRIC_NAMES,
    SUCCESS_KEYS,
    SlicedVectorEnv,
    call_env,
    close,
    env_seeds,
    info_number,
    is_own,
    reset_indices,
)

UNUSED_MASK = (
    'info["action_mask"] is not used; to use it, return it with every reset and step, and add '
    "env.wrappers=[{_target_: torchppo.envs.wrappers.ActionMask, _partial_: true}]"
)
EnvFn = Callable[[], gymnasium.Env[Any, Any]]


class SerialVectorEnv(SlicedVectorEnv):
    """Steps its environments one after the other in this process.

    It is faster than Gymnasium's `SyncVectorEnv`, which merges the `info` of all environments at every step. Here
    `info` is dropped, except for `raw_episode_reward` and the `info_keys`. Observations of a Dict or Tuple space are
    structured arrays. Actions of such a space must be structured arrays too (see `action_converter`).

    Args:
        env_fns: one function per environment that makes it.
        arrays: arrays that the steps write to; `None` allocates them.
        info_keys: entries of `info` to read at the end of an episode, in addition to `SUCCESS_KEYS`.
        episode_info: array that the entries are written to; `None` allocates it.

    Raises:
        EnvironmentFailure: if a space is not supported; while running, if one of the first two observations of an
            environment does not fit its space.

    """

    episode_info: NDArray[np.float64]

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        arrays: StepArrays | None = None,
        info_keys: Sequence[str] = (),
        episode_info: NDArray[np.float64] | None = None,
    ) -> None:
        self.envs: list[gymnasium.Env[Any, Any]] = []
        try:
            for env_fn in env_fns:
                self.envs.append(encode_spaces(check_first_observations(env_fn())))
        except BaseException:
            self.close_extras()
            raise
        self._env_fn = env_fns[0]
        init_vector_env(self, describe_env(self.envs[0]), len(self.envs))
        self.spec = self.envs[0].spec
        self.arrays = step_arrays_for(self.single_observation_space, self.num_envs) if arrays is None else arrays
        self.info_keys, self.listed_info_keys = all_info_keys(info_keys), tuple(info_keys)
        self.episode_info = episode_info_for(self.info_keys, self.num_envs) if episode_info is None else episode_info
        self._infos: list[dict[str, Any] | None] = [None] * self.num_envs  # of the last step, `None` after a reset
        self._has_info = bool(info_keys)
        self._missing: set[str] = set()
        self._lacks_mask = lacks_mask(self.single_observation_space, self.single_action_space)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        seeds = env_seeds(seed, self.num_envs)
        for index in reset_indices(options, self.num_envs):
            self._read_info(index)
            self.arrays.observation[index], _ = self.envs[index].reset(seed=seeds[index])
            self._infos[index] = None
        return self.arrays.observation, {}

    def send(self, actions: Any, env_slice: slice = ALL_ENVS) -> None:
        observations, rewards, terminated, truncated, raw_episode_rewards = self.arrays
        infos = self._infos
        for index, action in zip(range(self.num_envs)[env_slice], actions, strict=True):
            observations[index], reward, terminated[index], truncated[index], info = self.envs[index].step(action)
            try:
                rewards[index] = reward
            except (TypeError, ValueError, Warning):  # an array of one element, or a tensor with a gradient
                rewards[index] = as_number(reward)
            infos[index] = info
            if "raw_episode_reward" in info:
                raw_episode_rewards[index] = info["raw_episode_reward"]

    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        return self.arrays.select(env_slice)

    def read_episode_info(self, mask: NDArray[np.bool_]) -> None:
        for index in np.flatnonzero(mask).tolist():
            self._read_info(index)

    def _read_info(self, index: int) -> None:
        info = self._infos[index]
        if info is None or not (info or self._has_info):
            return
        self._has_info = True
        if self._lacks_mask and "action_mask" in info:
            self._lacks_mask = False
            warnings.warn(UNUSED_MASK, RuntimeWarning, stacklevel=2)
        for position, key in enumerate(self.info_keys):
            value = info.get(key)
            if value is None and key not in self._missing and key not in SUCCESS_KEYS:
                self._missing.add(key)
                reported = ", ".join(map(str, info)) or "an empty info"
                message = (
                    f"env.info_keys: an episode ended without info[{key!r}]; remove it, or use a key of {reported}"
                )
                warnings.warn(message, RuntimeWarning, stacklevel=2)
            self.episode_info[index, position] = np.nan if value is None else info_number(key, value)

    def call_envs(self, method: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        name, *others = args
        values = others.pop() if method == "set_attr" else [None] * self.num_envs
        try:
            return tuple(
                call_env(env, method, name, value, others, kwargs) for env, value in zip(self.envs, values, strict=True)
            )
        except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
            raise environment_failure(f"{method}({name!r}) failed", error) from None

    def set_resume_class(self, name: str | None = None, max_seconds: float = 20.0) -> str:
        is_shown = self.render_mode == "human"
        self.resume_class = name or ("inexact" if is_shown else resume_class(self._env_fn, max_seconds))
        if self.resume_class == "replay":
            self.envs = [with_replay(env) for env in self.envs]
        return self.resume_class

    def own_resume_class(self, max_seconds: float = 20.0) -> str:
        self.own_steps = steps = list[Any]()
        seen = steps if is_own(self.envs[0]) else None
        return "inexact" if self.render_mode == "human" else resume_class_of(self.envs, max_seconds, seen)

    def env_states(self) -> list[Any]:
        return [episode_state(env, self.resume_class) for env in self.envs]

    def load_env_states(self, states: Sequence[Any]) -> None:
        for env, state in zip(self.envs, states, strict=True):
            continue_episode(env, self.resume_class, state)

    def render(self) -> tuple[Any, ...]:
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        for env in self.envs:
            close(env)


def all_info_keys(info_keys: Sequence[str]) -> tuple[str, ...]:
    """Return `SUCCESS_KEYS` and `info_keys` without duplicates.

    Raises:
        ConfigurationError: if `info_keys` is not a list of strings, or has the name of another metric.

    """
    if isinstance(info_keys, str) or not all(isinstance(key, str) for key in info_keys):
        raise ConfigurationError(f"env.info_keys={info_keys} is not a list of names; write env.info_keys=[name]")
    if taken := [key for key in info_keys if key in (*METRIC_NAMES, *RESERVED_NAMES)]:
        raise ConfigurationError(f"env.info_keys: {taken[0]!r} is the name of something else; rename it in info")
    return tuple(dict.fromkeys((*SUCCESS_KEYS, *info_keys)))


def episode_info_for(info_keys: Sequence[str], num_envs: int, allocate: Allocate = np.zeros) -> NDArray[np.float64]:
    """Allocate `SlicedVectorEnv.episode_info`."""
    array = allocate((num_envs, len(info_keys)), np.float64)
    array[:] = np.nan
    return array


@contextmanager
def error_filters_removed() -> Iterator[None]:
    """Remove warning filters with the action `error` that the code of an environment adds.

    Some packages call `warnings.filterwarnings("error")` when they are imported. This turns the warnings of all other
    libraries into errors. Filters with other actions are kept.
    """
    before = warnings.filters[:]
    try:
        yield
    finally:
        if warnings.filters != before:
            kept = [one for one in warnings.filters if one[0] != "error" or one in before]
            if kept != warnings.filters:
                warnings.resetwarnings()  # also forgets the cached decisions
                warnings.filters.extend(kept)  # type: ignore[attr-defined] # a list


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
