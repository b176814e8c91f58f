"""Makes batched environments from the id of a Gymnasium environment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium
from gymnasium.wrappers import NormalizeObservation, OrderEnforcing, TimeLimit

from ..errors import ConfigurationError, EnvironmentFailure, did_you_mean
from .failures import environment_failure
from .vector.atari import make_atari_vector, num_cores
from .vector.forked_call import run_in_subprocess
from .vector.serial import EnvFn, SerialVectorEnv, close
from .vector.subprocess import SubprocessVectorEnv
from .vector_env import VectorEnv
from .wrappers import RawEpisodeReward, random_action

Wrapper = Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]

MEASURE_SECONDS = 0.2
"""How long `fastest_num_workers` measures an environment."""
WORKER_OVERHEAD_SECONDS = 30e-6
"""Time to send a step to one worker and to receive its result."""


def make_vector_env(
    id: str,  # noqa: A002
    num_envs: int,
    *,
    num_workers: int | Literal["auto"] = 0,
    step_timeout: float = 60.0,
    wrappers: Sequence[Wrapper] = (),
    render_mode: str | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """Make a batch of Gymnasium environments.

    Args:
        id: a registered id, or `module:id` to import the module that registers it. `ALE/<Game>-v5` uses ale-py's
            native vector environment (see `make_atari_vector`).
        num_envs: number of environments, at least 1.
        num_workers: number of worker processes. 0 steps the environments in this process, `auto` measures which is
            faster. The data do not depend on it.
        step_timeout: seconds after which a step of a worker fails.
        wrappers: applied to each environment, the first one innermost.
        render_mode: passed to `gymnasium.make`. Ignored for Atari games, whose videos show the observations.
        kwargs: passed to `gymnasium.make`.

    Raises:
        EnvironmentFailure: if the environment does not exist, needs a missing package or cannot be made.
        ConfigurationError: if `num_envs` or `num_workers` is out of range, or does not apply to Atari games.

    """
    if num_envs < 1:
        raise ConfigurationError(f"env.num_envs={num_envs} must be at least 1")
    if not (num_workers == "auto" or (isinstance(num_workers, int) and 0 <= num_workers <= num_envs)):
        raise ConfigurationError(
            f"env.num_workers={num_workers} must be auto or between 0 and the number of environments ({num_envs})"
        )
    if id.startswith("ALE/"):
        if wrappers:
            raise ConfigurationError(f"env.wrappers do not apply to {id}, which runs in C++; use transforms")
        if num_workers not in (0, "auto"):
            raise ConfigurationError(
                f"env.num_workers={num_workers} does not apply to {id}, which runs in C++ threads; set it to 0"
            )
        return VectorEnv(make_atari_vector(id, num_envs, **kwargs))
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    env_fn = partial(make_env, id, wrappers=wrappers, **kwargs)
    if num_workers == "auto":
        num_workers = fastest_num_workers(env_fn, num_envs, step_timeout)
    if num_workers == 0:
        return VectorEnv(SerialVectorEnv([env_fn] * num_envs))
    return VectorEnv(SubprocessVectorEnv([env_fn] * num_envs, num_workers, step_timeout))


def make_env(id: str, *, wrappers: Sequence[Wrapper] = (), **kwargs: Any) -> gymnasium.Env[Any, Any]:  # noqa: A002
    """Make one Gymnasium environment.

    Args:
        id: a registered id, or `module:id` to import the module that registers it.
        wrappers: applied in order, the first one innermost.
        kwargs: passed to `gymnasium.make`.

    Raises:
        EnvironmentFailure: if the environment does not exist, needs a missing package or cannot be made, or if a
            wrapper fails.
        ConfigurationError: if an entry of `wrappers` is not callable, or normalizes observations.

    """
    env = _without_order_enforcing(_gymnasium_make(id, **kwargs))
    if wrappers:
        env = RawEpisodeReward(env)  # innermost, to read the rewards before wrappers change them
    for index, wrapper in enumerate(wrappers):
        env = _wrapped(env, wrapper, f"env.wrappers[{index}]", id)
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, gymnasium.Space):
            raise EnvironmentFailure(f"environment {id!r} has {name}={space}; set it to one of gymnasium.spaces")
    return env


def _gymnasium_make(id: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:  # noqa: A002
    """Call `gymnasium.make` and turn its exceptions into an `EnvironmentFailure`."""
    try:
        return gymnasium.make(id, disable_env_checker=True, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvironmentFailure(f"environment {id!r} needs a package that is missing: {error}") from error
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        hint = ""
        if isinstance(error, gymnasium.error.UnregisteredEnv):
            hint = did_you_mean(id, gymnasium.registry)
        if isinstance(error, gymnasium.error.NameNotFound) and ":" not in id:
            hint += f"; if a module of yours registers it, use env.id=module:{id}"
        if isinstance(error, ModuleNotFoundError) and id.startswith("minigrid:"):
            hint = "; pip install 'torchppo[minigrid]'"
        raise EnvironmentFailure(f"environment {id!r} cannot be made: {error}{hint}") from error
    except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
        raise environment_failure(f"environment {id!r} cannot be made", error) from None


def _wrapped(env: gymnasium.Env[Any, Any], wrapper: Wrapper, key: str, id: str) -> gymnasium.Env[Any, Any]:  # noqa: A002
    """Apply one wrapper; `key` and `id` name the wrapper and the environment in errors."""
    if not callable(wrapper):
        raise ConfigurationError(
            f"{key}={wrapper} is not callable; write {{_target_: gymnasium.wrappers.ClipAction, _partial_: true}}"
        )
    try:
        env = wrapper(env)
    except Exception as error:  # noqa: BLE001 - a wrapper may raise anything
        raise environment_failure(f"{key} failed for environment {id!r}", error) from None
    if isinstance(env, NormalizeObservation):
        raise ConfigurationError(
            f"{key} keeps statistics that evaluation and checkpoints do not have; use policy.normalize_observation=true"
        )
    return env


def _without_order_enforcing(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Remove `OrderEnforcing`, which checks at every step that `reset` was called; `VectorEnv` guarantees it."""
    if isinstance(env, OrderEnforcing):
        return env.env
    if isinstance(env, TimeLimit):
        env.env = _without_order_enforcing(env.env)
    return env


def fastest_num_workers(env_fn: EnvFn, num_envs: int, step_timeout: float = 60.0) -> int:
    """Estimate the number of worker processes that steps `num_envs` environments fastest; 0 means this process.

    Measures a few steps of one environment in a forked process. Returns 0 unless workers are at least 20%
    faster, because they also occupy the cores that the update could use.
    """
    cores = min(num_cores(), num_envs)
    if cores < 2:
        return 0
    seconds = run_in_subprocess(partial(_measure_step_seconds, env_fn), step_timeout)
    parallel_seconds = math.ceil(num_envs / cores) * seconds + cores * WORKER_OVERHEAD_SECONDS
    return cores if num_envs * seconds > 1.2 * parallel_seconds else 0


def _measure_step_seconds(env_fn: EnvFn) -> float:
    """Return the mean duration of a step with random actions."""
    env = env_fn()
    try:
        env.action_space.seed(0)
        _, info = env.reset(seed=0)
        num_steps, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < MEASURE_SECONDS:
            _, _, terminated, truncated, info = env.step(random_action(env.action_space, info))
            if terminated or truncated:
                _, info = env.reset()
            num_steps += 1
    finally:
        close(env)
    return seconds / num_steps
