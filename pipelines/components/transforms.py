"""Adds the TorchRL transforms of a configuration to an environment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig
from tensordict import NestedKey, unravel_key
from torchrl.envs import Compose, EnvBase, Transform, TransformedEnv, VecNorm, VecNormV2

from ...envs import VectorEnv, check_transforms
from ...envs.failures import is_raised_by_package
from ...errors import ConfigurationError


def check_kinds(transforms: Sequence[Any], wrappers: Iterable[Any]) -> None:
    """Raise a ConfigurationError for a transform that cannot be used, or for a transform among the wrappers.

    Args:
        transforms: what the entries of `transforms` have built.
        wrappers: entries of `env.wrappers`, whose targets exist.

    """
    for place, transform in enumerate(transforms):
        if isinstance(transform, VecNorm | VecNormV2):
            raise ConfigurationError(
                f"transforms[{place}]={type(transform).__name__} keeps statistics that evaluations and checkpoints "
                "do not receive; use policy.normalize_observation=true or reward=normalized"
            )
        if isinstance(transform, partial) and isinstance(transform.func, type):
            raise ConfigurationError(
                f"transforms[{place}]={transform.func.__name__} has _partial_; remove it from a TorchRL transform, and "
                "write a Gymnasium wrapper in env.wrappers"
            )
    for place, node in enumerate(wrappers):
        target = get_object(node._target_) if isinstance(node, DictConfig) else type(node)
        if isinstance(target, type) and issubclass(target, Transform):
            raise ConfigurationError(
                f"env.wrappers[{place}]={target.__name__} is a TorchRL transform; write it in transforms"
            )


def with_transforms(env: EnvBase, transforms: Sequence[Any]) -> EnvBase:
    """Return the environment with transforms.

    Raises:
        ConfigurationError: if a transform does not fit the environment, reads an entry that does not exist, or has no
            statistics.

    """
    if isinstance(env, VectorEnv):
        env.list_all_info_keys()
    existing = entries_of(env)
    try:
        env = TransformedEnv(env, Compose(*transforms), auto_unwrap=True)
        check_transforms(env)
        existing |= entries_of(env)
    except ConfigurationError:
        raise
    except Exception as error:
        if not is_raised_by_package(error):
            raise
        names = ", ".join(type(transform).__name__ for transform in transforms)
        raise ConfigurationError(
            f"transforms=[{names}] do not fit the environment: {type(error).__name__}: {error}; change their keys"
        ) from error
    for place, transform in enumerate(transforms):
        for key in getattr(transform, "in_keys", None) or ():
            if unravel_key(key) not in existing:
                names = ", ".join(sorted(map(str, entries_of(env))))
                raise ConfigurationError(
                    f"transforms[{place}]={type(transform).__name__} reads {key!r}, which the environment does not "
                    f"have; set its in_keys to one of {names}"
                )
        existing |= {unravel_key(key) for key in getattr(transform, "out_keys", None) or ()}
    return env


def entries_of(env: EnvBase) -> set[NestedKey]:
    """Return the keys of everything that an environment reads or writes, also those of nested entries."""
    specs = [spec for composite in (env.input_spec, env.output_spec) for spec in composite.values()]
    return {unravel_key(key) for spec in specs if spec is not None for key in spec.keys(include_nested=True)}
