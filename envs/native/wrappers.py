"""Wrappers of vector environments."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from gymnasium import vector, wrappers

from ...errors import ConfigurationError
from ..entry_points import construction_failure, wrapper_with_tuples
from .autoreset import Vector


class RawEpisodeReward(vector.VectorWrapper):
    """Sums the rewards of the current episodes in `total`, `[num_envs]`.

    It is applied before all other wrappers, so that the return does not depend on reward wrappers.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if options is None:
            self.total = np.zeros(self.num_envs)
        else:  # before the reset, because `SyncVectorEnv` removes the mask from `options`
            self.total[options["reset_mask"]] = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        result = self.env.step(actions)
        self.total += np.asarray(result[1])
        return result


def vector_wrapped(env: Vector, wrapper: Any, key: str) -> Vector:
    """Apply one wrapper to a vector environment; `key` names the wrapper in errors.

    Raises:
        ConfigurationError: if it is a wrapper of single environments, or normalizes observations or rewards.

    """
    function = wrapper.func if isinstance(wrapper, partial) else wrapper
    name = getattr(function, "__name__", str(function))
    if not callable(wrapper) or (isinstance(function, type) and not issubclass(function, vector.VectorWrapper)):
        other = f"use gymnasium.wrappers.vector.{name}" if hasattr(wrappers.vector, name) else "remove it"
        raise ConfigurationError(
            f"{key}={name} wraps a single environment, but env.vectorization=native has a batch; {other}, or set "
            "env.vectorization=auto"
        )
    normalizing = {
        wrappers.vector.NormalizeObservation: "policy.normalize_observation=true",
        wrappers.vector.NormalizeReward: "reward=normalized",
    }
    if function in normalizing:
        raise ConfigurationError(
            f"{key}={name} keeps statistics that evaluation and checkpoints do not have; use {normalizing[function]}"
        )
    try:
        result = wrapper_with_tuples(wrapper)(env)
    except Exception as error:  # noqa: BLE001 - a wrapper may raise anything
        raise construction_failure(f"{key} failed for {env}", error) from None
    if not isinstance(result, vector.VectorEnv):
        raise ConfigurationError(f"{key}={name} returned {type(result).__name__}; return a gymnasium.vector.VectorEnv")
    return result
