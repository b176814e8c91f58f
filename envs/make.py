"""Makes batched environments from Gymnasium environments."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import gymnasium
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from ..errors import ConfigurationError, EnvironmentFailure, TorchPPOError
from .entry_points import (
    EnvFactory,
    call_factory,
    construction_failure,
    find_factory,
    is_vector_class,
    registration,
    tuple_hint,
    with_tuples,
    wrapper_with_tuples,
)
from .failures import environment_failure, is_from_environment
from .guards import error_filters_removed, log_mujoco_warnings
from .make_failures import gymnasium_failure, has_wrong_argument, original
from .vector.interface import SlicedVectorEnv
from .vector.num_workers import fastest_num_workers
from .vector.recovery import MAX_RESTARTS, STEP_TIMEOUT, restarts_for
from .vector.serial import EnvFn, SerialVectorEnv
from .vector.subprocess import SubprocessVectorEnv
from .vector_env import VectorEnv
from .wrappers import RawEpisodeReward, Wrapper, may_report_mask, with_action_mask, wrapped

# Gymnasium warns that float64 bounds lose precision in float32. Users can ignore this.
warnings.filterwarnings("ignore", message=".*precision lowered by casting")


def make_env(
    id: str | EnvFactory | GymnasiumVectorEnv[Any, Any, Any],  # noqa: A002
    num_envs: int | None = None,
    *,
    vectorization: Literal["auto", "native"] = "auto",
    num_workers: int | Literal["auto"] = 0,
    step_timeout: float = STEP_TIMEOUT,
    on_failure: Literal["raise", "restart"] = "raise",
    max_restarts: int = MAX_RESTARTS,
    wrappers: Sequence[Wrapper] = (),
    info_keys: Sequence[str] = (),
    render_mode: str | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """Make a batch of Gymnasium environments.

    Args:
        id: see `make_gymnasium_env`, or a vector environment, for which other arguments are errors (see `VectorEnv`).
        num_envs: number of environments; `None` means 1, or the number of environments in a vector environment.
        vectorization: `native`: see `make_native`; `auto`: native only for Atari, EnvPool and vector-only ids.
        num_workers: worker processes; 0: step in this process, `auto`: measure which is faster, with the same data.
        step_timeout: seconds after which a step or reset of one environment fails; without workers, only in commands.
        on_failure: `restart` recreates an environment that fails, and truncates its episode; `raise` ends the run.
        max_restarts: number of failures that are followed by a restart.
        wrappers: applied to each environment, the first one innermost. With `native`, they are vector wrappers.
        info_keys: entries of `info` at the end of an episode that become metrics, besides `is_success` and `success`.
        render_mode: passed in the same way as `kwargs`. Ignored for Atari games, whose videos show the observations.
        kwargs: see `make_gymnasium_env`.

    Raises:
        EnvironmentFailure: if the environment does not exist, needs a missing package or cannot be made.
        ConfigurationError: if `num_envs` or `num_workers` is out of range, or an argument does not apply.

    """
    kwargs |= {} if render_mode is None or is_atari(id) else {"render_mode": render_mode}
    of_each_env: dict[str, Any] = {"wrappers": wrappers, "info_keys": info_keys}
    restart = {} if on_failure == "raise" else {"on_failure": on_failure}
    if isinstance(id, GymnasiumVectorEnv):
        return _batch_of_vector(id, num_envs, num_workers, of_each_env | restart, kwargs)
    num_envs = 1 if num_envs is None else num_envs
    check_counts(num_envs, num_workers)
    if is_native(id, vectorization):
        from .native.make import make_native

        options: dict[str, Any] = {"num_workers": num_workers, "step_timeout": step_timeout, **restart}
        return VectorEnv(make_native(id, num_envs, **of_each_env, **options, **kwargs))
    env_fns: list[EnvFn] = [partial(make_gymnasium_env, id, wrappers=wrappers, **kwargs)] * num_envs
    num_workers = fastest_num_workers(env_fns[0], num_envs, step_timeout) if num_workers == "auto" else num_workers
    options = {"info_keys": info_keys, "step_timeout": step_timeout}
    return VectorEnv(_batch_of_envs(env_fns, num_workers, on_failure, max_restarts, options))


BATCH_ARGUMENTS = frozenset(inspect.signature(make_env).parameters) - {"id", "wrappers", "render_mode"}
"""Arguments of `make_env` that do not apply to a single environment."""


def check_counts(num_envs: int, num_workers: Any) -> None:
    """Raise a ConfigurationError if the number of environments or workers is out of range."""
    if num_envs < 1:
        raise ConfigurationError(f"env.num_envs={num_envs} must be at least 1")
    if not (num_workers == "auto" or (isinstance(num_workers, int) and 0 <= num_workers <= num_envs)):
        raise ConfigurationError(
            f"env.num_workers={num_workers} must be auto or between 0 and the number of environments ({num_envs})"
        )


def _batch_of_envs(
    env_fns: list[EnvFn], num_workers: int, on_failure: str, max_restarts: int, options: dict[str, Any]
) -> SlicedVectorEnv:
    if num_workers > 0:
        options |= {"on_failure": on_failure, "max_restarts": max_restarts}
        return SubprocessVectorEnv(env_fns, num_workers, **options)
    restarts = None if on_failure == "raise" else restarts_for(on_failure, max_restarts, len(env_fns))
    return SerialVectorEnv(env_fns, restarts=restarts, **options)


def _batch_of_vector(
    vector: GymnasiumVectorEnv[Any, Any, Any],
    num_envs: int | None,
    num_workers: int | Literal["auto"],
    options: dict[str, Any],
    kwargs: dict[str, Any],
) -> VectorEnv:
    """Wrap a vector environment, to which no other argument of `make_env` applies."""
    if num_envs not in (None, vector.num_envs):
        raise ConfigurationError(f"env.num_envs={num_envs}, but {vector} has {vector.num_envs}; remove num_envs")
    others: dict[str, Any] = {name: value for name, value in options.items() if value}
    others |= {"num_workers": num_workers} if num_workers not in (0, "auto") else {}
    for name, value in (others | kwargs).items():
        raise ConfigurationError(f"env.{name}={value} does not apply to {vector}, which exists already; remove it")
    return VectorEnv(vector)


def is_atari(id: Any) -> bool:  # noqa: A002
    return isinstance(id, str) and id.startswith("ALE/")


def is_native(id: Any, vectorization: str) -> bool:  # noqa: A002
    """Return whether one vector environment steps all environments."""
    if vectorization not in ("auto", "native"):
        raise ConfigurationError(
            f"env.vectorization={vectorization} is not valid; use auto or native; with auto, env.num_workers=0 "
            "steps in this process, and a larger number in workers"
        )
    if vectorization == "native" or is_atari(id) or (isinstance(id, str) and id.startswith("envpool:")):
        return True
    spec = (gymnasium.registry.get(id) if isinstance(id, str) else None) or registration(id)
    return is_vector_class(id) if spec is None else spec.entry_point is None


def has_single_env(id: Any, vectorization: str, wrappers: Sequence[Any] = ()) -> bool:  # noqa: A002
    """Return whether `make_gymnasium_env`, which takes no vector wrappers, makes an environment with the same id."""
    if vectorization == "native" and not is_native(id, "auto"):
        return not wrappers and registration(id) is not None  # otherwise, `id` makes only vector environments
    return not is_native(id, vectorization)


def make_gymnasium_env(
    id: str | EnvFactory,  # noqa: A002
    *,
    wrappers: Sequence[Wrapper] = (),
    **kwargs: Any,
) -> gymnasium.Env[Any, Any]:
    """Make one Gymnasium environment.

    If the environment reports a mask of valid actions, `ActionMask` is applied after the other wrappers. If the source
    code contains `action_mask`, the environment is reset once to check for `info["action_mask"]`.

    Args:
        id: a registered id, `module:id` to import the module that registers it, a class or function, or the dotted
            path of a class or function.
        wrappers: applied in order, the first one innermost.
        kwargs: passed to `gymnasium.make`, or to the class or function. Lists become tuples where it expects tuples.

    Raises:
        EnvironmentFailure: if the environment does not exist, needs a missing package or cannot be made, or if a
            wrapper fails.
        ConfigurationError: if `id` or an entry of `wrappers` is not callable, or a wrapper normalizes observations.

    """
    name = repr(id) if isinstance(id, str) else getattr(id, "__qualname__", repr(id))
    with error_filters_removed():
        env = _make_unwrapped(id, name, kwargs)
    log_mujoco_warnings()  # the constructor may have imported MuJoCo
    check_render_mode(env, name, kwargs.get("render_mode"))
    env = _without_order_enforcing(env)
    if wrappers:
        env = RawEpisodeReward(env)  # innermost, to read the rewards before wrappers change them
    for index, wrapper in enumerate(wrappers):
        env = wrapped(env, wrapper_with_tuples(wrapper), f"env.wrappers[{index}]", name)
    for attribute in ("observation_space", "action_space"):
        space = getattr(env, attribute, None)
        if not isinstance(space, gymnasium.Space):
            raise EnvironmentFailure(f"environment {name} has {attribute}={space}; set it to one of gymnasium.spaces")
    return with_action_mask(env) if may_report_mask(env) else env


def check_render_mode(env: gymnasium.Env[Any, Any], name: str, mode: str | None) -> None:
    """Raise a ConfigurationError if an environment does not have a render mode, for which Gymnasium only warns."""
    modes = env.metadata.get("render_modes") if mode is not None else None
    if modes and mode not in modes:
        raise ConfigurationError(f"env.render_mode={mode} is not a mode of {name}; use one of {', '.join(modes)}")


def _make_unwrapped(id: str | EnvFactory, name: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:  # noqa: A002
    """Make an environment from an id, a class or function, or its dotted path."""
    factory: str | EnvFactory = id
    try:
        if isinstance(id, str) and id not in gymnasium.registry:
            factory = find_factory(id) or id
        if any(isinstance(value, list) for value in kwargs.values()):
            kwargs = with_tuples(factory, kwargs)
    except Exception as error:  # noqa: BLE001 - a module that is imported may raise anything
        raise environment_failure(f"environment {name} cannot be made", error) from None
    log_mujoco_warnings()
    return _gymnasium_make(factory, **kwargs) if isinstance(factory, str) else call_factory(factory, name, kwargs)


def _gymnasium_make(id: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:  # noqa: A002
    """Call `gymnasium.make` and turn its exceptions into an `EnvironmentFailure`."""
    try:
        log_mujoco_warnings(id)
        if kwargs.get("render_mode") is None:
            return gymnasium.make(id, disable_env_checker=True, **kwargs)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*in the possible render_modes")  # see `check_render_mode`
            return gymnasium.make(id, disable_env_checker=True, **kwargs)
    except BaseException as error:
        if not is_from_environment(error):
            raise
        raise _failure(id, original(error), kwargs) from error


def _failure(id: str, error: BaseException, kwargs: dict[str, Any]) -> TorchPPOError:  # noqa: A002
    """Return the error for an exception of `gymnasium.make`."""
    hint = tuple_hint(error, kwargs)
    if isinstance(error, gymnasium.error.Error | ModuleNotFoundError) or has_wrong_argument(error):
        return gymnasium_failure(id, error, hint)
    return construction_failure(f"environment {id!r} cannot be made", error, hint)


def _without_order_enforcing(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Remove `OrderEnforcing`, which checks at every step that `reset` was called; `VectorEnv` guarantees it."""
    if isinstance(env, OrderEnforcing):
        return env.env
    if isinstance(env, TimeLimit):
        env.env = _without_order_enforcing(env.env)
    return env
