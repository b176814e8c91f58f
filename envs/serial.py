"""Many environments in one process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, create_empty_array
from numpy.typing import NDArray


class RawEpisodeReward(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Sums an environment's own rewards into `info["raw_episode_reward"]`, whatever outer wrappers make of them."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start a sum."""
        self._total = 0.0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Add a reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._total += float(reward)
        return observation, reward, terminated, truncated, {**info, "raw_episode_reward": self._total}


class SerialVectorEnv(VectorEnv[Any, Any, Any]):
    """Steps its environments in turn and resets those it is told to (`AutoresetMode.DISABLED`).

    Gymnasium's `SyncVectorEnv` merges the `info` of all environments at every step, which costs more
    than a small environment; here `info` is dropped, except `raw_episode_reward`.
    """

    def __init__(self, makers: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> None:
        """Make the environments, one for every callable."""
        self.envs = [make() for make in makers]
        self.num_envs = len(self.envs)
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.render_mode = self.envs[0].render_mode
        self.spec = self.envs[0].spec
        self.metadata = {**self.envs[0].metadata, "autoreset_mode": AutoresetMode.DISABLED}
        observations: Any = create_empty_array(self.single_observation_space, self.num_envs)
        # float64, as MuJoCo's, would only be converted again at every use
        convert = isinstance(observations, np.ndarray) and observations.dtype == np.float64
        self._observations = observations.astype(np.float32) if convert else observations

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        mask = (options or {}).get("reset_mask")
        indices = range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist()
        if isinstance(seed, int):
            seed = [seed + index for index in range(self.num_envs)]
        for index in indices:
            self._observations[index], _ = self.envs[index].reset(seed=None if seed is None else int(seed[index]))
        return self._observations, {}

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment; the observations are the true ones, also where an episode ended."""
        rewards = np.empty(self.num_envs)
        terminated = np.empty(self.num_envs, np.bool_)
        truncated = np.empty(self.num_envs, np.bool_)
        infos: dict[str, Any] = {}
        for index, env in enumerate(self.envs):
            self._observations[index], rewards[index], terminated[index], truncated[index], info = env.step(
                actions[index]
            )
            if "raw_episode_reward" in info:
                infos.setdefault("raw_episode_reward", {})[index] = info["raw_episode_reward"]
        return self._observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...]:
        """One frame of every environment."""
        return tuple(env.render() for env in self.envs)

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()
