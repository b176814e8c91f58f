"""Many environments in one process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from .arrays import ALL, StepArrays, step_arrays_for
from .checks import checked
from .encoding import encoded
from .failures import close
from .rows import RowsVectorEnv
from .spaces import action_spec, observation_spec

Maker = Callable[[], gymnasium.Env[Any, Any]]


class SerialVectorEnv(RowsVectorEnv):
    """Steps its environments in turn and resets those it is told to (`AutoresetMode.DISABLED`).

    Gymnasium's `SyncVectorEnv` merges the `info` of all environments at every step, which costs more
    than a small environment; here `info` is dropped, except `raw_episode_reward`. Observations of a Dict or
    Tuple are structured arrays, and so have to be actions (see `actions.conversion`).

    Args:
        makers: one callable for every environment.
        arrays: where steps write to; none: arrays of its own.

    Raises:
        EnvironmentFailure: if a space has no spec.

    """

    def __init__(self, makers: Sequence[Maker], arrays: StepArrays | None = None) -> None:
        """Make the environments."""
        self.envs: list[gymnasium.Env[Any, Any]] = []
        try:
            for make in makers:
                self.envs.append(encoded(checked(make())))
        except BaseException:
            self.close_extras()
            raise
        describe(self, description_of(self.envs[0]), len(self.envs))
        self.spec = self.envs[0].spec
        self.arrays = step_arrays_for(self.single_observation_space, self.num_envs) if arrays is None else arrays

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        seeds = seeds_of(seed, self.num_envs)
        for index in reset_indices(options, self.num_envs):
            self.arrays.observation[index], _ = self.envs[index].reset(seed=seeds[index])
        return self.arrays.observation, {}

    def send(self, actions: Any, rows: slice = ALL) -> None:
        """Step the environments in `rows` with their `actions`; a twin of `WorkerVectorEnv.send`."""
        observations, rewards, terminated, truncated, raw = self.arrays
        for index, action in zip(range(self.num_envs)[rows], actions, strict=True):
            observations[index], rewards[index], terminated[index], truncated[index], info = self.envs[index].step(
                action
            )
            if "raw_episode_reward" in info:
                raw[index] = info["raw_episode_reward"]

    def receive(self, rows: slice = ALL) -> StepArrays:
        """What the last steps in `rows` left behind; an observation is the true one also where an episode ended."""
        return self.arrays.rows(rows)

    def render(self) -> tuple[Any, ...]:
        """One frame of every environment."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self.envs:
            close(env)


class Description(NamedTuple):
    """What a vector environment says of its environments."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    render_mode: str | None
    metadata: dict[str, Any]


def description_of(env: gymnasium.Env[Any, Any]) -> Description:
    """What one environment says of itself."""
    return Description(env.observation_space, env.action_space, env.render_mode, env.metadata)


def describe(vector: VectorEnv[Any, Any, Any], single: Description, num_envs: int) -> None:
    """Give a vector environment the spaces and facts of one of its environments, if there is a spec for them."""
    observation_spec(single.observation_space)  # refuses a space that has none, as does the next
    action_spec(single.action_space)
    vector.num_envs = num_envs
    vector.single_observation_space = single.observation_space
    vector.single_action_space = single.action_space
    vector.observation_space = batch_space(single.observation_space, num_envs)
    vector.action_space = batch_space(single.action_space, num_envs)
    vector.render_mode = single.render_mode
    vector.metadata = {**single.metadata, "autoreset_mode": AutoresetMode.DISABLED}


def seeds_of(seed: int | Sequence[int | None] | None, num_envs: int) -> Sequence[int | None]:
    """A seed for every environment: consecutive ones from a number, or none at all."""
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int):
        return [seed + index for index in range(num_envs)]
    return [None if one is None else int(one) for one in seed]


def reset_indices(options: dict[str, Any] | None, num_envs: int) -> Sequence[int]:
    """Which environments a reset is for."""
    mask = (options or {}).get("reset_mask")
    return range(num_envs) if mask is None else np.flatnonzero(mask).tolist()
