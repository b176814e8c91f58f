"""The interface of our vector environments, and functions that call and read a single environment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from ...errors import ConfigurationError, EnvironmentFailure
from ..resume.plain_data import layers_of
from ..spaces.specs import ALL_ENVS, StepArrays, action_spec, observation_spec


class SlicedVectorEnv(GymnasiumVectorEnv[Any, Any, Any]):
    """Base class of vector environments that step slices of their environments and reset only on request.

    Attributes:
        info_keys: keys of the entries of `info` that are read at the end of an episode.
        listed_info_keys: the keys that the user listed; the others are `SUCCESS_KEYS`.
        episode_info: values of `info_keys` in the last step of each environment's last complete episode, `[num_envs,
            len(info_keys)]`. They are NaN if `info` had no such entry. A reset writes them. `None` without keys.
        own_steps: what some steps of `own_resume_class` returned, if the environment or a wrapper is the user's own.
        resume_class: how episodes continue after a restart, one of `resume.resumability.RESUME_CLASSES`.
        last_seeds: the last seed of each environment.
        has_left_space: whether an observation outside of its space was reported.
        num_restarts: number of episodes of each environment that were truncated because it was recreated after a
            failure, `[num_envs]`. The step of the failure has the last observation and the reward 0, except for
            environments that had completed it before their worker died. `None`: failures are raised.

    """

    info_keys: tuple[str, ...] = ()
    listed_info_keys: tuple[str, ...] = ()
    episode_info: NDArray[np.float64] | None = None
    own_steps: Sequence[Any] = ()
    resume_class = "inexact"
    last_seeds: Any = None
    has_left_space = False
    num_restarts: NDArray[np.int64] | None = None

    @property
    def skipped(self) -> NDArray[np.bool_] | None:
        """Whether the last step of each environment was skipped; `None` without skipped steps (see `NextStepReset`)."""
        return None

    def set_resume_class(self, name: str | None = None, max_seconds: float = 20.0) -> str:
        """Set and return `resume_class`. Without a name, test new environments. Call this before the first reset."""
        return self.resume_class

    def own_resume_class(self, max_seconds: float = 20.0) -> str | None:
        """Return the `resume_class` after a test of these environments before their first reset; `None`: no test."""
        return None

    def env_states(self) -> list[Any]:
        """Return what the environments continue their episodes from, as plain data; see `resume_class`."""
        return []

    def load_env_states(self, states: Sequence[Any]) -> None:
        """Continue the episodes of `env_states`. The vector environment must have been made in the same way."""

    def read_episode_info(self, mask: NDArray[np.bool_]) -> None:
        """Write `episode_info` of the environments in `mask` before they are reset."""

    def call_envs(self, method: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the results of `call`, `get_attr` or `set_attr`, one per environment."""
        raise ConfigurationError(
            f"{method}({args[0]!r}) does not work with {type(self).__name__}, which runs in C++; remove the call"
        )

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment or its wrappers and return the results."""
        return self.call_envs("call", name, *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment or its wrappers."""
        return self.call_envs("get_attr", name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an existing attribute of every environment or wrapper to one value, or to a list with a value for each.

        Raises:
            ConfigurationError: if the number of values is wrong.
            EnvironmentFailure: if an environment has no such attribute.

        """
        values = values if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ConfigurationError(
                f"set_attr({name!r}) has {len(values)} values for {self.num_envs} environments; pass one value or one "
                "per environment"
            )
        self.call_envs("set_attr", name, list(values))

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


def is_own(env: gymnasium.Env[Any, Any]) -> bool:
    """Return whether an environment or one of its wrappers is neither from Gymnasium nor from torchppo."""
    packages = {type(layer).__module__.split(".")[0] for layer in layers_of(env)}
    return not packages <= {"gymnasium", __name__.split(".")[0]}


def call_env(
    env: gymnasium.Env[Any, Any], method: str, name: str, value: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> Any:
    """Call a method of one environment, or get or set one of its attributes."""
    if not env.has_wrapper_attr(name):
        raise EnvironmentFailure(f"{env.unwrapped} has no attribute {name!r}; fix the name in {method}")
    if method == "set_attr":
        return env.set_wrapper_attr(name, value)
    attribute = env.get_wrapper_attr(name)
    return attribute(*args, **kwargs) if method == "call" and callable(attribute) else attribute


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


class EnvDescription(NamedTuple):
    """The attributes that a vector environment takes from one of its environments."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    render_mode: str | None
    metadata: dict[str, Any]
    spec: EnvSpec | None = None


def describe_env(env: gymnasium.Env[Any, Any]) -> EnvDescription:
    """Describe an environment. The spec has only the id and the time limit, because others may not be picklable.

    An environment without a spec that has a `TimeLimit` gets one with the name of its class.
    """
    limits = [layer._max_episode_steps for layer in layers_of(env) if isinstance(layer, TimeLimit)]
    spec = None
    if env.spec is not None:
        spec = EnvSpec(env.spec.id, max_episode_steps=env.spec.max_episode_steps)
    elif limits:
        spec = EnvSpec(type(env.unwrapped).__name__, max_episode_steps=min(limits))
    return EnvDescription(env.observation_space, env.action_space, env.render_mode, env.metadata, spec)


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
    vector.spec = single.spec
    vector.metadata = {**single.metadata, "autoreset_mode": AutoresetMode.DISABLED}
