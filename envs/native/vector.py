"""A Gymnasium vector environment with the interface of our own vector environments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from ...errors import ConfigurationError, EnvironmentFailure
from ..failures import cause_of, environment_failure
from ..guards import IDLE, watched
from ..resume.parts import StateError
from ..resume.resumability import restore_snapshot
from ..resume.snapshot import save_state
from ..spaces.specs import ALL_ENVS, StepArrays, all_info_keys, episode_info_for
from ..vector.episode_info import BatchInfo
from ..vector.interface import EnvDescription, SlicedVectorEnv, init_vector_env
from ..vector.recovery import STEP_TIMEOUT, timeout_failure
from .autoreset import Vector, raise_on_encoded_spaces, without_autoreset
from .resume import native_resume_class
from .wrappers import RawEpisodeReward, vector_wrapped


class NativeVectorEnv(SlicedVectorEnv):
    """Steps all environments with one call of a Gymnasium vector environment.

    Args:
        vector: in any autoreset mode (see `without_autoreset`).
        wrappers: vector wrappers, the first one innermost. They see true final observations.
        info_keys: entries of `info` to read at the end of an episode, in addition to `SUCCESS_KEYS`.
        step_timeout: seconds after which a `Watchdog` ends a step or reset.
        make: makes a vector environment like `vector` from its number of environments, to test whether its state can
            be saved; `None`: episodes do not continue after a restart.
        spec: id and time limit; `None`: those of `vector`.

    Raises:
        EnvironmentFailure: if a space is not supported or needs an encoding, or there is no autoreset mode; while
            running, if the result of a step has a wrong shape.

    """

    def __init__(
        self,
        vector: Vector,
        wrappers: Sequence[Callable[[Vector], Vector]] = (),
        *,
        info_keys: Sequence[str] = (),
        step_timeout: float = STEP_TIMEOUT,
        make: Callable[[int], Vector] | None = None,
        spec: EnvSpec | None = None,
    ) -> None:
        self._make, self._wrappers, self.step_timeout = make, wrappers, step_timeout
        self.vector = self._wrapped(vector)
        raise_on_encoded_spaces(self.vector)
        spaces = self.vector.single_observation_space, self.vector.single_action_space
        spec = getattr(vector, "spec", None) if spec is None else spec
        init_vector_env(self, EnvDescription(*spaces, vector.render_mode, vector.metadata, spec), vector.num_envs)
        self.info_keys, self.listed_info_keys = all_info_keys(info_keys), tuple(info_keys)
        self.episode_info = episode_info_for(self.info_keys, self.num_envs)
        self._info = BatchInfo(self.info_keys, self.episode_info)
        self._no_raw_episode_reward = np.full(self.num_envs, np.nan)
        self.num_steps, self.progress = 0, np.array([IDLE, 0])
        self._seed: int | None = None
        self._actions: Any = None
        watched.add(self)

    def _wrapped(self, vector: Vector) -> Vector:
        """Apply `without_autoreset` and the wrappers."""
        self._resets: Any = without_autoreset(vector)
        self._raw = RawEpisodeReward(self._resets) if self._wrappers else None
        vector = self._resets if self._raw is None else self._raw
        for index, wrapper in enumerate(self._wrappers):
            vector = vector_wrapped(vector, wrapper, f"env.wrappers[{index}]")
        return vector

    @property
    def skipped(self) -> NDArray[np.bool_] | None:
        return getattr(self._resets, "skipped", None)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        if options is not None:
            self.read_episode_info(options["reset_mask"])
        self._seed = self._seed if seed is None else seed
        self._actions, self.progress[0] = None, 0
        try:
            observation, info = self.vector.reset(seed=seed, options=options)
        finally:
            self.progress[0] = IDLE
        return checked("observation", observation, self.observation_space.shape), info

    def send(self, actions: Any, env_slice: slice = ALL_ENVS) -> None:
        """Step all environments. `env_slice` must be `ALL_ENVS`."""
        self._actions = actions
        self.num_steps += 1
        self.progress[:] = 0, self.num_steps
        try:
            observation, reward, terminated, truncated, info = self.vector.step(actions)
        finally:
            self.progress[0] = IDLE
        shape = (self.num_envs,)
        self._arrays = StepArrays(
            checked("observation", observation, self.observation_space.shape),
            checked("reward", reward, shape),
            checked("terminated", terminated, shape).astype(np.bool_, copy=False),
            checked("truncated", truncated, shape).astype(np.bool_, copy=False),
            self._no_raw_episode_reward if self._raw is None else self._raw.total.copy(),
        )
        self._info.last = info

    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        return self._arrays

    def read_episode_info(self, mask: NDArray[np.bool_]) -> None:
        self._info.write(mask)

    def timeout_failure(self) -> EnvironmentFailure:
        """Return the failure of a step that does not return, for a `Watchdog`."""
        place = f"a step of all environments ({cause_of(self._seed, self._actions)}) after {self.num_steps} steps"
        return timeout_failure(place, self.step_timeout)

    def call_envs(self, method: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        function = getattr(self.vector.unwrapped, method, None)
        if function is None:
            raise ConfigurationError(f"{method}({args[0]!r}) does not work with {self.vector}; remove the call")
        try:
            return tuple(function(*args, **kwargs) or ())
        except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
            raise environment_failure(f"{method}({args[0]!r}) failed", error) from None

    def set_resume_class(self, name: str | None = None, max_seconds: float = 20.0) -> str:
        if name is None and self._make is not None:
            other = partial(NativeVectorEnv, wrappers=self._wrappers)
            make = self._make
            name = native_resume_class(lambda: other(make(2)).vector, max_seconds)
        self.resume_class = name or "inexact"
        return self.resume_class

    def env_states(self) -> list[Any]:
        """Return the state of all environments, and `None` for every environment but the first."""
        try:
            return [save_state(self.vector), *[None] * (self.num_envs - 1)]
        except StateError as error:
            raise EnvironmentFailure(f"the state of {self.vector} cannot be saved: {error}") from error

    def load_env_states(self, states: Sequence[Any]) -> None:
        try:
            restore_snapshot(self.vector, states[0])
        except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
            raise environment_failure("the environments cannot continue from the checkpoint", error) from None

    def render(self) -> Any:
        return self.vector.render()

    def close_extras(self, **kwargs: Any) -> None:
        with suppress(Exception):
            self.vector.close()


def checked(name: str, values: Any, shape: tuple[int, ...] | None) -> NDArray[Any]:
    """Return a result of a step as an array; some vector environments return JAX arrays.

    Raises:
        EnvironmentFailure: if its shape is wrong.

    """
    array = np.asarray(values)
    if array.shape != shape:
        raise EnvironmentFailure(f"the vector environment returned {name} of shape {array.shape}; return {shape}")
    return array
