"""Gymnasium spaces as TorchRL specs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torchrl.data import Binary, Bounded, Categorical, MultiCategorical, TensorSpec, Unbounded

from ..errors import EnvironmentFailure


def action_spec(space: spaces.Space[Any]) -> TensorSpec:
    """The TorchRL spec of one environment's actions, counted from zero.

    TorchRL's own conversion stacks a homogeneous `MultiDiscrete` into one-dimensional specs.

    Raises:
        EnvironmentFailure: for a space without a policy head, naming the supported ones.

    """
    match space:
        case spaces.Discrete():
            return Categorical(int(space.n), dtype=torch.int64)
        case spaces.MultiDiscrete(nvec=nvec) if nvec.ndim == 1:
            return MultiCategorical(torch.as_tensor(nvec), dtype=torch.int64)
        case spaces.MultiBinary(shape=(_,)):
            return Binary(space.shape[0], dtype=torch.int8)
        case spaces.Box(shape=(_,)) if np.issubdtype(space.dtype, np.floating):
            return box_spec(space)
    raise EnvironmentFailure(
        f"action space {' '.join(str(space).split())} is not supported; supported are Discrete, MultiDiscrete and "
        "MultiBinary of one dimension, and Box of floats of one dimension"
    )


def observation_spec(space: spaces.Space[Any]) -> TensorSpec:
    """The TorchRL spec of one environment's observations.

    Raises:
        EnvironmentFailure: for a space without an encoder, naming the supported ones.

    """
    if isinstance(space, spaces.Box) and space.shape:
        return box_spec(space)
    raise EnvironmentFailure(
        f"observation space {' '.join(str(space).split())} is not supported; supported is Box of one dimension or "
        "more (env.wrappers=[...] takes gymnasium.wrappers.FlattenObservation to make one)"
    )


def box_spec(space: spaces.Box) -> TensorSpec:
    """Bounded where every bound is finite, else unbounded; float64 becomes float32."""
    dtype = torch.float32 if space.dtype == np.float64 else torch.from_numpy(np.empty(0, space.dtype)).dtype
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        return Unbounded(space.shape, dtype=dtype)
    return Bounded(
        torch.as_tensor(space.low, dtype=dtype), torch.as_tensor(space.high, dtype=dtype), space.shape, dtype=dtype
    )
