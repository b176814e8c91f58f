"""From an environment's name to a batch of environments."""

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
from .vector.serial import Maker, SerialVectorEnv, close
from .vector.subprocess import SubprocessVectorEnv
from .vector_env import VectorEnv
from .wrappers import RawEpisodeReward, random_action

Wrapper = Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]

MEASURE_SECONDS = 0.2
HANDOVER_SECONDS = 30e-6
"""What handing a step to one worker and back costs."""


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
    """A batch of Gymnasium environments, in this process or in several.

    Args:
        id: a registered name, or `module:Name` to import the module that registers it; `ALE/<Game>-v5`
            makes ale-py's native vector environment (see `make_atari_vector`).
        num_envs: how many, at least 1.
        num_workers: processes to step them in, 0 for this one; `auto` measures which is faster. The data is the
            same, bit for bit.
        step_timeout: seconds in which a worker's step has to return.
        wrappers: for each environment, the first one innermost.
        render_mode: of `gymnasium.make`; for Atari games ignored, of which a film shows the observations.
        kwargs: further ones for `gymnasium.make`.

    Raises:
        EnvironmentFailure: if it does not exist, lacks a package, or cannot be made as asked.
        ConfigurationError: if there is to be no environment, or a number of workers that cannot be.

    """
    if num_envs < 1:
        raise ConfigurationError(f"env.num_envs={num_envs} must be at least 1")
    if not (num_workers == "auto" or (isinstance(num_workers, int) and 0 <= num_workers <= num_envs)):
        raise ConfigurationError(f"env.num_workers={num_workers} is none of auto and 0 to env.num_envs={num_envs}")
    if id.startswith("ALE/"):
        if wrappers:
            raise ConfigurationError(f"env.wrappers do not apply to {id}: its environments run in C++; use transforms")
        if num_workers not in (0, "auto"):
            raise ConfigurationError(f"env.num_workers does not apply to {id}: its environments run in C++ threads")
        return VectorEnv(make_atari_vector(id, num_envs, **kwargs))
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    maker = partial(make_env, id, wrappers=wrappers, **kwargs)
    if num_workers == "auto":
        num_workers = fastest_num_workers(maker, num_envs, step_timeout)
    if num_workers == 0:
        return VectorEnv(SerialVectorEnv([maker] * num_envs))
    return VectorEnv(SubprocessVectorEnv([maker] * num_envs, num_workers, step_timeout))


def fastest_num_workers(maker: Maker, num_envs: int, step_timeout: float = 60.0) -> int:
    """How many worker processes step `num_envs` environments fastest on this machine; 0: this process does.

    Measures a few steps of one environment. Workers have to win clearly, because they also take the cores
    that learning could use.
    """
    cores = min(num_cores(), num_envs)
    if cores < 2:
        return 0
    seconds = run_in_subprocess(partial(seconds_of_a_step, maker), step_timeout)
    parallel = math.ceil(num_envs / cores) * seconds + cores * HANDOVER_SECONDS
    return cores if num_envs * seconds > 1.2 * parallel else 0


def seconds_of_a_step(maker: Maker) -> float:
    """How long one environment steps on average, with random actions."""
    env = maker()
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


def make_env(id: str, *, wrappers: Sequence[Wrapper] = (), **kwargs: Any) -> gymnasium.Env[Any, Any]:  # noqa: A002
    """One Gymnasium environment with its wrappers, the first one innermost.

    Raises:
        EnvironmentFailure: if it does not exist, lacks a package, or cannot be made as asked.

    """
    try:
        env = gymnasium.make(id, disable_env_checker=True, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvironmentFailure(f"environment {id!r} needs a package that is missing: {error}") from error
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        hint = ""
        if isinstance(error, gymnasium.error.UnregisteredEnv):
            hint = did_you_mean(id, gymnasium.registry)
        if isinstance(error, gymnasium.error.NameNotFound) and ":" not in id:
            hint += f"; one that a module of yours registers is env.id=module:{id}"
        if isinstance(error, ModuleNotFoundError) and id.startswith("minigrid:"):
            hint = "; pip install 'torchppo[minigrid]'"
        raise EnvironmentFailure(f"environment {id!r} cannot be made: {error}{hint}") from error
    except Exception as error:  # noqa: BLE001 - whatever its module or constructor raises is its own failure
        raise environment_failure(f"environment {id!r} cannot be made", error) from None
    env = without_order_enforcing(env)
    if wrappers:
        env = RawEpisodeReward(env)  # innermost: the environment's own reward, whatever wrappers make of it
    for place, wrapper in enumerate(wrappers):
        if not callable(wrapper):
            raise ConfigurationError(
                f"env.wrappers[{place}]={wrapper} is no function of an environment; write {{_target_: "
                "gymnasium.wrappers.ClipAction, _partial_: true}"
            )
        try:
            env = wrapper(env)
            if isinstance(env, NormalizeObservation):
                raise ConfigurationError(
                    f"env.wrappers[{place}] keeps statistics that an evaluation and a checkpoint would not have; set "
                    "policy.normalize_observation=true instead"
                )
        except Exception as error:  # noqa: BLE001 - as above
            raise environment_failure(f"env.wrappers[{place}] does not go with environment {id!r}", error) from None
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, gymnasium.Space):
            raise EnvironmentFailure(f"environment {id!r} has {name}={space}; set it to one of gymnasium.spaces")
    return env


def without_order_enforcing(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """An environment without the wrapper that watches for a step before a reset, which cannot happen here."""
    if isinstance(env, OrderEnforcing):
        return env.env
    if isinstance(env, TimeLimit):
        env.env = without_order_enforcing(env.env)
    return env
