"""Many environments in one process, one after the other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
from numpy.typing import NDArray

from ..spaces.encoding import checked, encoded
from ..spaces.specs import ALL_ENVS, StepArrays, step_arrays_for
from ..vector_env import SlicedVectorEnv, describe, description_of, reset_indices, seeds_of

Maker = Callable[[], gymnasium.Env[Any, Any]]


class SerialVectorEnv(SlicedVectorEnv):
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

    def send(self, actions: Any, rows: slice = ALL_ENVS) -> None:
        """Step the environments in `rows` with their `actions`; a twin of `SubprocessVectorEnv.send`."""
        observations, rewards, terminated, truncated, raw = self.arrays
        for index, action in zip(range(self.num_envs)[rows], actions, strict=True):
            observations[index], rewards[index], terminated[index], truncated[index], info = self.envs[index].step(
                action
            )
            if "raw_episode_reward" in info:
                raw[index] = info["raw_episode_reward"]

    def receive(self, rows: slice = ALL_ENVS) -> StepArrays:
        """What the last steps in `rows` left behind; an observation is the true one also where an episode ended."""
        return self.arrays.rows(rows)

    def render(self) -> tuple[Any, ...]:
        """One frame of every environment."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self.envs:
            close(env)


def close(env: gymnasium.Env[Any, Any]) -> None:
    """Close an environment; one that fails at it must not cost a training that is over, nor keep others open."""
    try:
        env.close()
    except Exception as error:  # noqa: BLE001 - whatever an environment raises is told
        warnings.warn(f"{env} failed to close: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=2)
