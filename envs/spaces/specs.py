"""Gymnasium spaces as TorchRL specs, and the NumPy arrays that hold their elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import NestedKey
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded

from ...errors import ConfigurationError, EnvironmentFailure
from .text import MAX_WORDS, VOCABULARY_SIZE

ALL_ENVS = slice(None)
"""The slice of all environments. Use this object, because vector environments compare slices with `is`."""
RESERVED_NAMES = ("shape", "device", "dtype", "space", "batch_size", "names", "data_cls", "step_mdp_static", "self")
"""Names of attributes and arguments of a Composite, which its keys cannot have."""

SUCCESS_KEYS = ("is_success", "success")
"""Keys of `info` that are read at the end of every episode."""
METRIC_NAMES = (
    *("ep_rew_mean", "ep_rew_std", "ep_len_mean", "mean_reward", "std_reward", "mean_ep_len"),
    *("return_mean", "return_std", "length_mean", "episodes", "episodes_cut"),
)
"""Names of metrics that entries of `info` must not replace."""


def action_spec(space: spaces.Space[Any], path: str = "action") -> TensorSpec:
    """Return the TorchRL spec of one environment's actions: a Composite for a Dict or Tuple, a spec for each leaf.

    Discrete actions start at zero, regardless of the `start` of the space. Items of a Tuple have the keys `0`, `1`, ...
    Parts without elements, such as a Box of shape `(0,)`, are omitted.
    TorchRL's own conversion is not used because it turns a MultiDiscrete with equal sizes into a stack of specs.

    Raises:
        EnvironmentFailure: if no policy head supports the space; the message names its `path`.

    """
    match space:
        case spaces.Dict() | spaces.Tuple() if subspaces(space):
            subspecs = {name: action_spec(one, f"{path}/{name}") for name, one in _named_subspaces(space, path)}
            return Composite(subspecs)
        case spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary() if not is_empty(space):
            return _discrete_spec(space)
        case spaces.Box(dtype=np.bool_) if not is_empty(space):
            return Binary(shape=space.shape, dtype=torch.int8) if space.shape else Categorical(2, dtype=torch.int64)
        case spaces.Box() if not is_empty(space):
            return _box_spec(space)
    raise EnvironmentFailure(
        f"action space {space} of {path} is not supported; supported are non-empty Box, Discrete, MultiDiscrete and "
        "MultiBinary, and Dict and Tuple of these; convert it with gymnasium.wrappers.TransformAction in env.wrappers"
    )


def observation_spec(space: spaces.Space[Any], path: str = "observation") -> TensorSpec:
    """Return the TorchRL spec of one environment's observations: a Composite for a Dict or Tuple, a spec for each leaf.

    Discrete observations start at zero, and texts are tokens (see `tokenize`). Parts without elements are omitted.

    Raises:
        EnvironmentFailure: if no encoder supports the space; the message names its `path`.

    """
    match space:
        case spaces.Dict() | spaces.Tuple() if subspaces(space):
            subspecs = {name: observation_spec(one, f"{path}/{name}") for name, one in _named_subspaces(space, path)}
            return Composite(subspecs)
        case spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary() if not is_empty(space):
            return _discrete_spec(space)
        case spaces.Box() if not is_empty(space):
            return _box_spec(space)
        case _ if is_text(space):
            return Categorical(VOCABULARY_SIZE, (MAX_WORDS,), dtype=torch.int64)
    raise EnvironmentFailure(
        f"observation space {space} of {path} is not supported; supported are non-empty Box, Discrete, "
        "MultiDiscrete and MultiBinary, Text, and Dict and Tuple of these; pad it to a Box of fixed size with "
        "gymnasium.wrappers.TransformObservation in env.wrappers, or drop it with "
        "gymnasium.wrappers.FilterObservation"
    )


def subspaces(space: spaces.Space[Any]) -> list[tuple[Any, spaces.Space[Any]]]:
    """Return the keys and spaces of a Dict or Tuple, in the order of the space; empty for any other space.

    Spaces without elements are omitted.
    """
    match space:
        case spaces.Dict():
            items: list[tuple[Any, spaces.Space[Any]]] = list(space.spaces.items())
        case spaces.Tuple():
            items = list(enumerate(space.spaces))
        case _:
            return []
    return [(key, subspace) for key, subspace in items if not is_empty(subspace)]


def is_empty(space: spaces.Space[Any]) -> bool:
    """Return whether a space has a dimension of size 0, or is a Dict or Tuple that contains only such spaces."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return not subspaces(space)
    return isinstance(space, spaces.Box | spaces.MultiDiscrete | spaces.MultiBinary) and 0 in space.shape


def _named_subspaces(space: spaces.Space[Any], path: str) -> list[tuple[str, spaces.Space[Any]]]:
    """Return the subspaces with their keys in a spec.

    Raises:
        EnvironmentFailure: if a key cannot be the key of a Composite.

    """
    for key, _ in subspaces(space):
        if str(key) in RESERVED_NAMES or not str(key):
            raise EnvironmentFailure(
                f"{path} has a subspace with the key {key!r}; rename it, and do not use {', '.join(RESERVED_NAMES)}"
            )
    return [(str(key), subspace) for key, subspace in subspaces(space)]


def is_text(space: spaces.Space[Any]) -> bool:
    """Whether the elements of a space are strings: `Text`, or an environment's own class, such as MiniGrid's."""
    return space.dtype is not None and space.dtype.kind == "U"


def _discrete_spec(space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> TensorSpec:
    match space:
        case spaces.Discrete():
            return Categorical(int(space.n), dtype=torch.int64)
        case spaces.MultiDiscrete():
            return MultiCategorical(torch.as_tensor(space.nvec), dtype=torch.int64)
    return Binary(shape=space.shape, dtype=torch.int8)


SIGNED = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64, np.dtype(np.uint64): np.int64}
"""Signed dtypes that replace unsigned ones. PyTorch supports few operations on unsigned integers other than bytes."""


def _box_spec(space: spaces.Box) -> TensorSpec:
    """Return a Bounded spec if every bound is finite, else an Unbounded one; float dtypes become float32."""
    is_float = np.issubdtype(space.dtype, np.floating)
    stored: Any = np.float32 if is_float else SIGNED.get(np.dtype(space.dtype), space.dtype)
    bounds = (space.low, space.high)
    if space.dtype == np.uint64:
        bounds = (space.low.clip(max=2**63 - 1), space.high.clip(max=2**63 - 1))
    with np.errstate(over="ignore"):  # a float64 bound may be infinite in float32
        low, high = (torch.as_tensor(bound.astype(stored)) for bound in bounds)
    if not (low.isfinite().all() and high.isfinite().all()):
        return Unbounded(space.shape, dtype=low.dtype)
    return Bounded(low, high, space.shape, dtype=low.dtype)


class StepArrays(NamedTuple):
    """The results of a step, `[num_envs, ...]`. Every step overwrites the arrays.

    `observation` has a structured dtype for a Dict or Tuple space. `raw_episode_reward` is NaN if no wrapper reports
    it.
    """

    observation: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    raw_episode_reward: NDArray[np.float64]

    def select(self, env_slice: slice) -> StepArrays:
        """Return views of the environments in `env_slice`."""
        if env_slice is ALL_ENVS:
            return self
        return StepArrays._make(array[env_slice] for array in self)


Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]


def step_arrays_for(space: spaces.Space[Any], num_envs: int, allocate: Allocate = np.zeros) -> StepArrays:
    """Allocate the arrays for `num_envs` environments with observations in `space`.

    Raises:
        EnvironmentFailure: if the space is not supported.

    """
    arrays = StepArrays(
        allocate((num_envs,), observation_dtype(observation_spec(space))),
        allocate((num_envs,), np.float64),
        allocate((num_envs,), np.bool_),
        allocate((num_envs,), np.bool_),
        allocate((num_envs,), np.float64),
    )
    arrays.raw_episode_reward[:] = np.nan
    return arrays


def all_info_keys(info_keys: Sequence[str]) -> tuple[str, ...]:
    """Return `SUCCESS_KEYS` and `info_keys` without duplicates.

    Raises:
        ConfigurationError: if `info_keys` is not a list of strings, or has the name of another metric.

    """
    if isinstance(info_keys, str) or not all(isinstance(key, str) for key in info_keys):
        raise ConfigurationError(f"env.info_keys={info_keys} is not a list of names; write env.info_keys=[name]")
    if taken := [key for key in info_keys if key in (*METRIC_NAMES, *RESERVED_NAMES)]:
        raise ConfigurationError(f"env.info_keys: {taken[0]!r} is the name of something else; rename it in info")
    return tuple(dict.fromkeys((*SUCCESS_KEYS, *info_keys)))


def episode_info_for(info_keys: Sequence[str], num_envs: int, allocate: Allocate = np.zeros) -> NDArray[np.float64]:
    """Allocate `SlicedVectorEnv.episode_info`."""
    array = allocate((num_envs, len(info_keys)), np.float64)
    array[:] = np.nan
    return array


def observation_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """Return the NumPy dtype of one observation, including its shape; structured for a Composite."""
    if isinstance(spec, Composite):
        # Aligned because PyTorch needs strides that are multiples of the item size.
        return np.dtype([(name, observation_dtype(subspec)) for name, subspec in spec.items()], align=True)
    return np.dtype((torch.empty(0, dtype=spec.dtype).numpy().dtype, tuple(spec.shape)))


def leaf_arrays(array: NDArray[Any], root: str = "observation") -> dict[NestedKey, NDArray[Any]]:
    """Return views of the leaves of a structured array.

    Args:
        array: `[*batch]` with a structured dtype, or a plain array, which is its own only leaf.
        root: the first part of every key.

    Returns:
        `{("observation", "image"): [*batch, *image], ...}`, or `{"observation": array}` for a plain array.

    """
    return {root: array} if array.dtype.names is None else dict(_leaves(array, (root,)))


def _leaves(array: NDArray[Any], path: tuple[str, ...]) -> Iterator[tuple[NestedKey, NDArray[Any]]]:
    if array.dtype.names is None:
        yield path, array
    for name in array.dtype.names or ():
        yield from _leaves(array[name], (*path, name))
