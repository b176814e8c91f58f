"""Gymnasium spaces as TorchRL specs: one for every leaf, a Composite for every Dict and Tuple."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import NestedKey
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded

from ...errors import EnvironmentFailure
from .text import MAX_WORDS, VOCABULARY


def entries(space: spaces.Space[Any]) -> list[tuple[Any, spaces.Space[Any]]]:
    """Key and space of every entry of a Dict or Tuple, in the order of the space; none of any other space."""
    match space:
        case spaces.Dict():
            return list(space.spaces.items())
        case spaces.Tuple():
            return list(enumerate(space.spaces))
    return []


RESERVED = ("shape", "device", "dtype", "space")
"""Names that a Composite keeps for itself."""


def named(space: spaces.Space[Any], path: str) -> list[tuple[str, spaces.Space[Any]]]:
    """The entries of a Dict or Tuple by the names they have in a spec; those of a Tuple are called 0, 1, ...

    Raises:
        EnvironmentFailure: for a key that cannot be one.

    """
    for key, _ in entries(space):
        if str(key) in RESERVED or not str(key):
            raise EnvironmentFailure(
                f"{path} has an entry called {key!r}; call it neither that nor {', '.join(RESERVED)}"
            )
    return [(str(key), one) for key, one in entries(space)]


def action_spec(space: spaces.Space[Any], path: str = "action") -> TensorSpec:
    """The TorchRL spec of one environment's actions, counted from zero; entries of a Tuple are called 0, 1, ...

    TorchRL's own conversion stacks a homogeneous `MultiDiscrete` into one-dimensional specs.

    Raises:
        EnvironmentFailure: for a space without a policy head, naming its `path` and the supported ones.

    """
    match space:
        case spaces.Dict() | spaces.Tuple() if len(space):
            return Composite({name: action_spec(one, f"{path}/{name}") for name, one in named(space, path)})
        case spaces.Discrete() | spaces.MultiDiscrete(shape=(_,)) | spaces.MultiBinary(shape=(_,)):
            return choice_spec(space)
        case spaces.Box(shape=(_,)) if np.issubdtype(space.dtype, np.floating):
            return box_spec(space)
    raise EnvironmentFailure(
        f"action space {space} of {path} is not supported; supported are Discrete, "
        "MultiDiscrete and MultiBinary of one dimension, Box of floats of one dimension, and Dict and Tuple of them"
    )


def observation_spec(space: spaces.Space[Any], path: str = "observation") -> TensorSpec:
    """The TorchRL spec of one environment's observations; numbers are counted from zero, texts are tokens.

    Raises:
        EnvironmentFailure: for a space without an encoder, naming its `path` and the supported ones.

    """
    match space:
        case spaces.Dict() | spaces.Tuple() if len(space):
            return Composite({name: observation_spec(one, f"{path}/{name}") for name, one in named(space, path)})
        case spaces.Discrete() | spaces.MultiDiscrete(shape=(_,)) | spaces.MultiBinary(shape=(_,)):
            return choice_spec(space)
        case spaces.Box() if 0 not in space.shape:
            return box_spec(space)
        case _ if is_text(space):
            return Categorical(VOCABULARY, (MAX_WORDS,), dtype=torch.int64)
    raise EnvironmentFailure(
        f"observation space {space} of {path} is not supported; supported are "
        "Box that is not empty, Discrete, MultiDiscrete and MultiBinary of one dimension, Text, and Dict and Tuple of "
        "them (env.wrappers=[...] takes gymnasium.wrappers.TransformObservation to make one)"
    )


def is_text(space: spaces.Space[Any]) -> bool:
    """Whether elements are strings: those of `Text`, and of spaces of an environment's own, as MiniGrid's."""
    return space.dtype is not None and space.dtype.kind == "U"


def choice_spec(space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> TensorSpec:
    """Numbers from zero, whatever the space's `start`, as int64; bits as int8."""
    match space:
        case spaces.Discrete():
            return Categorical(int(space.n), dtype=torch.int64)
        case spaces.MultiDiscrete():
            return MultiCategorical(torch.as_tensor(space.nvec), dtype=torch.int64)
    return Binary(space.shape[0], dtype=torch.int8)


def box_spec(space: spaces.Box) -> TensorSpec:
    """Bounded where every bound is finite, else unbounded; floats of any size become float32."""
    is_float = np.issubdtype(space.dtype, np.floating)
    dtype = torch.float32 if is_float else torch.from_numpy(np.empty(0, space.dtype)).dtype
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        return Unbounded(space.shape, dtype=dtype)
    return Bounded(
        torch.as_tensor(space.low, dtype=dtype), torch.as_tensor(space.high, dtype=dtype), space.shape, dtype=dtype
    )


ALL_ENVS = slice(None)


class StepArrays(NamedTuple):
    """Arrays `[num_envs, ...]` that every step overwrites.

    `observation` has a structured dtype where the space is a Dict or Tuple. `raw_episode_reward` is NaN where no
    wrapper reports it.
    """

    observation: NDArray[Any]
    reward: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    raw_episode_reward: NDArray[np.float64]

    def rows(self, rows: slice) -> StepArrays:
        """Views of the environments in `rows`."""
        if rows is ALL_ENVS:
            return self
        return StepArrays._make(array[rows] for array in self)


Allocate = Callable[[tuple[int, ...], Any], NDArray[Any]]


def step_arrays_for(space: spaces.Space[Any], num_envs: int, allocate: Allocate = np.zeros) -> StepArrays:
    """Arrays for `num_envs` environments with observations in `space`.

    Raises:
        EnvironmentFailure: if the space has no spec.

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


def observation_dtype(spec: TensorSpec) -> np.dtype[Any]:
    """The dtype of one observation, its shape included; structured, and nested as it is, for a Composite.

    float64, as MuJoCo's, is float32 in a spec: it would only be converted again at every use.
    """
    if isinstance(spec, Composite):
        # Aligned: PyTorch's views need strides that are multiples of the item's size.
        return np.dtype([(name, observation_dtype(one)) for name, one in spec.items()], align=True)
    return np.dtype((torch.empty(0, dtype=spec.dtype).numpy().dtype, tuple(spec.shape)))


def leaf_arrays(array: NDArray[Any], root: str = "observation") -> dict[NestedKey, NDArray[Any]]:
    """Views of all leaves of a structured array `[*]`, as `("observation", "image"): [*, *image]`.

    A plain array is its own and only leaf, `"observation"`.
    """
    return {root: array} if array.dtype.names is None else dict(_fields(array, (root,)))


def _fields(array: NDArray[Any], path: tuple[str, ...]) -> Iterator[tuple[NestedKey, NDArray[Any]]]:
    if array.dtype.names is None:
        yield path, array
    for name in array.dtype.names or ():
        yield from _fields(array[name], (*path, name))
