"""Reads entries of `info` at the end of an episode."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EnvironmentFailure
from ..spaces.conversion import as_number
from ..spaces.specs import SUCCESS_KEYS

UNUSED_MASK = (
    'info["action_mask"] is not used; to use it, return it with every reset and step, and add '
    "env.wrappers=[{_target_: torchppo.envs.wrappers.ActionMask, _partial_: true}]"
)


class EpisodeInfo:
    """Writes entries of the last `info` of every episode to an array. Warns once about missing keys and unused masks.

    Args:
        keys: keys of the entries.
        values: the array, `[num_envs, len(keys)]`. An entry that an `info` lacks becomes NaN.
        lacks_mask: whether an action mask in `info` would be ignored.

    """

    def __init__(self, keys: Sequence[str], values: NDArray[np.float64], *, lacks_mask: bool) -> None:
        self.keys, self.values = keys, values
        self._lacks_mask, self._missing = lacks_mask, set[str]()

    def write(self, index: int, info: dict[str, Any]) -> None:
        """Write the last `info` of an episode of the environment `index`.

        Raises:
            EnvironmentFailure: see `info_number`.

        """
        if self._lacks_mask and "action_mask" in info:
            self._lacks_mask = False
            warnings.warn(UNUSED_MASK, RuntimeWarning, stacklevel=2)
        for position, key in enumerate(self.keys):
            value = info.get(key)
            if value is None and key not in self._missing and key not in SUCCESS_KEYS:
                self._missing.add(key)
                reported = ", ".join(map(str, info)) or "an empty info"
                message = (
                    f"env.info_keys: an episode ended without info[{key!r}]; remove it, or use a key of {reported}"
                )
                warnings.warn(message, RuntimeWarning, stacklevel=2)
            self.values[index, position] = np.nan if value is None else info_number(key, value)


class BatchInfo:
    """Writes entries of the last `info` of a vector environment to an array, where episodes end.

    An entry has one value per environment. The entry `_<key>` is the mask of the environments that have a value.

    Args:
        keys: keys of the entries.
        values: the array, `[num_envs, len(keys)]`. Missing values become NaN.

    """

    def __init__(self, keys: Sequence[str], values: NDArray[np.float64]) -> None:
        self.keys, self.values = keys, values
        self.last: dict[str, Any] = {}

    def write(self, mask: NDArray[np.bool_]) -> None:
        """Write the entries of the environments in `mask`, `[num_envs]`.

        Raises:
            EnvironmentFailure: see `info_number`.

        """
        info = self.last.get("final_info", self.last)  # after a reset in the same step
        self.values[mask] = np.nan
        for position, key in enumerate(self.keys):
            if key in info:
                given = mask & np.asarray(info.get(f"_{key}", True))
                for index in np.flatnonzero(given).tolist():
                    self.values[index, position] = info_number(key, info[key][index])


def info_number(key: str, value: Any) -> float:
    """Return an entry of `info` as a number. Return NaN if it is not finite, or for `SUCCESS_KEYS` not one number.

    Raises:
        EnvironmentFailure: if the entry of another key is not one number.

    """
    try:
        number = as_number(value)
        return number if abs(number) <= float(np.finfo(np.float32).max) else float("nan")  # rollouts are float32
    except EnvironmentFailure:
        if key in SUCCESS_KEYS:
            return float("nan")
        raise EnvironmentFailure(
            f"env.info_keys: info[{key!r}] is a {type(value).__name__}, not one number; remove it from env.info_keys"
        ) from None
