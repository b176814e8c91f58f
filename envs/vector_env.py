"""A Gymnasium vector environment as a TorchRL environment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from ..errors import ConfigurationError, EnvironmentFailure
from .failures import environment_failure
from .spaces.encoding import as_it_is, conversion, encoder
from .spaces.specs import ALL_ENVS, StepArrays, action_spec, entries, leaf_arrays, observation_dtype, observation_spec


class VectorEnv(EnvBase):
    """TorchRL's view of a Gymnasium vector environment that does not reset by itself.

    `send`, `receive` and `reset_arrays` are the same steps on NumPy arrays, for a collector that cannot pay
    for a TensorDict at every step. Observations of a Dict or Tuple are one structured array there, whose
    leaves `arrays.leaves` shows; in a TensorDict their keys are `("observation", "image")`. Actions outside a
    bounded space are clipped on their way to the environment; the action in the data stays the policy's own.
    `episode_reward` (raw, also under reward-changing wrappers) and `step_count` are what TorchRL's `RewardSum`
    and `StepCounter` write.

    Args:
        vector: an environment in `AutoresetMode.DISABLED`, so that the last observation of an episode is
            the true one and the next episode starts when it is asked to.

    Raises:
        EnvironmentFailure: if a space has no spec, if the vector environment resets by itself, or if it is none of
            ours and has spaces that are nested or have to be encoded.

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
        self._by_rows = isinstance(vector, SlicedVectorEnv)
        if not self._by_rows:
            _refuse_coded(vector)
        self._declare_specs()
        self._convert = conversion(vector.single_action_space)
        self._is_nested = bool(entries(vector.single_action_space))
        self._seed: int | None = None
        self._episode_reward = np.zeros(self.num_envs)
        self._step_count = np.zeros(self.num_envs, np.int64)
        self._no_raw = np.full(self.num_envs, np.nan)

    def _declare_specs(self) -> None:
        batch = (self.num_envs,)
        observation = observation_spec(self.vector.single_observation_space)
        action = action_spec(self.vector.single_action_space)
        self.observation_spec = Composite(
            observation=observation.expand(*batch, *observation.shape),
            episode_reward=Unbounded((*batch, 1)),
            step_count=Unbounded((*batch, 1), dtype=torch.int64),
            shape=batch,
        )
        self._dtype = observation_dtype(observation).base  # a foreign one's may be of double precision
        self.full_action_spec = Composite(action=action.expand(*batch, *action.shape), shape=batch)
        self.reward_spec = Unbounded((*batch, 1))
        self.done_spec = Composite(
            {key: Categorical(2, (*batch, 1), dtype=torch.bool) for key in ("done", "terminated", "truncated")},
            shape=batch,
        )
        observations = self.observation_spec.items(include_nested=True, leaves_only=True)
        specs = {**dict(observations), **self.done_spec, "reward": self.reward_spec}
        self._layouts = {key: (spec.dtype, spec.shape) for key, spec in specs.items()}  # specs take 30 us

    def reset_arrays(self, mask: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Start new episodes everywhere, or where `mask` (`[num_envs]`) is set.

        Returns:
            The current observations of all environments, `[num_envs, *observation]`; the next step may
            overwrite them.

        """
        seed = None
        if mask is None:
            seed, self._seed = self._seed, None
        try:
            observation, _ = self.vector.reset(seed=seed, options=None if mask is None else {"reset_mask": mask})
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an environment raises is its own failure
            raise environment_failure("an environment failed", error) from None
        return observation.astype(self._dtype, copy=False)

    def send(self, action: NDArray[Any] | dict[NestedKey, NDArray[Any]], rows: slice = ALL_ENVS) -> None:
        """Give the environments in `rows` their actions, as the policy chose them: `[rows, *action]`.

        Where the action space is a Dict or Tuple, these are the leaves: `{("action", "move"): [rows, *move], ...}`.
        """
        action = self._convert(action)
        try:
            if self._by_rows:
                self.vector.send(action, rows)
            else:
                self._stepped = self.vector.step(action)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an environment raises is its own failure
            raise environment_failure("an environment failed", error) from None

    def receive(self, rows: slice = ALL_ENVS) -> StepArrays:
        """What the step of the environments in `rows` left behind; the next step may overwrite it."""
        if self._by_rows:
            return self.vector.receive(rows)
        observation, reward, terminated, truncated, _ = self._stepped
        return StepArrays(observation, reward, terminated, truncated, self._no_raw)

    def double_buffer_groups(self) -> list[slice]:
        """Two equal runs of environments that can be sent actions and received from apart.

        Raises:
            ConfigurationError: if there are none.

        """
        parts = self.vector.double_buffer_groups() if self._by_rows else []
        if not parts:
            raise ConfigurationError(
                "collector.double_buffer=true needs two workers, or two environments of an Atari game; set "
                "env.num_workers=2, or there env.num_envs=2"
            )
        sizes = [rows.stop - rows.start for rows in parts]
        if sizes[0] != sizes[1]:
            raise ConfigurationError(
                f"collector.double_buffer=true needs equal halves, not {sizes[0]} and {sizes[1]} environments; set "
                "env.num_envs to an even number, and a multiple of an even env.num_workers"
            )
        return parts

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = None if mask is None else mask.squeeze(-1).numpy()
        self._episode_reward[... if mask is None else mask] = 0.0
        self._step_count[... if mask is None else mask] = 0
        return self._as_tensordict({**leaf_arrays(self.reset_arrays(mask)), **self._episodes()})

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._is_nested:
            self.send({key: tensordict[key].numpy() for key in self.action_keys})
        else:
            self.send(tensordict["action"].numpy())
        observation, reward, terminated, truncated, raw = self.receive()
        self._episode_reward = np.where(np.isnan(raw), self._episode_reward + reward, raw)
        self._step_count = self._step_count + 1
        arrays: dict[NestedKey, NDArray[Any]] = {
            **leaf_arrays(observation),
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "done": terminated | truncated,
        }
        return self._as_tensordict(arrays | self._episodes())

    def _episodes(self) -> dict[NestedKey, NDArray[Any]]:
        return {"episode_reward": self._episode_reward, "step_count": self._step_count}

    def _as_tensordict(self, arrays: dict[NestedKey, NDArray[Any]]) -> TensorDictBase:
        layouts = ((key, array, *self._layouts[key]) for key, array in arrays.items())
        tensors = {key: torch.tensor(array, dtype=dtype).reshape(shape) for key, array, dtype, shape in layouts}
        return TensorDict(tensors, self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        """Give every environment a seed of its own at the next full reset."""
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 2)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Close the environments."""
        if not self.is_closed:
            self.vector.close()
        super().close(raise_if_closed=raise_if_closed)


def _refuse_coded(vector: GymnasiumVectorEnv[Any, Any, Any]) -> None:
    """Only environments that we step one by one can be given a code for their spaces."""
    observation, action = vector.single_observation_space, vector.single_action_space
    if encoder(observation) is not as_it_is or entries(action):
        raise EnvironmentFailure(
            f"{vector} takes and returns arrays, and cannot have the spaces {observation} and "
            f"{action}; torchppo.envs.SerialVectorEnv and SubprocessVectorEnv can"
        )


class SlicedVectorEnv(GymnasiumVectorEnv[Any, Any, Any]):
    """Steps the environments in `rows` when it is sent their actions, and resets those it is told to."""

    @abstractmethod
    def send(self, actions: Any, rows: slice = ALL_ENVS) -> None:
        """Let the environments in `rows` take a step."""

    @abstractmethod
    def receive(self, rows: slice = ALL_ENVS) -> StepArrays:
        """What the steps in `rows` left behind; an observation is the true one also where an episode ended."""

    def step(
        self, actions: Any
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Step every environment and wait."""
        self.send(actions)
        observation, reward, terminated, truncated, raw = self.receive()
        return observation, reward, terminated, truncated, {"raw_episode_reward": raw}

    def double_buffer_groups(self) -> list[slice]:
        """Two runs of environments that can be stepped apart, or nothing where they cannot."""
        return []


class Description(NamedTuple):
    """What a vector environment says of its environments."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    render_mode: str | None
    metadata: dict[str, Any]


def description_of(env: gymnasium.Env[Any, Any]) -> Description:
    """What one environment says of itself."""
    return Description(env.observation_space, env.action_space, env.render_mode, env.metadata)


def describe(vector: GymnasiumVectorEnv[Any, Any, Any], single: Description, num_envs: int) -> None:
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
