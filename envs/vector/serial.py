"""A vector environment that steps its environments in this process, and functions of all vector environments."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, MultiBinary
from numpy.typing import NDArray

from ...errors import EnvironmentFailure
from ..failures import environment_failure, is_from_environment, place_of, step_failure
from ..guards import CLOSE_SECONDS, IDLE, close, watched
from ..resume.plain_data import seed_spaces
from ..resume.replay import with_replay
from ..resume.resumability import continue_episode, episode_state, resume_class, resume_class_of
from ..spaces.conversion import as_flag, as_number
from ..spaces.encoding import EncodeSpaces, encode_spaces, fits, lacks_mask, raise_on_mismatch
from ..spaces.specs import ALL_ENVS, StepArrays, all_info_keys, episode_info_for, step_arrays_for
from .episode_info import EpisodeInfo
from .interface import (
    SlicedVectorEnv,
    call_env,
    describe_env,
    env_seeds,
    init_vector_env,
    is_own,
    reset_indices,
)
from .recovery import STEP_TIMEOUT, Restarts, raise_if_not_finite, recreated, timeout_failure

EnvFn = Callable[[], gymnasium.Env[Any, Any]]
NUMBERS = frozenset({float, int, np.float64, np.float32, np.int64})
FLAGS = frozenset({bool, np.bool_})
"""Classes of rewards and of flags that need no conversion."""

# A float64 that is too large for float32 becomes infinite, which is reported.
warnings.filterwarnings("ignore", message="overflow encountered in cast")


class SerialVectorEnv(SlicedVectorEnv):
    """Steps its environments one after the other in this process.

    Unlike Gymnasium's `SyncVectorEnv`, it does not merge the `info` of all environments at every step, but drops it,
    except for `raw_episode_reward` and the `info_keys`. Observations of a Dict or Tuple space are structured arrays.
    Actions of such a space must be structured arrays too (see `action_converter`).

    Args:
        env_fns: one function per environment that makes it.
        arrays: arrays that the steps write to; `None` allocates them.
        info_keys: entries of `info` to read at the end of an episode, in addition to `SUCCESS_KEYS`.
        episode_info: array that the entries are written to; `None` allocates it.
        step_timeout: seconds after which a `Watchdog` ends a step or reset of one environment.
        restarts: see `Restarts`; `None` raises every failure.
        progress: array `[2]`: the environment that is being stepped, or `IDLE`, and the number of steps so far.
        first_env: index of the first environment in messages.

    Raises:
        EnvironmentFailure: if a space is not supported; while running, if an environment raises, or returns an
            observation, reward or flag of a wrong type or shape.

    """

    episode_info: NDArray[np.float64]

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        arrays: StepArrays | None = None,
        info_keys: Sequence[str] = (),
        episode_info: NDArray[np.float64] | None = None,
        *,
        step_timeout: float = STEP_TIMEOUT,
        restarts: Restarts | None = None,
        progress: NDArray[np.int64] | None = None,
        first_env: int = 0,
    ) -> None:
        self.envs: list[gymnasium.Env[Any, Any]] = []
        self.num_steps, self.step_timeout, self.first_env = 0, step_timeout, first_env
        self.progress = np.array([IDLE, 0]) if progress is None else progress
        self.last_seeds: list[int | None] = [None] * len(env_fns)
        self.actions: Any = None
        watched.add(self)
        try:
            for index, env_fn in enumerate(env_fns):
                self.progress[:] = index, -1
                self.envs.append(encode_spaces(env_fn()))
        except BaseException:
            watched.discard(self)  # the traceback may keep it
            self.close_extras()
            raise
        self.progress[:] = IDLE, 0
        self.env_fns, self.restarts, self._has_info = env_fns, restarts, bool(info_keys)
        self.num_restarts = None if restarts is None else restarts.counts
        init_vector_env(self, describe_env(self.envs[0]), len(self.envs))
        self.arrays = step_arrays_for(self.single_observation_space, self.num_envs) if arrays is None else arrays
        self.info_keys, self.listed_info_keys = all_info_keys(info_keys), tuple(info_keys)
        self.episode_info = episode_info_for(self.info_keys, self.num_envs) if episode_info is None else episode_info
        self.infos: list[dict[str, Any] | None] = [None] * self.num_envs  # of the last step, `None` after a reset
        space = self.single_observation_space  # `EncodeSpaces` checks the observations that it encodes
        self._fits = fits(space) if not isinstance(self.envs[0], EncodeSpaces) else lambda _: True
        self._array_type = space.dtype if isinstance(space, Box | MultiBinary) else None, space.shape

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        seeds = env_seeds(seed, self.num_envs)
        self.actions = None
        for index in reset_indices(options, self.num_envs):
            self._read_info(index)
            self._reset(index, seeds[index])
            self.infos[index] = None
        self.progress[0] = IDLE
        return self.arrays.observation, {}

    def _reset(self, index: int, seed: int | None) -> None:
        if seed is None and self.restarts is not None:
            seed = self.restarts.pending.pop(self.first_env + index, None)
        if seed is not None:
            self.last_seeds[index] = seed
        self.progress[0] = index
        try:
            seed_spaces(self.envs[index], seed)
            observation, _ = self.envs[index].reset(seed=seed)
            if not self._fits(observation):
                raise_on_mismatch(self.envs[index], observation)
            self.arrays.observation[index] = observation
            if self.restarts is not None:
                raise_if_not_finite(self.arrays.observation[index : index + 1], self.arrays.reward[index])
        except BaseException as error:  # noqa: BLE001 - `_recover` raises other errors again
            self._recover(index, error)
            self._reset(index, None)

    def send(self, actions: Any, env_slice: slice = ALL_ENVS) -> None:
        observations, rewards, all_terminated, all_truncated, raw_episode_rewards = self.arrays
        infos, progress, fit, (dtype, shape) = self.infos, self.progress, self._fits, self._array_type
        before = None if self.restarts is None else observations.copy()
        self.actions = actions
        progress[1] = self.num_steps = self.num_steps + 1
        for index, action in zip(range(self.num_envs)[env_slice], actions, strict=True):
            progress[0] = index
            try:
                observation, reward, terminated, truncated, info = self.envs[index].step(action)
                is_usual = observation.__class__ is np.ndarray and observation.dtype is dtype
                if not (is_usual and observation.shape == shape) and not fit(observation):
                    raise_on_mismatch(self.envs[index], observation)
                if terminated.__class__ not in FLAGS or truncated.__class__ not in FLAGS:
                    terminated, truncated = as_flag(terminated), as_flag(truncated)
                rewards[index] = reward if reward.__class__ in NUMBERS else as_number(reward)
                observations[index] = observation
                all_terminated[index], all_truncated[index] = terminated, truncated
                if "raw_episode_reward" in info:
                    raw_episode_rewards[index] = info["raw_episode_reward"]
                infos[index] = info
                if before is not None:
                    raise_if_not_finite(observations[index : index + 1], rewards[index])
            except BaseException as error:  # noqa: BLE001 - `_recover` raises other errors again
                if before is not None:
                    observations[index] = before[index]
                self._recover(index, error, action)
        progress[0] = IDLE

    def _recover(self, index: int, error: BaseException, action: Any = None) -> None:
        """Recreate an environment that has failed and truncate its episode, or raise the failure."""
        if not is_from_environment(error):
            self.progress[0] = IDLE
            raise error
        failure = step_failure(self._place(index, action), error)
        if self.restarts is None or not isinstance(failure, EnvironmentFailure):
            self.progress[0] = IDLE
            raise failure from None
        env = self.first_env + index
        make = partial(recreated, self.env_fns[index], self.resume_class)
        self.envs[index] = self.restarts.replace(self.envs[index], make, failure, env, self.last_seeds[index])
        if action is not None:  # not in a reset
            self.restarts.counts[env] += 1
            self.arrays.reward[index] = 0.0
            self.arrays.terminated[index], self.arrays.truncated[index] = False, True
            self.infos[index] = None

    def _place(self, index: int, action: Any) -> str:
        return place_of(self.first_env + index, self.num_steps, self.last_seeds[index], action)

    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        return self.arrays.select(env_slice)

    def read_episode_info(self, mask: NDArray[np.bool_]) -> None:
        for index in np.flatnonzero(mask).tolist():
            self._read_info(index)

    def _read_info(self, index: int) -> None:
        info = self.infos[index]
        if info is None or not (info or self._has_info):
            return
        self._has_info = True
        self._info_writer.write(index, info)

    @cached_property
    def _info_writer(self) -> EpisodeInfo:
        no_mask = lacks_mask(self.single_observation_space, self.single_action_space)
        return EpisodeInfo(self.info_keys, self.episode_info, lacks_mask=no_mask)

    def timeout_failure(self) -> EnvironmentFailure:
        """Return the failure of the environment that is being stepped, for a `Watchdog`."""
        index = int(self.progress[0])
        place = self._place(index, None if self.actions is None else self.actions[index])
        return timeout_failure(place, self.step_timeout)

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
        self.resume_class = name or ("inexact" if is_shown else resume_class(self.env_fns[0], max_seconds))
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
            continue_episode(env, self.resume_class, state["state"] if isinstance(state, dict) else state)

    def render(self) -> tuple[Any, ...]:
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        end = time.monotonic() + CLOSE_SECONDS
        for env in self.envs:
            close(env, max(0.2, end - time.monotonic()))
