"""Checks of observations, rewards and actions that need no further step of the environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from .findings import Finding, error, note

LARGE_OBSERVATION, LARGE_REWARD, SMALL_REWARD = 20.0, 200.0, 1e-3
"""Scales at which normalization helps. MuJoCo's and classic control's observations and rewards are smaller."""
NORMALIZE_OBSERVATIONS, NORMALIZE_REWARDS = "policy.normalize_observation=true", "reward=normalized"


def leaves(space: gymnasium.Space[Any], value: Any, path: str = "observation") -> Iterator[tuple[str, Any, Any]]:
    """Yield the path, space and value of every part of an element of a space; `None` for a missing part."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, subspace in items:
            try:
                part = value[key]
            except (KeyError, IndexError, TypeError):
                part = None
            yield from leaves(subspace, part, f"{path}/{key}")
    else:
        yield path, space, value


def check_observations(space: gymnasium.Space[Any], observations: Sequence[Any]) -> list[Finding]:
    """Return how observations differ from their space: one finding for each part."""
    found: dict[str, Finding] = {}
    for step, observation in enumerate(observations):
        for path, subspace, value in leaves(space, observation):
            if path not in found and (finding := check_part(path, subspace, value, step)):
                found[path] = finding
    return list(found.values())


def check_part(path: str, space: gymnasium.Space[Any], value: Any, step: int) -> Finding | None:
    """Return how one part of an observation differs from its space, or `None`."""
    if value is None:
        return error("spaces", f"{path} is missing or None at step {step}; return all parts of observation_space")
    if not isinstance(space, spaces.Box):
        is_member = isinstance(value, str) or bool(space.contains(value)) or bool(space.contains(np.asarray(value)))
        return None if is_member else note("spaces", f"{path}={value} at step {step} is not in {space}; correct one")
    try:
        array = np.asarray(value)
        is_number = array.dtype.kind in "biuf"
    except ValueError:  # a ragged list
        is_number = False
    if not is_number:
        return error("spaces", f"{path} is not an array of numbers but {type(value).__name__} at step {step}")
    if array.shape != space.shape:
        return error("spaces", f"{path} has shape {array.shape} at step {step}, but observation_space {space.shape}")
    if not np.isfinite(array).all():
        return error("spaces", f"{path} has a value that is not finite at step {step}; find where it is computed")
    if array.dtype != space.dtype and array.dtype.kind != np.dtype(space.dtype).kind:
        return note("spaces", f"{path} has dtype {array.dtype}, but observation_space {space.dtype}; correct one")
    outside = (array < space.low - 1e-6) | (array > space.high + 1e-6)
    if outside.any():
        worst = array[outside].flat[0]
        return note(
            "spaces", f"{path} has the value {worst:g} at step {step}, outside of observation_space; correct it"
        )
    return None


def check_observation_scale(space: gymnasium.Space[Any], observations: Sequence[Any]) -> list[Finding]:
    """Return a note for parts of float observations whose values are large."""
    largest: dict[str, float] = {}
    for observation in observations:
        for path, subspace, value in leaves(space, observation):
            if isinstance(subspace, spaces.Box) and np.dtype(subspace.dtype).kind == "f" and value is not None:
                largest[path] = max(largest.get(path, 0.0), float(np.max(np.abs(value), initial=0.0)))
    large = {path: value for path, value in largest.items() if value > LARGE_OBSERVATION}
    return [
        note("observations", f"{path} reaches {value:,.4g}; networks learn faster from normalized values",
             NORMALIZE_OBSERVATIONS)
        for path, value in large.items()
    ]  # fmt: skip


def check_reward_scale(rewards: Sequence[Any]) -> list[Finding]:
    """Return a note if rewards are large or small."""
    largest = max((abs(float(np.asarray(reward).reshape(()))) for reward in rewards), default=0.0)
    if largest > LARGE_REWARD or 0 < largest < SMALL_REWARD:
        return [note("rewards", f"they reach {largest:,.4g}; the critic learns faster from normalized rewards",
                     NORMALIZE_REWARDS)]  # fmt: skip
    return []


def check_action_space(space: gymnasium.Space[Any], path: str = "action") -> list[Finding]:
    """Return notes for continuous actions without bounds. The action heads scale to bounds, wherever they are."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return [finding for key, part in items for finding in check_action_space(part, f"{path}/{key}")]
    if not isinstance(space, spaces.Box):
        return []
    if not np.isfinite([space.low, space.high]).all():
        return [note("actions", f"{path} has no bounds; scale actions so that values of size 1 are usual")]
    return []
