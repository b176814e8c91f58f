"""Converts the actions of a policy to elements of a Box."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from torchrl.data import Bounded

from .specs import action_spec


def box_converter(space: spaces.Box) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the function that clips a batch of actions to the bounds of a Box and casts them to its dtype.

    The spec of a Box with an infinite bound has no bounds, so policies explore around 0. In such a Box, an entry with
    one finite bound and a range that does not contain 0 has actions relative to this bound. An entry with two finite
    bounds far from [-1, 1] has actions relative to the center, in units of half the range.
    """
    dtype: Any = space.dtype
    low, high = space.low, space.high
    if not np.issubdtype(dtype, np.floating):
        return lambda action: _rounded(action).clip(low, high).astype(dtype, copy=False)
    if isinstance(action_spec(space), Bounded):
        return lambda action: action.clip(low, high).astype(dtype, copy=False)
    has_low, has_high = np.isfinite(low), np.isfinite(high)
    finite_low, finite_high = np.where(has_low, low, 0), np.where(has_high, high, 0)
    half = np.where(has_low & has_high, finite_high / 2 - finite_low / 2, 1.0)
    center = np.where(has_low & has_high, finite_low / 2 + finite_high / 2, finite_low + finite_high)
    is_near = (low <= 0) & (high >= 0) & (half >= 0.25) & (half <= 4)
    if is_near.all():
        return lambda action: action.clip(low, high).astype(dtype, copy=False)
    center, half = np.where(is_near, 0.0, center), np.where(is_near, 1.0, half)
    return lambda action: (center + half * action).clip(low, high).astype(dtype, copy=False)


def _rounded(action: NDArray[Any]) -> NDArray[Any]:
    return np.rint(action) if action.dtype.kind == "f" else action
