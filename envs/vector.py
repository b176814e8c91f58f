"""A Gymnasium vector environment as a TorchRL environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from ..errors import EnvironmentFailure
from .arrays import StepArrays
from .serial import ALL, SerialVectorEnv
from .spaces import action_spec, observation_spec
from .workers import WorkerVectorEnv


class VectorEnv(EnvBase):
    """TorchRL's view of a Gymnasium vector environment that does not reset by itself.

    `send`, `receive` and `reset_arrays` are the same steps on NumPy arrays, for a collector that cannot pay
    for a TensorDict at every step. Actions outside a bounded space are clipped on their way to the
    environment; the action in the data stays the policy's own. `episode_reward` (raw, also under
    reward-changing wrappers) and `step_count` are what TorchRL's `RewardSum` and `StepCounter` write.

    Args:
        vector: an environment in `AutoresetMode.DISABLED`, so that the last observation of an episode is
            the true one and the next episode starts when it is asked to.

    Raises:
        EnvironmentFailure: if a space has no spec, or the vector environment resets by itself.

    """

    def __init__(self, vector: GymnasiumVectorEnv[Any, Any, Any]) -> None:
        """Read the specs from the spaces."""
        super().__init__(device="cpu", batch_size=[vector.num_envs])
        mode = vector.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.DISABLED:
            raise EnvironmentFailure(f"{vector} resets by itself ({mode}); make it with AutoresetMode.DISABLED")
        self.vector: Any = vector
        self.is_closed = False  # TorchRL's own start is closed
        self.num_envs: int = vector.num_envs
        self._by_rows = isinstance(vector, SerialVectorEnv | WorkerVectorEnv)
        space: Any = vector.single_action_space
        self._bounds = (space.low, space.high) if isinstance(space, spaces.Box) else None
        counted = isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start)
        self._start = space.start if counted else None
        self._dtype = space.dtype
        self._seed: int | None = None
        self._episode_reward = np.zeros(self.num_envs)
        self._step_count = np.zeros(self.num_envs, np.int64)
        self._no_raw = np.full(self.num_envs, np.nan)
        batch = (self.num_envs,)
        observation, action = observation_spec(vector.single_observation_space), action_spec(space)
        self.observation_spec = Composite(
            observation=observation.expand(*batch, *observation.shape),
            episode_reward=Unbounded((*batch, 1)),
            step_count=Unbounded((*batch, 1), dtype=torch.int64),
            shape=batch,
        )
        self.action_spec = action.expand(*batch, *action.shape)
        self.reward_spec = Unbounded((*batch, 1))
        self.done_spec = Composite(
            {key: Categorical(2, (*batch, 1), dtype=torch.bool) for key in ("done", "terminated", "truncated")},
            shape=batch,
        )

    def reset_arrays(self, mask: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Start new episodes everywhere, or where `mask` (`[num_envs]`) is set.

        Returns:
            The current observations of all environments, `[num_envs, *observation]`; the next step may
            overwrite them.

        """
        seed = None
        if mask is None:
            seed, self._seed = self._seed, None
        observation, _ = self.vector.reset(seed=seed, options=None if mask is None else {"reset_mask": mask})
        return observation

    def send(self, action: NDArray[Any], rows: slice = ALL) -> None:
        """Give the environments in `rows` their actions, as the policy chose them: `[rows, *action]`."""
        if self._bounds is not None:
            action = np.minimum(np.maximum(action, self._bounds[0]), self._bounds[1])
        elif self._start is not None:
            action = action + self._start
        action = action.astype(self._dtype, copy=False)
        if self._by_rows:
            self.vector.send(action, rows)
        else:
            self._stepped = self.vector.step(action)

    def receive(self, rows: slice = ALL) -> StepArrays:
        """What the step of the environments in `rows` left behind; the next step may overwrite it."""
        if self._by_rows:
            return self.vector.receive(rows)
        observation, reward, terminated, truncated, _ = self._stepped
        return StepArrays(observation, reward, terminated, truncated, self._no_raw)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = None if mask is None else mask.squeeze(-1).numpy()
        self._episode_reward[... if mask is None else mask] = 0.0
        self._step_count[... if mask is None else mask] = 0
        return self._as_tensordict({"observation": self.reset_arrays(mask), **self._episodes()})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.send(tensordict["action"].numpy())
        observation, reward, terminated, truncated, raw = self.receive()
        self._episode_reward = np.where(np.isnan(raw), self._episode_reward + reward, raw)
        self._step_count = self._step_count + 1
        arrays = {
            "observation": observation,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "done": terminated | truncated,
        }
        return self._as_tensordict(arrays | self._episodes())

    def _episodes(self) -> dict[str, NDArray[Any]]:
        return {"episode_reward": self._episode_reward, "step_count": self._step_count}

    def _as_tensordict(self, arrays: dict[str, NDArray[Any]]) -> TensorDictBase:
        specs = {**self.observation_spec, **self.done_spec, "reward": self.reward_spec}
        tensors = {
            key: torch.tensor(array, dtype=specs[key].dtype).reshape(specs[key].shape) for key, array in arrays.items()
        }
        return TensorDict(tensors, self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        """Give every environment a seed of its own at the next full reset."""
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 2)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environments."""
        if not self.is_closed:
            self.vector.close()
        super().close(raise_if_closed=raise_if_closed)
