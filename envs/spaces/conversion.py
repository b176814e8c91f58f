"""Converts single observations and actions, and batches of them, for a policy in a user's own loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from tensordict import NestedKey

from ...errors import ConfigurationError, EnvironmentFailure
from .encoding import action_converter, decoder, encoder, find_mismatch
from .specs import is_text, leaf_arrays, observation_dtype, observation_spec, subspaces


class SpaceConverter:
    """Converts observations to the arrays that a policy reads, and its actions to those of the environment.

    Args:
        observation_space: space of one observation.
        action_space: space of one action.

    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self._dtype = observation_dtype(observation_spec(observation_space))
        self._encode = encoder(observation_space)
        self._convert_action = action_converter(action_space)
        self._decode = decoder(action_space)

    def observations(self, observation: Any) -> tuple[dict[NestedKey, NDArray[Any]], bool]:
        """Convert one observation, or a batch as `gymnasium.vector` returns it.

        Returns:
            The leaves of the observation `[num, ...]` by key, and whether `observation` is a single observation.

        Raises:
            ConfigurationError: if the observation does not fit the space.

        """
        elements = batch_elements(self.observation_space, observation)
        is_single = elements is None
        elements = [observation] if elements is None else elements
        for index, element in enumerate(elements):
            path = "observation" if is_single else f"observation[{index}]"
            if mismatch := find_mismatch(self.observation_space, element, path):
                raise ConfigurationError(f"{mismatch}; pass one observation of the environment or a batch of them")
        array = np.zeros(len(elements), self._dtype)
        for index, element in enumerate(elements):
            array[index] = self._encode(element)
        return leaf_arrays(array), is_single

    def actions(self, action: dict[NestedKey, NDArray[Any]], *, is_single: bool) -> Any:
        """Convert the policy's actions `[num, ...]` by key to one action, or to a batch for `gymnasium.vector`."""
        actions = self._convert_action(action.get("action", action))
        return self._decode(actions[0] if is_single else actions)


def batch_elements(space: spaces.Space[Any], observation: Any) -> list[Any] | None:
    """Return the elements of a batch of observations in the format of `gymnasium.vector`.

    A batch of a Dict or Tuple space is a Dict or Tuple of batches. Returns `None` if the observation is not a batch.
    """
    try:
        return _split(space, observation) if _is_batch(space, observation) else None
    except (IndexError, KeyError, TypeError, ValueError):  # the structure differs from that of the space
        return None


def _is_batch(space: spaces.Space[Any], observation: Any) -> bool:
    """Return whether the first leaf has one dimension more than its space."""
    if items := subspaces(space):
        key, subspace = items[0]
        return _is_batch(subspace, observation[key])
    if is_text(space):
        return not isinstance(observation, str)
    return np.ndim(observation) > 0 and np.shape(observation)[1:] == space.shape


def _split(space: spaces.Space[Any], batch: Any) -> list[Any]:
    items = subspaces(space)
    if not items:
        return list(batch)
    rows = zip(*(_split(subspace, batch[key]) for key, subspace in items), strict=True)
    if isinstance(space, spaces.Tuple):
        return list(rows)
    return [dict(zip((key for key, _ in items), row, strict=True)) for row in rows]


def as_number(value: Any) -> float:
    """Return a reward as a float.

    Args:
        value: a number, a NumPy scalar, or a tensor, array or list of one element.

    Raises:
        EnvironmentFailure: if `value` is not one number.

    """
    if isinstance(value, float | int):
        return float(value)
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if value is None or array.dtype.kind in "USMmc":  # NumPy would convert `None` and texts such as "1"
            raise TypeError
        return float(array.astype(np.float64).reshape(()))
    except (TypeError, ValueError, OverflowError):
        raise EnvironmentFailure(
            f"an environment returned {shown(value)} as a reward or flag; return one number per step"
        ) from None


def as_flag(value: Any) -> bool:
    """Return `terminated` or `truncated` as a bool.

    Args:
        value: a bool, 0 or 1, or a tensor or array of one such element. A list is refused, because `[False]` is true in
            Python.

    Raises:
        EnvironmentFailure: if `value` is something else.

    """
    try:
        number = None if isinstance(value, list | tuple) else as_number(value)
    except EnvironmentFailure:
        number = None
    if number not in (0.0, 1.0):
        raise EnvironmentFailure(
            f"an environment returned {shown(value)} as terminated or truncated; return a bool for each"
        )
    return bool(number)


def shown(value: Any) -> str:
    """Return a short text of a value."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - the class may be the environment's own
        text = ""
    return text if 0 < len(text) < 80 else f"{type(value).__name__} {np.shape(value) if text else ''}".strip()
