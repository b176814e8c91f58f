"""Checks of the configuration whose errors explain a mistake."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from ....errors import ConfigurationError, did_you_mean
from .foreign_names import in_our_words
from .reference import TYPE_NAMES, describe, reference
from .schema import FIELDS, Field

Options = dict[str, dict[str, str]]
"""The choices of every group with their descriptions."""


def check_values(overrides: Iterable[Override]) -> None:
    """Raise a ConfigurationError for a key with several values in a single run."""
    for override in overrides:
        if override.is_sweep_override():
            text, key = override.input_line, override.key_or_group
            raise ConfigurationError(f"{text}: {key} has several values; add -m, or write {key}=[a,b]")


def check_choices(groups: Iterable[Override], options: Options, defaults: DictConfig) -> None:
    """Raise a ConfigurationError for an unknown choice of a group, or a group that is used in several places."""
    for override in groups:
        key, value = override.key_or_group, override.value()
        group = key.split("@", maxsplit=1)[0]
        names = options[group]
        places = [place for place in defaults if str(place).startswith(f"{key}@")]
        if key not in defaults and places and override.package is None:
            raise ConfigurationError(f"{key} is used in several places; write {'=..., '.join(map(str, places))}=...")
        if override.is_delete():
            continue
        if value is None:
            raise ConfigurationError(f"{key}=null is not a choice; use one of {', '.join(names)}")
        for name in value if isinstance(value, list) else [value]:
            if group == "env" and re.search(r"[/:]|-v\d", str(name)):
                raise ConfigurationError(f"env={name} is not a choice; write env.id={name}")
            if str(name) not in names:
                raise ConfigurationError(
                    f"unknown choice {key}={name}{did_you_mean(str(name), names)}; use one of {', '.join(names)}"
                )


def check_keys(overrides: Iterable[Override], cfg: DictConfig, known: list[str]) -> None:
    """Raise a ConfigurationError for a key that the chosen components do not have."""
    existing = set(keys_of(cfg))
    for override in overrides:
        key = override.key_or_group
        if override.is_delete() and key in existing and OmegaConf.select(cfg, key) is None:
            raise ConfigurationError(f"~{key}: {key} is null already; remove ~{key}")
        if override.is_add() or override.is_force_add() or key in existing:
            continue
        if owners := [one.choice for one in reference() if one.key == key and one.choice]:
            raise ConfigurationError(f"{key} belongs to {' or '.join(owners)}; choose it, or add +{key}=...")
        raise unknown_key(key, known, override.value(), cfg)


def check_unknown_keys(keys: Iterable[str], cfg: DictConfig, known: list[str]) -> None:
    """Raise a ConfigurationError for a key outside components that no other key refers to as `${key}`."""
    used = re.findall(r"\$\{(?:[\w.]+:)?\.*([\w.]+)", OmegaConf.to_yaml(cfg))
    for key in keys:
        if not any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in used):
            raise unknown_key(key, known, OmegaConf.select(cfg, key), cfg)


def unknown_key(key: str, known: Collection[str], value: Any, cfg: DictConfig) -> ConfigurationError:
    """Return the error for an unknown key, with the most similar key or our key for the name of another library."""
    groups = [name for name, field in FIELDS.items() if dict in field.types and not field.is_component]
    if any(key.startswith(f"{group}.") for group in groups if group not in ("logger", "intrinsic")):
        return ConfigurationError(f"unknown key {key!r}; +{key}=... adds it")
    is_misspelt = did_you_mean(key, known, cutoff=0.9)
    if not is_misspelt and (ours := in_our_words(key, value, known)):
        return ConfigurationError(f"unknown key {key!r}; write {ours}")
    component = OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else None
    if isinstance(component, DictConfig) and "_target_" in component:
        instead = f"+{key}=... passes it to {component._target_}"
    else:
        instead = "torchppo train --cfg prints all keys"
    return ConfigurationError(f"unknown key {key!r}{did_you_mean(key, known)}; {instead}")


def wrong_value(key: str, value: Any, field: Field, default: Any) -> ConfigurationError:
    """Return the error for a value that a key does not accept."""
    if isinstance(value, dict) and field.is_component:
        return ConfigurationError(f"{key}={value} has no _target_; choose a component, or remove its keys")
    return ConfigurationError(f"{key}={value} must be {describe(field)}{default_text(default)}")


def default_text(default: Any) -> str:
    """Return ` (the default is ...)`, or an empty string if there is no default or it is a group of keys."""
    return "" if default is None or isinstance(default, DictConfig) else f" (the default is {default})"


def check_types(cfg: DictConfig, default: DictConfig, keys: Iterable[str]) -> None:
    """Check that the values of keys without an entry in the schema have the type of their defaults.

    Raises:
        ConfigurationError: if a value has another type; the message names the first such key.

    """
    for key in keys:
        before, after = OmegaConf.select(default, key), OmegaConf.select(cfg, key)
        if before is None or type(after) is type(before):
            continue
        if type(before) is int and isinstance(after, float) and after.is_integer():
            OmegaConf.update(cfg, key, int(after))
            continue
        names = TYPE_NAMES | {DictConfig: TYPE_NAMES[dict], ListConfig: TYPE_NAMES[list]}
        is_null = after is None and type(before) not in (bool, int, float)
        is_number = isinstance(before, float) and type(after) is int
        if not (isinstance(before, str) or is_null or is_number) and type(before) in names:
            raise ConfigurationError(f"{key}={after} is not {names[type(before)]}{default_text(before)}")


def check_deleted_keys(cfg: DictConfig, built_in: DictConfig) -> None:
    """Raise a ConfigurationError if a deleted key has no default in the code."""
    for key in [*(str(name) for name in built_in if name != "hydra"), *(f"eval.{name}" for name in built_in.eval)]:
        if OmegaConf.select(cfg, key) is None and OmegaConf.select(built_in, key) is not None:
            raise ConfigurationError(f"~{key}: {key} is required; remove ~{key}, or give it another value")


def check_user_files(cfg: DictConfig, overridden: Collection[str]) -> None:
    """Raise a ConfigurationError if an experiment in a user's file has no effect."""
    if "experiment" in cfg and not any(key.split(".")[0] == "experiment" for key in overridden):
        raise ConfigurationError("the file in experiment/ changes nothing; begin it with '# @package _global_'")


BUILT_IN_POLICY = "torchppo.modules.actor_critic.make_actor_critic"


def check_effects(cfg: DictConfig, chosen: Collection[str]) -> None:
    """Raise a ConfigurationError if a key of the command line has no effect.

    Args:
        cfg: the configuration.
        chosen: keys of the command line.

    """
    epochs, target = OmegaConf.select(cfg, "update.epochs"), OmegaConf.select(cfg, "policy._target_")
    has_memory = OmegaConf.select(cfg, "policy.memory") is not None or target != BUILT_IN_POLICY  # may have a memory
    only_once, no_memory = f"update.epochs={epochs}", "memory=none"
    every, total = cfg.eval.every_frames, cfg.total_frames
    is_last = every is None or every >= total  # the only evaluation is the one after the training
    ends = "eval.every_frames=null" if every is None else f"eval.every_frames={every} and total_frames={total}"
    reasons = {
        "eval.stop_at": is_last and ends,
        "env.max_restarts": cfg.env.get("on_failure") == "raise" and "env.on_failure=raise",
        "update.sequence_length": not has_memory and no_memory,
        "update.burn_in": (not has_memory and no_memory) or (epochs == 1 and only_once),
        "update.recompute_advantage": epochs == 1 and only_once,
        "trainer.log_every_n_steps": "torchppo train, which logs every rollout",
        "trainer.use_distributed_sampler": "torchppo train, where each rank collects its own rollouts",
    }
    for key in chosen:
        reason, value = reasons.get(key), OmegaConf.select(cfg, key)
        if reason and not is_off(value):
            raise ConfigurationError(f"{key}={value} has no effect with {reason}; remove {key}")


def is_off(value: Any) -> bool:
    """Return whether a value disables an option."""
    return value is None or value is False or value == 0


def keys_of(cfg: DictConfig) -> list[str]:
    """Return every dotted key except Hydra's."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key in node:
            yield f"{prefix}{key}"
            value = node._get_node(key)
            if isinstance(value, DictConfig):
                yield from walk(value, f"{prefix}{key}.")

    return [key for key in walk(cfg, "") if key.split(".")[0] != "hydra"]
