"""Gymnasium vector environments that reset automatically, with resets on request."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorWrapper
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from numpy.typing import NDArray

from ...errors import EnvironmentFailure


def without_autoreset(vector: GymnasiumVectorEnv[Any, Any, Any]) -> GymnasiumVectorEnv[Any, Any, Any]:
    """Return a vector environment that resets on request, in any autoreset mode of the original.

    - `DISABLED`: the original.
    - `SAME_STEP`: see `SameStepReset`. The data are exact.
    - `NEXT_STEP`: the original if it is Gymnasium's `SyncVectorEnv` or `AsyncVectorEnv`, which also reset single
      environments on request, so that the data are exact. Otherwise, see `NextStepReset`.

    Raises:
        EnvironmentFailure: if the metadata do not name the autoreset mode.

    """
    mode = vector.metadata.get("autoreset_mode")
    match AutoresetMode(mode) if mode in {one.value for one in AutoresetMode} else mode:
        case AutoresetMode.DISABLED:
            return vector
        case AutoresetMode.SAME_STEP:
            return SameStepReset(vector)
        case AutoresetMode.NEXT_STEP:
            resets_single_envs = isinstance(vector.unwrapped, SyncVectorEnv | AsyncVectorEnv)
            return vector if resets_single_envs else NextStepReset(vector)
    raise EnvironmentFailure(
        f"{vector} does not say when it resets; set its metadata['autoreset_mode'] to a gymnasium.vector.AutoresetMode"
    )


class SameStepReset(VectorWrapper):
    """Returns the final observations of `info["final_obs"]`, and the first ones of new episodes at the next reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all episodes anew, or continue with the new episodes of `options["reset_mask"]`.

        Raises:
            EnvironmentFailure: if the episode of one of these environments has not ended.

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


class NextStepReset(VectorWrapper):
    """Marks the steps in which an environment resets while the others go on.

    A vector environment in `AutoresetMode.NEXT_STEP` ignores the action in the step after the end of an episode,
    resets, and returns the reward 0. This step is no transition. If all episodes end together, the whole batch is
    reset instead, and there is no such step.

    Otherwise, the step has the final observation before and after it, the reward 0, and is truncated, and `skipped`
    is true for its environment. `Collector` and `evaluate` replace it (see `pipelines/collectors/skipped_steps.py`).
    TorchRL's collectors keep it. Its advantage is near 0, because it leads from a state to the same state, and its
    `step_count` is 0, so that it does not count as an episode.

    Attributes:
        skipped: the environments that were reset in the last step, `[num_envs]`.

    """

    def __init__(self, env: GymnasiumVectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.skipped: NDArray[np.bool_] = np.zeros(env.num_envs, np.bool_)
        self._ended = self.skipped

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all episodes anew, or those of `options["reset_mask"]` in the next step.

        Raises:
            EnvironmentFailure: if the episode of one of these environments has not ended.

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
