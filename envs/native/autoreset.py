"""Wrappers that add resets on request to Gymnasium vector environments that reset automatically."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from numpy.typing import NDArray

from ...errors import EnvironmentFailure
from ..spaces.encoding import encoder, identity
from ..spaces.specs import subspaces

Vector = GymnasiumVectorEnv[Any, Any, Any]


def without_autoreset(vector: Vector) -> Vector:
    """Return a vector environment that resets on request. The result depends on the autoreset mode of `vector`.

    - `DISABLED`: `vector` itself.
    - `SAME_STEP`: a `SameStepReset`. The data is exact.
    - `NEXT_STEP`: the data is exact if single environments can be reset on request, as in the vector environments of
      Gymnasium, ale-py and EnvPool. Otherwise, a `NextStepReset`.

    Raises:
        EnvironmentFailure: if the metadata does not contain the autoreset mode.

    """
    mode = vector.metadata.get("autoreset_mode")
    match AutoresetMode(mode) if mode in {one.value for one in AutoresetMode} else mode:
        case AutoresetMode.DISABLED:
            return vector
        case AutoresetMode.SAME_STEP:
            return SameStepReset(vector)
        case AutoresetMode.NEXT_STEP:
            if isinstance(vector, CartPoleVectorEnv):
                return CartPoleReset(vector)
            if has_base_in(vector, "envpool"):
                return EnvPoolReset(vector)
            if isinstance(vector.unwrapped, SyncVectorEnv | AsyncVectorEnv) or has_base_in(vector, "ale_py"):
                return vector  # a reset with `reset_mask` returns the observations of all environments
            return NextStepReset(vector)
    raise EnvironmentFailure(
        f"{vector} has no autoreset mode; set its metadata['autoreset_mode'] to a gymnasium.vector.AutoresetMode"
    )


def has_base_in(vector: Any, package: str) -> bool:
    """Return whether the class of a vector environment or one of its bases belongs to a package."""
    return any(base.__module__.partition(".")[0] == package for base in type(vector).__mro__)


class ResetOnRequest(VectorWrapper):
    """Base class of wrappers that replace automatic resets by resets on request."""

    def __init__(self, env: Vector) -> None:
        super().__init__(env)
        self.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.DISABLED}


class CartPoleReset(ResetOnRequest):
    """Resets single environments of Gymnasium's native CartPole, whose `reset` has no mask.

    A reset sets the same attributes as `CartPoleVectorEnv.step`. Tested with Gymnasium 1.4.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those in `options["reset_mask"]`. All states come from one random generator."""
        if options is None:
            return self.env.reset(seed=seed)
        cartpole: Any = self.env
        mask = options["reset_mask"]
        cartpole.state[:, mask] = cartpole.np_random.uniform(cartpole.low, cartpole.high, (4, np.count_nonzero(mask)))
        cartpole.steps[mask] = 0
        cartpole.prev_done[mask] = False
        return cartpole.state.T.astype(np.float32), {}


class EnvPoolReset(ResetOnRequest):
    """Resets single environments of an EnvPool.

    A reset with a seed makes a new EnvPool, because `reset` of EnvPool ignores the seed.

    Args:
        env: the EnvPool.
        make: makes the EnvPool from a seed; each of its environments adds its index. `None`: seeds have no effect.

    """

    def __init__(self, env: Any, make: Callable[[int], Any] | None = None) -> None:
        super().__init__(env)
        self._make = make
        self._observation: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those in `options["reset_mask"]`."""
        if options is not None:
            observation, info = self.env.reset(options=options)  # only of these environments
            self._observation = self._observation.copy()
            self._observation[options["reset_mask"]] = observation
            return self._observation, info
        if seed is not None and self._make is not None:
            self.env.close()
            self.env = self._make(seed)
        self._observation, info = self.env.reset()
        return self._observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._observation, *results = self.env.step(actions)
        return self._observation, *results


class SameStepReset(ResetOnRequest):
    """Returns the final observations from `info["final_obs"]`. The next reset returns those of the new episodes."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or continue with the new episodes of those in `options["reset_mask"]`.

        Raises:
            EnvironmentFailure: if the episode of an environment in the mask has not ended.

        """
        if options is None:
            return self.env.reset(seed=seed)
        raise_on_running_episodes(self, options["reset_mask"], self._ended)
        return self._observation, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._observation, reward, terminated, truncated, info = self.env.step(actions)
        self._ended = np.asarray(terminated) | np.asarray(truncated)
        observation = np.array(self._observation)
        if self._ended.any():
            final = info.get("final_obs", info.get("final_observation"))
            if final is None:
                raise EnvironmentFailure(f"{self.env} resets in the same step, but has no info['final_obs']; add it")
            for index in np.flatnonzero(self._ended):
                observation[index] = final[index]
        return observation, reward, terminated, truncated, info


class NextStepReset(ResetOnRequest):
    """Marks the steps in which an environment is reset while others continue.

    In the step after the end of an episode, a vector environment in `AutoresetMode.NEXT_STEP` ignores the action,
    resets, and returns the reward 0. This step is not a transition. If all episodes end in the same step, the whole
    batch is reset, and no such step occurs.

    A skipped step has the final observation before and after it and the reward 0. It is truncated, its `step_count` is
    0, and `skipped` is true for its environment. `Collector` replaces it (see `pipelines/collectors/skipped_steps.py`),
    and `evaluate` ignores it. TorchRL's collectors keep it: its advantage is near 0, because both states are the same.

    Attributes:
        skipped: whether each environment was reset in the last step, bool `[num_envs]`.

    """

    def __init__(self, env: Vector) -> None:
        super().__init__(env)
        self.skipped: NDArray[np.bool_] = np.zeros(env.num_envs, np.bool_)
        self._ended = self.skipped

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those in `options["reset_mask"]` with the next step.

        Raises:
            EnvironmentFailure: if the episode of an environment in the mask has not ended.

        """
        if options is None or (mask := options["reset_mask"] & ~self.skipped).all():
            observation, info = self.env.reset(seed=seed)
            self._observation = np.asarray(observation)
            self._ended = self.skipped = np.zeros_like(self.skipped)
            return self._observation, info
        raise_on_running_episodes(self, mask, self._ended)
        return self._observation, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        previous, self.skipped = self._observation, self._ended
        observation, reward, terminated, truncated, info = self.env.step(actions)
        self._observation = np.array(observation)
        self._ended = np.asarray(terminated) | np.asarray(truncated)
        if self.skipped.any():
            mask = self.skipped.reshape(-1, *[1] * (self._observation.ndim - 1))
            observation = np.where(mask, previous, self._observation)
            truncated = np.asarray(truncated) | self.skipped
        return observation, reward, terminated, truncated, info


def raise_on_running_episodes(vector: Any, mask: NDArray[np.bool_], ended: NDArray[np.bool_]) -> None:
    if (mask & ~ended).any():
        raise EnvironmentFailure(f"{vector} cannot reset an environment whose episode has not ended; reset all of them")


def raise_on_encoded_spaces(vector: Vector) -> None:
    """Raise an EnvironmentFailure if the spaces need an encoding. Only a `SlicedVectorEnv` encodes."""
    observation, action = vector.single_observation_space, vector.single_action_space
    if encoder(observation) is not identity or subspaces(action):
        raise EnvironmentFailure(
            f"{vector} does not support the spaces {observation} and {action}; use "
            "torchppo.envs.SerialVectorEnv or SubprocessVectorEnv"
        )
