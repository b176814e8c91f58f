"""Failures of environments: their messages, and how an environment is recreated."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigurationError, EnvironmentFailure, TorchPPOError
from ..failures import is_from_environment, place_of, step_failure
from ..guards import IDLE, close
from ..resume.resumability import with_replay
from ..spaces.encoding import encode_spaces
from ..spaces.specs import Allocate, leaf_arrays

STEP_TIMEOUT = 300.0
"""Default of `env.step_timeout`."""
MAX_RESTARTS = 100
"""Default of `env.max_restarts`."""

logger = logging.getLogger("torchppo")


class Restarts:
    """Counts how often environments were recreated after a failure, over all processes.

    Args:
        limit: number of failures that are followed by a restart. The next one is raised.
        num_envs: number of environments of all workers.
        allocate: allocates arrays in memory that workers share.

    Attributes:
        counts: steps of each environment that failed, `[num_envs]`.
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


def restarts_for(on_failure: str, max_restarts: int, num_envs: int, allocate: Allocate = np.zeros) -> Restarts | None:
    """Return `Restarts` for `on_failure="restart"`, or `None` for `"raise"`."""
    if on_failure not in ("raise", "restart"):
        raise ConfigurationError(f"env.on_failure={on_failure} is not valid; use raise or restart")
    return Restarts(max_restarts, num_envs, allocate) if on_failure == "restart" else None


def recover(vector: Any, index: int, error: BaseException, action: Any = None) -> None:
    """Recreate the failed environment of a `SerialVectorEnv` and truncate its episode, or raise the failure."""
    if not is_from_environment(error):
        vector.progress[0] = IDLE
        raise error
    failure: TorchPPOError = step_failure(place(vector, index, action), error)
    restarts: Restarts | None = vector.restarts
    if restarts is None or not isinstance(failure, EnvironmentFailure):
        vector.progress[0] = IDLE
        raise failure from None
    env = vector.first_env + index
    close(vector.envs[index], 2.0)
    while True:
        restarts.count(failure)
        restarts.set_seed(env, vector.last_seeds[index])
        try:
            vector.envs[index] = recreated(vector.env_fns[index], vector.resume_class)
            break
        except Exception as another:  # noqa: BLE001 - the environment's own code may raise anything
            failure = step_failure(f"environment {env} in its restart", another)
    if action is None:  # in a reset
        return
    restarts.counts[env] += 1
    vector.arrays.reward[index] = 0.0
    vector.arrays.terminated[index], vector.arrays.truncated[index] = False, True
    vector.infos[index] = None


def recreated(env_fn: Callable[[], gymnasium.Env[Any, Any]], resume_class: str) -> gymnasium.Env[Any, Any]:
    """Return a new environment of a `SerialVectorEnv`."""
    env = encode_spaces(env_fn())
    return with_replay(env) if resume_class == "replay" else env


def place(vector: Any, index: int, action: Any) -> str:
    """Return the text that names an environment of a `SerialVectorEnv`, its step, its seed and its action."""
    return place_of(vector.first_env + index, vector.num_steps, vector.last_seeds[index], action)


def timeout_failure(vector: Any) -> EnvironmentFailure:
    """Return the failure of the environment of a `SerialVectorEnv` that is being stepped."""
    index = int(vector.progress[0])
    action = None if vector.actions is None else vector.actions[index]
    return EnvironmentFailure(
        f"{place(vector, index, action)} did not return within env.step_timeout={vector.step_timeout:g} seconds; "
        "increase it if the environment is slow"
    )


def raise_if_not_finite(vector: Any, index: int) -> None:
    """Raise an EnvironmentFailure if the newest observation or reward of an environment is not finite."""
    observation, reward = vector.arrays.observation[index : index + 1], vector.arrays.reward[index]
    for key, leaf in {**leaf_arrays(observation), "reward": reward}.items():
        if np.asarray(leaf).dtype.kind == "f" and not np.isfinite(leaf).all():
            name = key if isinstance(key, str) else "/".join(key)
            raise EnvironmentFailure(f"the {name} of an environment is not finite")
