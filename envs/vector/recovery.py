"""Failures of environments: their messages, and how an environment is recreated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigurationError, EnvironmentFailure, TorchPPOError
from ..failures import step_failure
from ..guards import close
from ..resume.replay import with_replay
from ..spaces.encoding import encode_spaces
from ..spaces.specs import Allocate, leaf_arrays

STEP_TIMEOUT = 300.0
"""Default of `env.step_timeout`."""
MAX_RESTARTS = 100
"""Default of `env.max_restarts`."""

Env = gymnasium.Env[Any, Any]
logger = logging.getLogger("torchppo")


class Restarts:
    """Counts how often environments were recreated after a failure, over all processes.

    Args:
        limit: number of failures that are followed by a restart. The next one is raised.
        num_envs: number of environments of all workers.
        allocate: allocates arrays in memory that workers share.

    Attributes:
        counts: `num_restarts` of `SlicedVectorEnv`.
        pending: seeds of the next reset, by environment.

    """

    def __init__(self, limit: int, num_envs: int, allocate: Allocate = np.zeros) -> None:
        if limit < 1:
            raise ConfigurationError(f"env.max_restarts={limit} must be at least 1")
        self.limit = limit
        self.counts: NDArray[np.int64] = allocate((num_envs,), np.int64)
        self._num_failures: NDArray[np.int64] = allocate((1,), np.int64)
        self.pending: dict[int, int] = {}

    def count(self, failure: Exception) -> None:
        """Count a failure and print it, or raise it."""
        if self._num_failures[0] >= self.limit:
            raise EnvironmentFailure(f"{failure} (after env.max_restarts={self.limit} restarts)") from None
        self._num_failures[0] += 1
        logger.warning("torchppo: %s; restart %d of at most %d", failure, self._num_failures[0], self.limit)

    def set_seed(self, env: int, seed: int | None) -> None:
        """Derive the seed of the next reset of an environment from its last seed."""
        entropy = [0 if seed is None else seed, env, int(self._num_failures[0])]
        self.pending[env] = int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)

    def replace(self, env: Env, make: Callable[[], Env], failure: TorchPPOError, index: int, seed: int | None) -> Env:
        """Close an environment that has failed and return a new one. After too many failures, raise the last one.

        Args:
            env: the environment.
            make: returns a new environment. Its failures also count.
            failure: the failure of the environment.
            index: number of the environment.
            seed: its last seed.

        """
        close(env, 2.0)
        while True:
            self.count(failure)
            self.set_seed(index, seed)
            try:
                return make()
            except Exception as another:  # noqa: BLE001 - the environment's own code may raise anything
                failure = step_failure(f"environment {index} in its restart", another)


def restarts_for(on_failure: str, max_restarts: int, num_envs: int, allocate: Allocate = np.zeros) -> Restarts | None:
    """Return `Restarts` for `on_failure="restart"`, or `None` for `"raise"`."""
    if on_failure not in ("raise", "restart"):
        raise ConfigurationError(f"env.on_failure={on_failure} is not valid; use raise or restart")
    return Restarts(max_restarts, num_envs, allocate) if on_failure == "restart" else None


def recreated(env_fn: Callable[[], Env], resume_class: str) -> Env:
    """Return a new environment of a `SerialVectorEnv`."""
    env = encode_spaces(env_fn())
    return with_replay(env) if resume_class == "replay" else env


def timeout_failure(place: str, step_timeout: float) -> EnvironmentFailure:
    """Return the failure of an environment that does not return from a step; see `place_of` for `place`."""
    return EnvironmentFailure(
        f"{place} did not return within env.step_timeout={step_timeout:g} seconds; "
        "increase it if the environment is slow"
    )


def raise_if_not_finite(observation: NDArray[Any], reward: Any) -> None:
    """Raise an EnvironmentFailure if an observation `[1, *observation]` or a reward is not finite."""
    for key, leaf in {**leaf_arrays(observation), "reward": reward}.items():
        if np.asarray(leaf).dtype.kind == "f" and not np.isfinite(leaf).all():
            name = key if isinstance(key, str) else "/".join(key)
            raise EnvironmentFailure(f"the {name} of an environment is not finite")
