"""Makes batched environments from Gymnasium environments."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import gymnasium
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
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
EnvFactory = Callable[..., gymnasium.Env[Any, Any]]
"""A class of Gymnasium environments, or a function that returns one."""

MEASURE_SECONDS = 0.2
"""How long `fastest_num_workers` measures an environment."""
WORKER_OVERHEAD_SECONDS = 30e-6
"""Time to send a step to one worker and to receive its result."""


def make_env(
    id: str | EnvFactory | GymnasiumVectorEnv[Any, Any, Any],  # noqa: A002
    num_envs: int | None = None,
    *,
    num_workers: int | Literal["auto"] = 0,
    step_timeout: float = 60.0,
    wrappers: Sequence[Wrapper] = (),
    render_mode: str | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """Make a batch of Gymnasium environments.

    Args:
        id: a registered id, a class or function that makes one environment, or a vector environment in
            `AutoresetMode.DISABLED`, which accepts no other argument. `module:id` imports the module that registers
            the id. `ALE/<Game>-v5` uses ale-py's native vector environment (see `make_atari_vector`).
        num_envs: number of environments; `None` means 1, or the number of environments in a vector environment.
        num_workers: number of worker processes. 0 steps the environments in this process, `auto` measures which is
            faster. The data do not depend on it.
        step_timeout: seconds after which a step of a worker fails.
        wrappers: applied to each environment, the first one innermost.
        render_mode: passed in the same way as `kwargs`. Ignored for Atari games, whose videos show the observations.
        kwargs: passed to `gymnasium.make`, or to the class or function.

    Raises:
        EnvironmentFailure: if the environment does not exist, needs a missing package or cannot be made.
        ConfigurationError: if `num_envs` or `num_workers` is out of range, or an argument does not apply.

    """
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    if isinstance(id, GymnasiumVectorEnv):
        others: dict[str, Any] = {"wrappers": wrappers} if wrappers else {}
        others |= {"num_workers": num_workers} if num_workers not in (0, "auto") else {}
        return _batch_of_vector(id, num_envs, {**others, **kwargs})
    num_envs = 1 if num_envs is None else num_envs
    if num_envs < 1:
        raise ConfigurationError(f"env.num_envs={num_envs} must be at least 1")
    if not (num_workers == "auto" or (isinstance(num_workers, int) and 0 <= num_workers <= num_envs)):
        raise ConfigurationError(
            f"env.num_workers={num_workers} must be auto or between 0 and the number of environments ({num_envs})"
        )
    if isinstance(id, str) and id.startswith("ALE/"):
        return _atari_batch(id, num_envs, num_workers, wrappers, kwargs)
    env_fn = partial(make_gymnasium_env, id, wrappers=wrappers, **kwargs)
    if num_workers == "auto":
        num_workers = fastest_num_workers(env_fn, num_envs, step_timeout)
    if num_workers == 0:
        return VectorEnv(SerialVectorEnv([env_fn] * num_envs))
    return VectorEnv(SubprocessVectorEnv([env_fn] * num_envs, num_workers, step_timeout))


def _batch_of_vector(
    vector: GymnasiumVectorEnv[Any, Any, Any], num_envs: int | None, others: dict[str, Any]
) -> VectorEnv:
    """Wrap a vector environment, to which no other argument of `make_env` applies."""
    if num_envs not in (None, vector.num_envs):
        raise ConfigurationError(f"env.num_envs={num_envs}, but {vector} has {vector.num_envs}; remove num_envs")
    for name, value in others.items():
        raise ConfigurationError(f"env.{name}={value} does not apply to {vector}, which exists already; remove it")
    return VectorEnv(vector)


def _atari_batch(
    id: str,  # noqa: A002
    num_envs: int,
    num_workers: int | Literal["auto"],
    wrappers: Sequence[Wrapper],
    kwargs: dict[str, Any],
) -> VectorEnv:
    if wrappers:
        raise ConfigurationError(f"env.wrappers do not apply to {id}, which runs in C++; use transforms")
    if num_workers not in (0, "auto"):
        raise ConfigurationError(
            f"env.num_workers={num_workers} does not apply to {id}, which runs in C++ threads; set it to 0"
        )
    return VectorEnv(make_atari_vector(id, num_envs, **kwargs))


def make_gymnasium_env(
    id: str | EnvFactory,  # noqa: A002
    *,
    wrappers: Sequence[Wrapper] = (),
    **kwargs: Any,
) -> gymnasium.Env[Any, Any]:
    """Make one Gymnasium environment.

    Args:
        id: a registered id, `module:id` to import the module that registers it, or a class or function.
        wrappers: applied in order, the first one innermost.
        kwargs: passed to `gymnasium.make`, or to the class or function.

    Raises:
        EnvironmentFailure: if the environment does not exist, needs a missing package or cannot be made, or if a
            wrapper fails.
        ConfigurationError: if `id` or an entry of `wrappers` is not callable, or a wrapper normalizes observations.

    """
    name = repr(id) if isinstance(id, str) else getattr(id, "__qualname__", repr(id))
    env = _gymnasium_make(id, **kwargs) if isinstance(id, str) else _call_factory(id, name, kwargs)
    env = _without_order_enforcing(env)
    if wrappers:
        env = RawEpisodeReward(env)  # innermost, to read the rewards before wrappers change them
    for index, wrapper in enumerate(wrappers):
        env = _wrapped(env, wrapper, f"env.wrappers[{index}]", name)
    for attribute in ("observation_space", "action_space"):
        space = getattr(env, attribute, None)
        if not isinstance(space, gymnasium.Space):
            raise EnvironmentFailure(f"environment {name} has {attribute}={space}; set it to one of gymnasium.spaces")
    return env


def _call_factory(factory: EnvFactory, name: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    if not callable(factory):
        raise ConfigurationError(
            f"env.id={name} is not an id, a class, a function that makes an environment or a gymnasium.vector "
            "environment; pass a function that returns it"
        )
    try:
        env = factory(**kwargs)
    except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
        raise environment_failure(f"environment {name} cannot be made", error) from None
    if not isinstance(env, gymnasium.Env):
        raise EnvironmentFailure(f"{name} returned {type(env).__name__}, not a gymnasium.Env; return an environment")
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


def _wrapped(env: gymnasium.Env[Any, Any], wrapper: Wrapper, key: str, name: str) -> gymnasium.Env[Any, Any]:
    """Apply one wrapper; `key` and `name` name the wrapper and the environment in errors."""
    if not callable(wrapper):
        raise ConfigurationError(
            f"{key}={wrapper} is not callable; write {{_target_: gymnasium.wrappers.ClipAction, _partial_: true}}"
        )
    try:
        env = wrapper(env)
    except Exception as error:  # noqa: BLE001 - a wrapper may raise anything
        raise environment_failure(f"{key} failed for environment {name}", error) from None
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
