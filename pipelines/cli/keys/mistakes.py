"""Explains keys and choices that do not exist."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from ....errors import ConfigurationError, did_you_mean
from .checks import Options, keys_of, shown
from .foreign_names import in_our_words
from .reference import reference
from .schema import FIELDS


def check_values(overrides: Iterable[Override]) -> None:
    """Raise a ConfigurationError for a key with several values in a single run."""
    for override in overrides:
        if override.is_sweep_override():
            text, key = override.input_line, override.key_or_group
            raise ConfigurationError(f"{text}: {key} has several values; add -m, or write {key}=[a,b]")


def check_choices(groups: Iterable[Override], options: Options, defaults: DictConfig) -> None:
    """Raise a ConfigurationError for an unknown choice of a group, or a group that is used in several places."""
    groups = [*groups]
    check_values(groups)
    for override in groups:
        key, value = override.key_or_group, override.value()
        group = key.split("@", maxsplit=1)[0]
        names = options[group]
        places = [place for place in defaults if str(place).startswith(f"{key}@")]
        if key not in defaults and places and override.package is None:
            raise ConfigurationError(f"{key} is used in several places; write {'=..., '.join(map(str, places))}=...")
        if override.is_delete():
            continue
        written = override.get_key_element()
        if override.is_add() and written.lstrip("+") in defaults:
            raise ConfigurationError(f"{written} already has a choice; write {written.lstrip('+')}=... without +")
        if value is None:
            no_choice = "logger=[] for no logger, or " if group == "logger" else ""
            raise ConfigurationError(f"{key}=null is not a choice; use {no_choice}one of {', '.join(names)}")
        if isinstance(value, list) and key in defaults and not str(defaults[key]).startswith("["):
            several = ",".join(map(str, value))
            raise ConfigurationError(f"{key}={shown(value)} has several choices; write one, or -m {key}={several}")
        for name in value if isinstance(value, list) else [value]:
            if group == "env" and re.search(r"[/:]|-v\d", str(name)):
                raise ConfigurationError(f"env={name} is not a choice; write env.id={name}")
            if str(name) not in names:
                raise ConfigurationError(
                    f"unknown choice {written}={name}{did_you_mean(str(name), names)}; use one of {', '.join(names)}"
                )


def check_keys(overrides: Iterable[Override], cfg: DictConfig, known: list[str]) -> None:
    """Raise a ConfigurationError for a key that the chosen components do not have."""
    existing, overrides = set(keys_of(cfg)), list(overrides)
    overridden = {override.key_or_group for override in overrides}
    for override in overrides:
        key = override.key_or_group
        if override.is_delete() and key in existing and OmegaConf.select(cfg, key) is None:
            raise ConfigurationError(f"~{key}: {key} is null already; remove ~{key}")
        if override.is_add() and key in existing:
            raise ConfigurationError(f"+{key}: {key} exists already; write {key}=... without +")
        if override.is_add() or override.is_force_add() or key in existing:
            continue
        name = re.sub(r"^controller\.[^.]+", "controller.*", key)
        parts = [one for one in reference() if one.choice and one.key in (name, f"policy.{name}")]
        if parts:
            key = key if parts[0].key == name else f"policy.{key}"  # such as memory.width
            place = ".".join(key.split(".")[:2])
            owners = [re.sub("^controller=", f"controller@{place}=", str(one.choice)) for one in parts]
            has_own_target = f"{key.partition('.')[0]}._target_" in overridden
            instead = f"add +{key}=..." if has_own_target else "remove this key"
            raise ConfigurationError(f"{key} belongs to {' or '.join(owners)}; choose it, or {instead}")
        raise unknown_key(key, [*existing, *known], override.value(), cfg)


def check_unknown_keys(keys: Iterable[str], cfg: DictConfig, known: list[str]) -> None:
    """Raise a ConfigurationError for a key outside components that no other key refers to as `${key}`."""
    used = re.findall(r"\$\{(?:[\w.]+:)?\.*([\w.]+)", OmegaConf.to_yaml(cfg))
    for key in keys:
        if not any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in used):
            raise unknown_key(key, known, OmegaConf.select(cfg, key), cfg)


def unknown_key(key: str, known: Collection[str], value: Any, cfg: DictConfig) -> ConfigurationError:
    """Return the error for an unknown key, with the most similar key or our key for the name of another library."""
    groups = [name for name, field in FIELDS.items() if dict in field.types and not field.is_component]
    if any(key.startswith(f"{group}.") for group in groups if group not in ("logger", "intrinsic", "trust_region")):
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
