"""The interface of our vector environments, and functions that call and read a single environment."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from numpy.typing import NDArray

from ...errors import ConfigurationError, EnvironmentFailure
from ..spaces.conversion import as_number
from ..spaces.encoding import encoder, identity
from ..spaces.specs import ALL_ENVS, StepArrays, subspaces

SUCCESS_KEYS = ("is_success", "success")
"""Keys of `info` that are read at the end of every episode."""
METRIC_NAMES = (
    *("ep_rew_mean", "ep_rew_std", "ep_len_mean", "mean_reward", "std_reward", "mean_ep_len"),
    *("return_mean", "return_std", "length_mean", "episodes", "episodes_cut"),
)
"""Names of metrics that entries of `info` must not replace."""


class SlicedVectorEnv(GymnasiumVectorEnv[Any, Any, Any]):
    """Base class of vector environments that step slices of their environments and reset only on request.

    Attributes:
        info_keys: keys of the entries of `info` that are read at the end of an episode.
        listed_info_keys: the keys that the user listed; the others are `SUCCESS_KEYS`.
        episode_info: values of `info_keys` in the last step of each environment's last complete episode, `[num_envs,
            len(info_keys)]`. They are NaN if `info` had no such entry. A reset writes them. `None` without keys.
        own_steps: what some steps of `own_resume_class` returned, if the environment or a wrapper is the user's own.
        resume_class: how episodes continue after a restart, one of `resume.resumability.RESUME_CLASSES`.

    """

    info_keys: tuple[str, ...] = ()
    listed_info_keys: tuple[str, ...] = ()
    episode_info: NDArray[np.float64] | None = None
    own_steps: Sequence[Any] = ()
    resume_class = "inexact"

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
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    return not {type(layer).__module__.split(".")[0] for layer in layers} <= {"gymnasium", __name__.split(".")[0]}


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


def info_number(key: str, value: Any) -> float:
    """Return an entry of `info` as a number. Return NaN if it is not finite, or for `SUCCESS_KEYS` not one number.

    Raises:
        EnvironmentFailure: if the entry of another key is not one number.

    """
    try:
        number = as_number(value)
        return number if abs(number) <= float(np.finfo(np.float32).max) else float("nan")  # rollouts are float32
    except EnvironmentFailure:
        if key in SUCCESS_KEYS:
            return float("nan")
        raise EnvironmentFailure(
            f"env.info_keys: info[{key!r}] is a {type(value).__name__}, not one number; remove it from env.info_keys"
        ) from None


def raise_on_encoded_spaces(vector: GymnasiumVectorEnv[Any, Any, Any]) -> None:
    """Raise an EnvironmentFailure if the spaces need an encoding. Only a `SlicedVectorEnv` encodes."""
    observation, action = vector.single_observation_space, vector.single_action_space
    if encoder(observation) is not identity or subspaces(action):
        raise EnvironmentFailure(
            f"{vector} does not support the spaces {observation} and {action}; use "
            "torchppo.envs.SerialVectorEnv or SubprocessVectorEnv"
        )


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
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the environment's own code may raise anything
        warnings.warn(f"{env} failed to close: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
