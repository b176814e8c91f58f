"""Makes vector environments that step all environments with one call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv

from ...errors import ConfigurationError, EnvironmentFailure, TorchPPOError, did_you_mean
from ..entry_points import check_arguments, construction_failure, find_factory, with_tuples
from ..failures import environment_failure
from ..guards import error_filters_removed
from ..make_failures import gymnasium_failure, has_wrong_argument
from ..vector.interface import SlicedVectorEnv
from .atari import make_atari_vector
from .autoreset import EnvPoolReset, Vector
from .vector import NativeVectorEnv


def make_native(
    id: Any,  # noqa: A002
    num_envs: int,
    *,
    wrappers: Sequence[Callable[[Vector], Vector]] = (),
    info_keys: Sequence[str] = (),
    step_timeout: float,
    num_workers: Any = 0,
    on_failure: str = "raise",
    **kwargs: Any,
) -> SlicedVectorEnv:
    """Make a vector environment that steps all environments with one call.

    Args:
        id: `ALE/<Game>-v5` (see `make_atari_vector`), `envpool:<id>`, an id whose registration has a
            `vector_entry_point`, or a class or function that makes a vector environment, or its dotted path.
        num_envs: number of environments.
        wrappers: vector wrappers, such as those of `gymnasium.wrappers.vector`, the first one innermost.
        info_keys: see `make_env`.
        step_timeout: see `make_env`.
        num_workers: must be 0 or `auto`.
        on_failure: must be `raise`.
        kwargs: passed to the vector environment.

    Raises:
        EnvironmentFailure: if the environment does not exist, needs a missing package or cannot be made.
        ConfigurationError: if an argument does not apply.

    """
    name = id if isinstance(id, str) else getattr(id, "__qualname__", repr(id))
    if num_workers not in (0, "auto"):
        raise ConfigurationError(
            f"env.num_workers={num_workers} does not apply to {name}, which is native; set it to 0"
        )
    if on_failure != "raise":
        raise ConfigurationError(f"env.on_failure={on_failure} does not apply to {name}, which is native; remove it")
    if name.startswith("ALE/"):
        for key, value in {"wrappers": wrappers, "info_keys": info_keys}.items():
            if value:
                hint = "; use transforms" if key == "wrappers" else "; remove it"
                raise ConfigurationError(f"env.{key}={[*value]} does not apply to {name}, which runs in C++{hint}")
        return make_atari_vector(name, num_envs, **kwargs)
    options: dict[str, Any] = {"info_keys": info_keys, "step_timeout": step_timeout}
    if name.startswith("envpool:"):
        make, options["spec"] = _envpool(name, kwargs)
    else:
        make = _vector_entry_point(id, name, kwargs)
    with error_filters_removed():
        return NativeVectorEnv(make(num_envs), wrappers, make=make, **options)


def _envpool(id: str, kwargs: dict[str, Any]) -> tuple[Callable[[int], Vector], EnvSpec]:  # noqa: A002
    """Return a function that makes an EnvPool, and its id and time limit."""
    try:
        import envpool
    except ImportError as error:
        raise EnvironmentFailure(f"environment {id!r} needs EnvPool: pip install 'torchppo[envpool]'") from error
    name = id.partition(":")[2]
    if name not in (names := envpool.list_all_envs()):
        raise EnvironmentFailure(f"environment {id!r} is not an id of EnvPool{did_you_mean(name, names)}")

    def make(num_envs: int, seed: int = 0) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*precision lowered by casting")
            pool = envpool.make_gymnasium(name, num_envs=num_envs, seed=seed, **kwargs)
            _ = pool.observation_space, pool.action_space  # created at the first access, with a warning
            return pool

    def make_vector(num_envs: int) -> Vector:
        try:
            return EnvPoolReset(make(num_envs), partial(make, num_envs))
        except Exception as error:  # noqa: BLE001 - EnvPool raises classes of several packages
            raise construction_failure(f"environment {id!r} cannot be made", error) from None

    limit = kwargs.get("max_episode_steps", envpool.make_spec(name).config.max_episode_steps)
    return make_vector, EnvSpec(id, max_episode_steps=limit)


def _vector_entry_point(id: Any, name: str, kwargs: dict[str, Any]) -> Callable[[int], Vector]:  # noqa: A002
    """Return a function that makes a vector environment from an id, a class or function, or its dotted path."""
    try:
        factory = (find_factory(id) or id) if isinstance(id, str) and id not in gymnasium.registry else id
        kwargs = with_tuples(factory, kwargs) if any(isinstance(value, list) for value in kwargs.values()) else kwargs
    except Exception as error:  # noqa: BLE001 - a module that is imported may raise anything
        raise environment_failure(f"environment {name!r} cannot be made", error) from None
    if not isinstance(factory, str):
        check_arguments(factory, name, {"num_envs": 1, **kwargs})

    def make(num_envs: int) -> Vector:
        try:
            if isinstance(factory, str):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*missing AutoresetMode")  # see `without_autoreset`
                    vector = gymnasium.make_vec(factory, num_envs, vectorization_mode="vector_entry_point", **kwargs)
                if "max_episode_steps" in kwargs and vector.spec is not None:
                    vector.spec.max_episode_steps = kwargs["max_episode_steps"]
                return vector
            vector = factory(num_envs=num_envs, **kwargs)
        except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
            raise _failure(name, error) from None
        if not isinstance(vector, GymnasiumVectorEnv):
            raise ConfigurationError(
                f"{name} returned {type(vector).__name__}, not a gymnasium.vector.VectorEnv; set env.vectorization=auto"
            )
        return vector

    return make


def _failure(name: str, error: Exception) -> TorchPPOError:
    """Return the error for an exception of `gymnasium.make_vec` or of a constructor."""
    message = f"environment {name!r} cannot be made"
    if "doesn't have a vector entry point" in str(error):
        return ConfigurationError(f"env.vectorization=native: {name} has no vector environment; set it to auto")
    if isinstance(error, gymnasium.error.Error | ModuleNotFoundError) or has_wrong_argument(error):
        return gymnasium_failure(name, error)
    return construction_failure(message, error)
