"""Checks of the configuration whose errors explain a mistake."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from ....errors import ConfigurationError
from .combinations import BUILT_IN_POLICY, DEFAULT_CRITIC, REFUSED, SET
from .fields import Field
from .reference import CONF, TYPE_NAMES, describe
from .schema import FIELDS

Options = dict[str, dict[str, str]]
"""The choices of every group with their descriptions."""
MAX_SHOWN = 100
"""Number of characters of a value in an error message."""


def check_hydra_keys(overrides: Iterable[Override]) -> None:
    """Raise a ConfigurationError for an option of Hydra, which has an effect only in a sweep of Hydra's launchers."""
    for override in overrides:
        key, word = override.key_or_group, override.input_line
        if re.match(r"hydra[./]", key):
            ours = {"hydra.run.dir": "write run_dir=...", "hydra.searchpath": "write --config-dir ..."}
            instead = ours.get(key, f"remove {key}")
            needs = "-m" if re.match(r"hydra[./](launcher|sweeper)", key) else "hydra/launcher=... and -m"
            raise ConfigurationError(f"{word} has no effect without {needs}; {instead}")


def is_group(key: str, options: Options) -> bool:
    """Return whether `key` (or the first part of `group@package`) is a folder in `conf/` or in the user's folder."""
    return key.split("@", maxsplit=1)[0] in options


def options_by_group(config_dir: Path | None = None) -> Options:
    """Return the choices of every group with the first comment of their files.

    Raises:
        ConfigurationError: if `config_dir` is not a folder, or a file is not UTF-8.

    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigurationError(f"--config-dir {config_dir} is not a folder")
    groups: Options = {}
    for path in sorted([*CONF.glob("*/*.yaml"), *(config_dir.glob("*/*.yaml") if config_dir else ())]):
        try:
            lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path} is not UTF-8 text ({error.reason}); save it as UTF-8") from error
        comments = [line[2:] for line in lines if line.startswith("# ") and "@package" not in line]
        groups.setdefault(path.parent.name, {})[path.stem] = comments[0] if comments else ""
    return groups


def is_choice(override: Override, options: Options) -> bool:
    """Return whether the value of a group is the name of one of its choices."""
    value = override.value()
    return isinstance(value, str) and value in options[override.key_or_group.split("@", maxsplit=1)[0]]


def values_of(node: Any, prefix: str = "", target: str | None = None) -> Iterator[tuple[str, Any, str | None]]:
    """Yield every key with its value and the `_target_` of its component, or `None` for keys outside components."""
    target = node.get("_target_", target)
    for name, value in node.items():
        key = f"{prefix}{name}"
        if str(name).startswith("_"):
            continue
        yield key, value, target
        if isinstance(value, dict):
            is_open = key in FIELDS and key not in ("intrinsic", "logger") and not FIELDS[key].is_component
            yield from values_of(value, f"{key}.", target or (key if is_open else None))


def fits(value: Any, field: Field) -> bool:
    """Return whether a key accepts a value."""
    if value is None:
        return field.nullable
    if any(type(value) is type(choice) and value == choice for choice in field.choices):
        return True
    if isinstance(value, bool):
        return bool in field.types
    if isinstance(value, int | float):
        is_type = float in field.types or (isinstance(value, int) and int in field.types)
        is_above = (field.minimum is None or value >= field.minimum) and (field.above is None or value > field.above)
        is_below = (field.maximum is None or value <= field.maximum) and (field.below is None or value < field.below)
        is_finite = math.isfinite(value) or (field.infinite and not math.isnan(value))
        is_text = str in field.types and not is_type and fits(str(value), field)  # YAML reads the name 2026 as a number
        return is_text or (is_type and is_above and is_below and is_finite)
    if isinstance(value, dict) and field.is_component:
        return "_target_" in value or not (value or field.nullable)
    if isinstance(value, list) and field.items:
        return list in field.types and (bool(value) or not field.is_filled) and all(fits(i, field.items) for i in value)
    if isinstance(value, str) and field.pattern:
        return str in field.types and re.fullmatch(field.pattern[0], value) is not None
    return isinstance(value, field.types)


def wrong_value(key: str, value: Any, field: Field, default: Any) -> ConfigurationError:
    """Return the error for a value that a key does not accept."""
    if isinstance(value, dict) and field.is_component:
        return ConfigurationError(f"{key}={shown(value)} has no _target_; choose a component, or remove its keys")
    instead = default_text(default)
    if field.is_component and isinstance(value, str) and "." in value:
        instead = f"; write {key}._target_={value}"
    elif field.is_component and key.startswith("controller."):
        instead = f"; write controller@{key}={shown(value)}"
    return ConfigurationError(f"{key}={shown(value)} must be {describe(field)}{instead}")


def shown(value: Any) -> str:
    """Return a value as it is written on the command line, and only the beginning of a long one."""
    if isinstance(value, dict):
        text = "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ",".join(map(shown, value)) + "]"
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    else:
        text = str(value) or "''"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def default_text(default: Any) -> str:
    """Return ` (the default is ...)`, or an empty string if there is no default or it is a group of keys."""
    return "" if default is None or isinstance(default, DictConfig) else f" (the default is {shown(default)})"


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


def check_empty_groups(overrides: Iterable[Override], cfg: DictConfig) -> None:
    """Raise a ConfigurationError for `key={}`, which Hydra merges with the keys that the group has."""
    for key in [override.key_or_group for override in overrides if override.value() == {}]:
        if OmegaConf.select(cfg, key):
            raise ConfigurationError(f"{key}={{}} changes nothing; write {key}.name=..., or ~{key}.name to remove one")


def check_user_files(cfg: DictConfig, overridden: Collection[str]) -> None:
    """Raise a ConfigurationError if an experiment in a user's file has no effect, or a policy ignores the critic."""
    if "experiment" in cfg and not any(key.split(".")[0] == "experiment" for key in overridden):
        raise ConfigurationError("the file in experiment/ changes nothing; begin it with '# @package _global_'")
    policy, head = OmegaConf.select(cfg, "policy._target_"), OmegaConf.select(cfg, "critic.head._target_")
    if policy == BUILT_IN_POLICY and "critic" not in cfg.policy and head not in (None, DEFAULT_CRITIC):
        raise ConfigurationError(
            f"critic.head._target_={head} has no effect, because the policy has no key critic; add "
            "'critic: ${critic.head}' to the YAML file of the policy"
        )


def check_effects(cfg: DictConfig, chosen: Collection[str]) -> None:
    """Raise a ConfigurationError if a key of the command line has no effect, or components do not work together.

    Args:
        cfg: the configuration.
        chosen: keys of the command line.

    """
    epochs, target = OmegaConf.select(cfg, "update.epochs"), OmegaConf.select(cfg, "policy._target_")
    is_once = epochs == 1 and OmegaConf.select(cfg, "critic.epochs") in (None, 1)
    has_memory = OmegaConf.select(cfg, "policy.memory") is not None or target != BUILT_IN_POLICY  # may have a memory
    only_once, no_memory = f"update.epochs={epochs}", "memory=none"
    every, total = cfg.eval.every_frames, cfg.total_frames
    is_last = every is None or every >= total  # the only evaluation is the one after the training
    ends = "eval.every_frames=null" if every is None else f"eval.every_frames={every} and total_frames={total}"
    reasons = {
        "eval.stop_at": is_last and ends,
        "collector.double_buffer": not is_atari(cfg.env) and "other environments than Atari games",
        "env.max_restarts": cfg.env.get("on_failure") == "raise" and "env.on_failure=raise",
        "update.sequence_length": not has_memory and no_memory,
        "update.burn_in": (not has_memory and no_memory) or (is_once and only_once),
        "update.recompute_advantage": is_once and only_once,
        "trainer.log_every_n_steps": "torchppo train, which logs every rollout",
        "trainer.use_distributed_sampler": "torchppo train, where each rank collects its own rollouts",
    }
    for message, values in REFUSED:
        found = {key: OmegaConf.select(cfg, key) for key in values}
        if all(found[key] in values[key] or (SET in values[key] and found[key] is not None) for key in values):
            raise ConfigurationError(message)
    num_workers, num_envs = cfg.env.get("num_workers"), cfg.env.get("num_envs")
    if isinstance(num_workers, int) and isinstance(num_envs, int) and num_workers > num_envs:
        raise ConfigurationError(f"env.num_workers={num_workers} must be at most env.num_envs={num_envs}")
    for key in chosen:
        reason, value = reasons.get(key), OmegaConf.select(cfg, key)
        if reason and not is_off(value):
            raise ConfigurationError(f"{key}={value} has no effect with {reason}; remove {key}")


def is_atari(env: DictConfig) -> bool:
    """Return whether the environments may be games of ale-py's vector environment."""
    return "id" not in env or str(env.get("id")).startswith("ALE/")


def may_be_component(key: str, cfg: DictConfig) -> bool:
    """Return whether a key is a `_target_`, or a group or list of keys that may contain one."""
    return key.endswith("_target_") or isinstance(OmegaConf.select(cfg, key), DictConfig | ListConfig)


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
