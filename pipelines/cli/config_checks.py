"""Checks of deleted keys and of a user's own configuration files."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from ...errors import ConfigurationError, did_you_mean


def check_deleted_keys(cfg: DictConfig, built_in: DictConfig) -> None:
    """Raise a ConfigurationError if a deleted key has no default in the code."""
    for key in [*built_in, *(f"eval.{name}" for name in built_in.eval)]:
        if OmegaConf.select(cfg, key) is None and OmegaConf.select(built_in, key) is not None:
            raise ConfigurationError(f"~{key}: {key} is required; remove ~{key}, or give it another value")


def check_user_files(cfg: DictConfig, built_in: DictConfig, overridden: set[str]) -> None:
    """Raise a ConfigurationError for a misspelt key, or an experiment that changes nothing, in a user's file."""
    if "experiment" in cfg and not any(key.split(".")[0] == "experiment" for key in overridden):
        raise ConfigurationError("the file in experiment/ changes nothing; begin it with '# @package _global_'")
    for prefix, node, known in (("", cfg, built_in), ("eval.", cfg["eval"], built_in["eval"])):
        for key in map(str, node):
            hint = did_you_mean(key, known, cutoff=0.8)
            if key not in known and f"{prefix}{key}" not in overridden and hint:
                raise ConfigurationError(f"unknown key {prefix}{key}{hint} in a file of --config-dir")
