"""Checks the components of the command line against the source code of their targets, without importing them."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Collection, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from ....errors import ConfigurationError, did_you_mean
from .checks import shown
from .signatures import UnknownName, argument_names, find, number_names, parameters_of, required_names

HYDRA_KEYS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
MAKE_ENV = "torchppo.envs.make_env"
ENTRIES = re.compile(r"(transforms|trainer\.(callbacks|plugins))\[\d+\]")
"""Places of components whose only arguments are their keys."""
REMAINING = ("lmbda", "vectorized", "value_network")
"""Keys of `estimator=gae` that remain in the configuration if only `estimator._target_` is changed."""


def check_components(cfg: DictConfig, chosen: Collection[str], built_in: Collection[str]) -> None:
    """Raise a ConfigurationError if a component that the command line changes lacks a key, or does not exist.

    Targets whose parameters are unknown are checked when they are built.

    Args:
        cfg: the configuration.
        chosen: keys of the command line.
        built_in: targets of `conf/`, whose constructors pass `**kwargs` to their base classes.

    """
    for key in chosen:
        parent = key.rpartition(".")[0]
        owner = OmegaConf.select(cfg, parent) if parent else None
        found = [*nodes(OmegaConf.select(cfg, key), key)]
        if isinstance(owner, DictConfig) and "_target_" in owner:
            found.append((parent, owner))
        if isinstance(owner, DictConfig) and key.startswith("eval.env."):
            found.append(("eval.env", OmegaConf.create({**cfg.env, **owner})))
        for place, node in found:
            target = node._get_node("_target_")
            target = None if target is None else target._value()
            if not isinstance(target, str) or not target.replace(".", "").isidentifier():
                raise ConfigurationError(
                    f"{place}._target_={shown(target)} is not the dotted path of a class or function; correct it"
                )
            check_component(place, node, target, chosen, is_built_in=target in built_in)


def nodes(value: Any, place: str) -> Iterator[tuple[str, DictConfig]]:
    """Yield the components in a value with their places, such as `transforms[0]`."""
    if isinstance(value, ListConfig):
        for index, item in enumerate(value):
            yield from nodes(item, f"{place}[{index}]")
    if isinstance(value, DictConfig):
        if "_target_" in value:
            yield place, value
        for name in value:
            if not OmegaConf.is_missing(value, name):
                yield from nodes(value[name], f"{place}.{name!s}")


def check_component(place: str, node: DictConfig, target: str, chosen: Collection[str], *, is_built_in: bool) -> None:
    """Raise a ConfigurationError if a target does not exist, or a key of its node is not one of its parameters.

    Keys that are not in `chosen` remain from the choice whose target is replaced. Their message has another way out.
    """
    keys = [str(key) for key in node if key not in HYDRA_KEYS]
    try:
        names = parameters_of(target, follow_kwargs=is_built_in) or imported_parameters(target)
        numbers = number_names(target)
    except UnknownName as error:
        raise ConfigurationError(f"{place}._target_={target} cannot be imported: there is no {error}") from None
    if target == MAKE_ENV:
        entry_point = entry_point_of(node.get("id"), is_native=node.get("vectorization") == "native")
        names = parameters_of(entry_point) if entry_point else None
        target = str(node.get("id"))
        keys = [key for key in keys if key not in make_env_keys()]
    check_call(place, node, target, keys)
    for key in numbers.intersection(keys):
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], str):
            raise ConfigurationError(f"{place}.{key}={shown(node[key])} is not a number; correct or remove it")
    if names is None:
        return
    if "frames_per_batch" in names:
        names = names | {"frames_per_env"}
    for key in keys:
        if key not in names and not (place == "estimator" and key in REMAINING):
            hint = str(did_you_mean(key, names))
            is_left = f"{place}._target_" in chosen and f"{place}.{key}" not in chosen
            instead = f"choose {target} with a YAML file (--config-dir)" if is_left else "correct or remove it"
            raise ConfigurationError(f"{place}.{key} is not an argument of {target}{hint}; {instead}")


def check_call(place: str, node: DictConfig, target: str, keys: Collection[str]) -> None:
    """Raise a ConfigurationError if an entry of `ENTRIES` cannot be called with its keys."""
    if not ENTRIES.fullmatch(place):
        return
    if target.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigurationError(f"{place}._target_={target} is in Python's standard library; use a component")
    if not node.get("_partial_") and (missing := sorted(required_names(target) - {*keys})) and "_args_" not in node:
        raise ConfigurationError(f"{place} lacks {missing[0]}, an argument of {target}; add {place}.{missing[0]}")


def make_env_keys() -> set[str]:
    """Return the keys of `env` that every environment of Gymnasium accepts."""
    found = find(MAKE_ENV)
    assert found is not None
    assert isinstance(found.node, ast.FunctionDef)
    return argument_names(found.node) | {"max_episode_steps"}


def entry_point_of(id: Any, *, is_native: bool = False) -> str | None:  # noqa: A002
    """Return the dotted path of the class of an id that is registered when Gymnasium is imported, or `None`.

    Args:
        id: the id.
        is_native: whether to return the class of vector environments.

    """
    import gymnasium

    spec = gymnasium.registry.get(id) if isinstance(id, str) else None
    if spec is None or spec.additional_wrappers:
        return None
    entry_point = spec.vector_entry_point if is_native else spec.entry_point
    return entry_point.replace(":", ".") if isinstance(entry_point, str) else None


def imported_parameters(target: str) -> set[str] | None:
    """Return the keyword arguments of a function in a module that is imported already, such as `os`, or `None`."""
    module, _, name = target.rpartition(".")
    function = vars(sys.modules[module]).get(name) if module in sys.modules else None
    try:
        parameters = inspect.signature(function).parameters.values() if callable(function) else None
    except (TypeError, ValueError):  # written in C without a signature
        return None
    if parameters is None or any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
