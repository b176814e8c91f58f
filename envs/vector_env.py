"""A Gymnasium vector environment as a TorchRL environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from numpy.typing import NDArray
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv

from ..errors import ConfigurationError
from .failures import environment_failure, is_from_environment
from .guards import error_filters_removed
from .spaces.encoding import action_converter
from .spaces.specs import ALL_ENVS, StepArrays, action_spec, leaf_arrays, observation_dtype, observation_spec, subspaces
from .vector.interface import SlicedVectorEnv


class VectorEnv(EnvBase):
    """Wraps a Gymnasium vector environment as a TorchRL environment with batch size `[num_envs]`.

    `send`, `receive` and `reset_arrays` do the same steps on NumPy arrays, without the cost of a TensorDict per step.
    There, observations of a Dict or Tuple space are one structured array, and `leaf_arrays` returns views of its
    leaves; in a TensorDict they have keys such as `("observation", "image")`. Actions are clipped to the bounds of the
    action space before they reach the environment; the action in the data is the one the policy chose.
    `episode_reward` and `step_count` are those of TorchRL's `RewardSum` and `StepCounter`, except that
    `episode_reward` sums rewards before wrappers change them, and that `step_count` is 0 in skipped and failed steps.

    `call`, `get_attr` and `set_attr` apply to the environments and their wrappers, also in worker processes, as in
    `gymnasium.vector`. They also work through TorchRL's `TransformedEnv`.

    Args:
        vector: a vector environment in any autoreset mode. The last observation of an episode is the true final
            observation, and a new episode starts only on request (see `without_autoreset`).

    Raises:
        EnvironmentFailure: if a space is not supported, if the vector environment has no autoreset mode, or if it is
            not a `SlicedVectorEnv` and has nested spaces or spaces that need encoding.

    """

    def __init__(self, vector: GymnasiumVectorEnv[Any, Any, Any]) -> None:
        super().__init__(device="cpu", batch_size=[vector.num_envs])
        if not isinstance(vector, SlicedVectorEnv):
            from .native.vector import NativeVectorEnv

            vector = NativeVectorEnv(vector)
        self.vector: Any = vector
        self.is_closed = False  # EnvBase starts with True
        self.num_envs: int = vector.num_envs
        self._set_specs(vector.listed_info_keys)
        self._convert_action = action_converter(vector.single_action_space)
        self._has_nested_actions = bool(subspaces(vector.single_action_space))
        self._seed: int | None = None
        self._episode_reward = np.zeros(self.num_envs)
        self._step_count = np.zeros(self.num_envs, np.int64)
        self._has_ended = np.zeros(self.num_envs, np.bool_)

    @property
    def info_keys(self) -> tuple[str, ...]:
        """Keys of the entries of `info` that are read at the end of an episode."""
        return cast(tuple[str, ...], self.vector.info_keys)

    @property
    def episode_info(self) -> NDArray[np.float64] | None:
        """Values of `info_keys` in the last step of every environment's last episode (see `SlicedVectorEnv`)."""
        return cast(NDArray[np.float64] | None, self.vector.episode_info)

    @property
    def skipped(self) -> NDArray[np.bool_] | None:
        """Whether the last step of each environment was skipped (see `SlicedVectorEnv`)."""
        return cast(NDArray[np.bool_] | None, self.vector.skipped)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment or its wrappers and return the results."""
        return tuple(self.vector.call(name, *args, **kwargs))

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment or its wrappers."""
        return tuple(self.vector.get_attr(name))

    def set_attr(self, name: str, values: Any) -> None:
        """Set an existing attribute of every environment: to one value, or to a list (see `SlicedVectorEnv`)."""
        self.vector.set_attr(name, values)

    def list_all_info_keys(self) -> None:
        """Add specs for all `info_keys`, not only for those of the user, because transforms need specs."""
        self._set_specs(self.info_keys)

    def _set_specs(self, listed_info_keys: Sequence[str]) -> None:
        batch = (self.num_envs,)
        observation = observation_spec(self.vector.single_observation_space)
        action = action_spec(self.vector.single_action_space)
        info = {name: Unbounded((*batch, 1)) for name in listed_info_keys}
        self._info_indices = {name: self.info_keys.index(name) for name in info}
        self.observation_spec = Composite(
            observation=observation.expand(*batch, *observation.shape),
            episode_reward=Unbounded((*batch, 1)),
            step_count=Unbounded((*batch, 1), dtype=torch.int64),
            **({"episode_info": Composite(info, shape=batch)} if info else {}),
            shape=batch,
        )
        self._dtype = observation_dtype(observation).base  # Gymnasium's vector environments may return float64
        self.full_action_spec = Composite(action=action.expand(*batch, *action.shape), shape=batch)
        self.reward_spec = Unbounded((*batch, 1))
        self.done_spec = Composite(
            {key: Categorical(2, (*batch, 1), dtype=torch.bool) for key in ("done", "terminated", "truncated")},
            shape=batch,
        )
        observations = self.observation_spec.items(include_nested=True, leaves_only=True)
        specs = {**dict(observations), **self.done_spec, "reward": self.reward_spec}
        # Cached because a lookup in the specs takes 30 us.
        self._dtypes_and_shapes = {key: (spec.dtype, spec.shape) for key, spec in specs.items()}

    def reset_arrays(self, mask: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """Start new episodes in all environments, or in those where `mask` (`[num_envs]`) is set.

        Returns:
            The current observations of all environments, `[num_envs, *observation]`. The next step may overwrite
            them.

        """
        seed = None
        if mask is None:
            seed, self._seed = self._seed, None
        try:
            if mask is None:
                with error_filters_removed():
                    observation, _ = self.vector.reset(seed=seed)
            else:
                observation, _ = self.vector.reset(options={"reset_mask": mask})
        except BaseException as error:
            if not is_from_environment(error):
                raise
            raise environment_failure("an environment failed", error) from None
        return np.asarray(observation).astype(self._dtype, copy=False)

    def send(self, action: NDArray[Any] | dict[NestedKey, NDArray[Any]], env_slice: slice = ALL_ENVS) -> None:
        """Start a step of the environments in `env_slice` with actions as the policy chose them.

        Args:
            action: `[envs, *action]`; for a Dict or Tuple action space one array per leaf,
                `{("action", "move"): [envs, *move], ...}`.
            env_slice: the environments to step.

        """
        action = self._convert_action(action)
        try:
            self.vector.send(action, env_slice)
        except BaseException as error:
            if not is_from_environment(error):
                raise
            raise environment_failure("an environment failed", error) from None

    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        """Wait for the step of the environments in `env_slice`. The next step may overwrite the returned arrays."""
        arrays: StepArrays = self.vector.receive(env_slice)
        return arrays

    def double_buffer_groups(self) -> list[slice]:
        """Return two groups of environments of equal size that can be stepped independently.

        Raises:
            ConfigurationError: if the vector environment cannot be split into such groups.

        """
        groups = self.vector.double_buffer_groups()
        if not groups:
            raise ConfigurationError(
                "collector.double_buffer=true needs an Atari game with two or more environments; set it to false, or "
                "env.num_envs=2 for an Atari game"
            )
        sizes = [group.stop - group.start for group in groups]
        if sizes[0] != sizes[1]:
            raise ConfigurationError(
                f"collector.double_buffer=true needs equal halves, not {sizes[0]} and {sizes[1]} environments; set "
                "env.num_envs to an even number"
            )
        return groups

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        mask = None if mask is None else mask.squeeze(-1).numpy()
        self._episode_reward[... if mask is None else mask] = 0.0
        self._step_count[... if mask is None else mask] = 0
        self._has_ended[... if mask is None else mask] = False
        return self._as_tensordict(leaf_arrays(self.reset_arrays(mask)), np.zeros(self.num_envs, np.bool_))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._has_ended.any() and "_step" not in tensordict:  # TorchRL replaces the steps outside the mask `_step`
            raise ConfigurationError(
                f"environment {self._has_ended.argmax()} received an action after the end of its episode; reset it "
                "first, and use env.wrappers instead of transforms that repeat actions, such as FrameSkipTransform"
            )
        restarts = None if self.vector.num_restarts is None else self.vector.num_restarts.copy()
        if self._has_nested_actions:
            self.send({key: tensordict[key].detach().numpy() for key in self.action_keys})
        else:
            self.send(tensordict["action"].detach().numpy())
        observation, reward, terminated, truncated, raw_episode_reward = self.receive()
        self._episode_reward = np.where(np.isnan(raw_episode_reward), self._episode_reward + reward, raw_episode_reward)
        self._step_count = self._step_count + 1
        if self.skipped is not None:
            self._step_count[self.skipped] = 0
        if restarts is not None:  # the episodes of environments that failed do not count
            self._step_count[self.vector.num_restarts != restarts] = 0
        arrays: dict[NestedKey, NDArray[Any]] = {
            **leaf_arrays(observation),
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "done": terminated | truncated,
        }
        self._has_ended |= arrays["done"]
        return self._as_tensordict(arrays, arrays["done"])

    def _episode_info(self, done: NDArray[np.bool_]) -> dict[NestedKey, NDArray[Any]]:
        """Return the values of the `info_keys` of the specs where an episode ended, and NaN elsewhere."""
        if self._info_indices and done.any():
            self.vector.read_episode_info(done)
        values = {name: self.vector.episode_info[:, index] for name, index in self._info_indices.items()}
        return {("episode_info", name): np.where(done, value, np.nan) for name, value in values.items()}

    def _as_tensordict(self, arrays: dict[NestedKey, NDArray[Any]], done: NDArray[np.bool_]) -> TensorDictBase:
        arrays = arrays | {"episode_reward": self._episode_reward, "step_count": self._step_count}
        arrays |= self._episode_info(done)
        items = ((key, array, *self._dtypes_and_shapes[key]) for key, array in arrays.items())
        tensors = {key: torch.tensor(array, dtype=dtype).reshape(shape) for key, array, dtype, shape in items}
        return TensorDict(tensors, self.batch_size)

    def _set_seed(self, seed: int | None) -> None:
        """Keep a seed for the next full reset, which derives a different seed for every environment."""
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 2)

    def close(self, *, raise_if_closed: bool = True) -> None:
        if not self.is_closed:
            self.vector.close()
        super().close(raise_if_closed=raise_if_closed)


def vector_of(env: EnvBase) -> Any:
    """Return the Gymnasium vector environment in an environment with transforms, or `None` if there is none."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env.vector if isinstance(env, VectorEnv) else None
