"""Resolves ids to classes and functions, and converts keyword arguments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import TimeLimit

from ..errors import ConfigurationError, EnvironmentFailure, TorchPPOError
from .failures import environment_failure, is_raised_by_package
from .guards import error_filters_removed
from .make_failures import argument_error

EnvFactory = Callable[..., gymnasium.Env[Any, Any]]
"""A class of Gymnasium environments, or a function that returns one."""

TUPLE_HINT = "; to pass a tuple instead of a list, write {_target_: builtins.tuple, _args_: [[64,64]]}"


def find_factory(id: str) -> Callable[..., Any] | None:  # noqa: A002
    """Return the class or function at `package.module.Name` or `module:Name`, or `None` for any other id.

    Raises:
        ImportError: if the module exists but cannot be imported.

    """
    module, separator, name = id.rpartition(":" if ":" in id else ".")
    if not separator or not module or not name.isidentifier() or not is_module(module):
        return None
    factory = getattr(import_module(module), name, None)
    is_registered = separator == ":" and name in gymnasium.registry
    return factory if callable(factory) and not is_registered else None


def registration(id: Any) -> EnvSpec | None:  # noqa: A002
    """Return the registration of an id, or `None`. Imports the module of `module:id`, which may register it."""
    if not isinstance(id, str):
        return None
    module, _, name = id.rpartition(":")
    if module and is_module(module):
        with suppress(Exception):  # the error is reported when the environment is made
            import_module(module)
    return gymnasium.registry.get(name)


def import_module(name: str) -> Any:
    """Import a module of environments.

    Raises:
        ImportError: if the module cannot be imported, or exits while it is imported.

    """
    try:
        with error_filters_removed():
            return importlib.import_module(name)
    except SystemExit as error:
        raise ImportError(f"{name} exits when it is imported; exit only under `if __name__ == '__main__'`") from error


def is_vector_class(id: Any) -> bool:  # noqa: A002
    """Return whether an id is a class of vector environments, or its dotted path."""
    if isinstance(id, str):
        with suppress(Exception):  # the error is reported when the environment is made
            id = find_factory(id)  # noqa: A001
    return isinstance(id, type) and issubclass(id, VectorEnv)


def is_module(name: str) -> bool:
    """Return whether a module can be found. Imports its parent packages."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def with_tuples(factory: str | Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Convert lists to tuples for the parameters whose default or annotation is a tuple.

    YAML and the command line have no tuples. Lists in dictionaries are not converted, because their type is unknown.

    Args:
        factory: an id, or the class or function that receives the arguments.
        kwargs: the arguments.

    """
    expected = {name for one in _functions(factory) for name in _tuple_parameters(one)}
    if isinstance(factory, str) and (spec := gymnasium.registry.get(factory.rpartition(":")[2])):
        expected |= {name for name, value in spec.kwargs.items() if isinstance(value, tuple)}
    return {key: _as_tuple(value) if key in expected else value for key, value in kwargs.items()}


def wrapper_with_tuples(wrapper: Any) -> Any:
    """Apply `with_tuples` to the keyword arguments of a wrapper that is a partial."""
    if not isinstance(wrapper, partial) or not contains_list(wrapper.keywords):
        return wrapper
    return partial(wrapper.func, *wrapper.args, **with_tuples(wrapper.func, wrapper.keywords))


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def _functions(factory: str | Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield the functions that receive the arguments. For a class, these are the constructors of it and its bases."""
    target: Any = factory
    if isinstance(factory, str):
        module, _, name = factory.rpartition(":")
        if module:
            importlib.import_module(module)
        spec = gymnasium.registry.get(name)
        target = spec.entry_point if spec else None
        if isinstance(target, str):
            target = gymnasium.envs.registration.load_env_creator(target)
    if isinstance(target, type):
        yield from (vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base))
    elif target is not None:
        yield target


def _tuple_parameters(function: Callable[..., Any]) -> Iterator[str]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C
        return
    for name, parameter in parameters.items():
        annotation = parameter.annotation
        text = annotation if isinstance(annotation, str) else ""
        origin = typing.get_origin(annotation) or annotation
        options = (origin, *(typing.get_origin(option) or option for option in typing.get_args(annotation)))
        is_tuple = tuple in options or (
            re.search(r"\b[Tt]uple\b", text) and not re.search(r"\b([Ll]ist|Dict|dict)\b", text)
        )
        if isinstance(parameter.default, tuple) or (is_tuple and list not in options):
            yield name


def contains_list(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(contains_list, value.values()))
    return isinstance(value, list)


def call_factory(factory: EnvFactory, name: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    if not callable(factory):
        raise ConfigurationError(
            f"env.id={name} is not an id, a class, a function that makes an environment or a gymnasium.vector "
            "environment; pass a function that returns it"
        )
    limit = kwargs.get("max_episode_steps")
    if limit is not None and not accepts(factory, "max_episode_steps"):  # as `gymnasium.make` does
        kwargs = {key: value for key, value in kwargs.items() if key != "max_episode_steps"}
        return TimeLimit(call_factory(factory, name, kwargs), limit)
    check_arguments(factory, name, kwargs)
    try:
        env = factory(**kwargs)
    except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
        raise construction_failure(f"environment {name} cannot be made", error, tuple_hint(error, kwargs)) from None
    if not isinstance(env, gymnasium.Env):
        is_vector = isinstance(env, gymnasium.vector.VectorEnv)
        hint = "set env.vectorization=native" if is_vector else "return an environment"
        raise EnvironmentFailure(f"{name} returned {type(env).__name__}, not a gymnasium.Env; {hint}")
    return env


def check_arguments(factory: EnvFactory, name: str, kwargs: dict[str, Any]) -> None:
    """Raise a ConfigurationError if a class or function does not accept the arguments, or needs others."""
    try:
        inspect.signature(factory).bind(**kwargs)
    except TypeError as error:
        raise argument_error(name, error) from error
    except ValueError:  # written in C
        return


def construction_failure(message: str, error: BaseException, hint: str = "") -> TorchPPOError:
    """Return the error for an exception of a constructor.

    It is a ConfigurationError without a traceback if an installed package has refused a value.
    """
    if isinstance(error, TypeError | ValueError | AssertionError) and is_raised_by_package(error):
        return ConfigurationError(f"{message}: {type(error).__name__}: {error}{hint}")
    return environment_failure(message, error, hint)


def accepts(factory: EnvFactory, name: str) -> bool:
    """Return whether a class or function has a parameter."""
    try:
        inspect.signature(factory).bind_partial(**{name: None})
    except TypeError:
        return False
    except ValueError:  # written in C
        return True
    return True


def tuple_hint(error: BaseException, kwargs: dict[str, Any]) -> str:
    """Return how to write a tuple if a list in the arguments may have caused the error, or an empty string."""
    mentions_list = isinstance(error, TypeError | AssertionError) or "tuple" in str(error) or "list" in str(error)
    return TUPLE_HINT if mentions_list and contains_list(kwargs) else ""
