"""Composes the configuration with Hydra and reports every mistake in one line."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import hydra
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ...errors import ConfigurationError
from .keys.checks import (
    check_deleted_keys,
    check_effects,
    check_empty_groups,
    check_hydra_keys,
    check_types,
    check_user_files,
    fits,
    is_choice,
    is_group,
    keys_of,
    may_be_component,
    options_by_group,
    shown,
    values_of,
    wrong_value,
)
from .keys.environment import CHECKED, check_environment
from .keys.mistakes import check_choices, check_keys, check_unknown_keys, check_values
from .keys.reference import CONF
from .keys.schema import ARGUMENTS, FIELDS
from .run_dir import create_unique, default_run_dir

MakeConfig = Callable[[], DictConfig]
CHANGES = re.compile(r"eval\.(env\..+)|(?:critic|intrinsic\.[^.]+)\.(optimizer\..+)")
"""Keys that replace a key of another component: `critic.optimizer.lr` replaces `optimizer.lr`."""


def compose(overrides: Sequence[str], config_dir: Path | None = None, *, reserve: bool = False) -> DictConfig:
    """Compose the configuration of one run and choose its `run_dir`.

    Args:
        overrides: Hydra's overrides, such as `policy=mlp` or `optimizer.lr=1e-3`.
        config_dir: a folder with more groups, which are added to the built-in ones.
        reserve: whether to create `run_dir`. The default one has a name that no other run uses.

    Raises:
        ConfigurationError: if an override is wrong; the message names it and the most similar valid name.

    """
    parsed = parse(overrides := [quote_path(word) for word in overrides])
    search = [f"hydra.searchpath=[{quoted(f'file://{config_dir.resolve()}')}]"] if config_dir else []
    options = options_by_group(config_dir)
    groups = [override for override in parsed if is_group(override.key_or_group, options)]
    keys = [override for override in parsed if override not in groups]
    check_hydra_keys(keys)
    if unusual := [one for one in groups if not is_choice(one, options)]:
        check_choices(unusual, options, compose_with_hydra([]).hydra.runtime.choices)
    chosen_groups = [*(str(override.input_line) for override in groups), *search]
    try:
        cfg = compose_with_hydra([*overrides, *search])
    except ConfigurationError:
        with one_line_errors():  # explain what Hydra has refused
            check_values(parsed)
            built_in = compose_with_hydra([])
            check_choices(groups, options, built_in.hydra.runtime.choices)
            check_keys(keys, compose_with_hydra(chosen_groups), [*keys_of(built_in), *options])
        raise
    choices = cfg.hydra.runtime.choices
    del cfg.hydra
    changed = [one.key_or_group for one in keys if not one.is_delete()]
    with one_line_errors():  # for a ${key} that does not exist
        check_empty_groups(keys, cfg)
        if any(override.is_delete() for override in parsed):
            check_deleted_keys(cfg, compose_with_hydra([]))
        check_user_files(cfg, set(changed))
        if missing := sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigurationError(f"{missing[0]} has no value; add {missing[0]}=... to the command")
        if is_new := cfg.run_dir is None:
            cfg.run_dir = default_run_dir(cfg, choices, has_env_id="env.id" in changed)
        check_all(cfg, lambda: compose_with_hydra(chosen_groups), changed, set(options) - set(options_by_group()))
    if any(word.lstrip("+").startswith(CHECKED) for word in overrides):
        check_environment(cfg, overrides, str(choices.policy))
    cfg.run_dir = str(cfg.run_dir)  # YAML reads the name 2026 as a number
    if reserve and is_first_rank():
        cfg.run_dir = create_unique(cfg.run_dir) if is_new else create(cfg.run_dir)
    return cfg


def is_first_rank() -> bool:
    """Return whether this process is rank 0, from the variables that Lightning, torchrun and SLURM set."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def check_all(cfg: DictConfig, make_default: MakeConfig, chosen: Sequence[str], own_groups: Collection[str]) -> None:
    """Check all values, and that the `chosen` keys of the command line have an effect."""
    free = check_schema(cfg, make_default, own_groups)
    if keys := [key for key in chosen if key in free]:
        check_types(cfg, make_default(), keys)
    if any(key.startswith("trainer.") for key in chosen) or {"wandb", "mlflow"} & {*cfg.logger}:
        from .keys.trainer import check_trainer

        check_trainer(cfg.trainer, cfg.logger)
    if components := [key for key in chosen if key in free or may_be_component(key, cfg)]:
        from .keys.components import check_components

        check_components(cfg, components, built_in_targets())
    check_effects(cfg, chosen)


def check_schema(cfg: DictConfig, make_default: MakeConfig, own_groups: Collection[str]) -> set[str]:
    """Check the types and ranges of all keys; convert 1e6 to an integer if the key needs one.

    Args:
        cfg: the configuration.
        make_default: composes the configuration without the keys of the command line, for error messages.
        own_groups: groups of the user's folder.

    Returns:
        The keys that are not checked: keys of the user's components, and additional arguments of built-in components.

    Raises:
        ConfigurationError: if a value is wrong or a key is unknown.

    """
    targets, free, unknown = built_in_targets(), set(), []
    for key, value, target in values_of(OmegaConf.to_container(cfg, resolve=True)):
        name = re.sub(r"^controller\.[^.]+", "controller.*", key)
        if changed := CHANGES.match(key):
            name = changed[1] or changed[2]
            target = OmegaConf.select(cfg, f"{name.partition('.')[0]}._target_")  # noqa: PLW2901
        field = FIELDS.get(name) or ARGUMENTS.get(name)
        if key.split(".")[0] in own_groups:
            continue
        if field is None or target not in (None, *targets):
            free.add(key)
            if field is None and target is None and not (isinstance(value, dict) and value):
                if isinstance(OmegaConf.select(make_default(), key), DictConfig):
                    raise ConfigurationError(f"{key}={shown(value)} must be a group of keys; write {key}.name=...")
                unknown.append(key)
            continue
        if field.types == (int,) and isinstance(value, float) and value.is_integer():
            value = int(value)  # noqa: PLW2901
            OmegaConf.update(cfg, key, value)
        if not fits(value, field):
            raise wrong_value(key, value, field, OmegaConf.select(make_default(), key))
    if unknown:
        check_unknown_keys(unknown, cfg, [*FIELDS])
    return free


@cache
def built_in_targets() -> set[str]:
    """Return every `_target_` of `conf/`."""
    return {target for path in CONF.rglob("*.yaml") for target in re.findall(r"_target_: ([\w.]+)", path.read_text())}


def create(run_dir: str) -> str:
    """Create a folder that may exist, and return its path.

    Raises:
        ConfigurationError: if its path cannot be a folder.

    """
    try:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise ConfigurationError(
            f"run_dir={shown(run_dir)} cannot be created ({error.strerror}); choose another"
        ) from error
    return run_dir


def quote_path(word: str) -> str:
    """Quote the value of `run_dir=`, so that a path may contain any characters."""
    key, _, path = word.partition("=")
    is_plain = re.fullmatch(r"[\w./${}:+~@%-]*|(['\"]).*\1|.*\\.*", path, re.ASCII)
    return word if key.lstrip("+") != "run_dir" or is_plain else f"{key}={quoted(path)}"


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar, in which a backslash is special only before a quotation mark."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


HYDRA_LOCK = threading.Lock()
"""Hydra has one global state, and trainings may start in several threads."""


def compose_with_hydra(overrides: Sequence[str]) -> DictConfig:
    """Compose `conf/train.yaml` with Hydra.

    Raises:
        ConfigurationError: if Hydra fails; the message is Hydra's in one line.

    """
    with one_line_errors(ValueError), HYDRA_LOCK, initialize_config_module("torchppo.conf", version_base="1.3"):
        cfg = hydra.compose("train", list(overrides), return_hydra_config=True)
    OmegaConf.set_struct(cfg, False)
    return cfg


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse Hydra's overrides.

    Raises:
        ConfigurationError: if a word is not an override.

    """
    for word in overrides:
        try:
            named = OverridesParser.create().parse_override(word).key_or_group
            problem = "it has no key"
        except HydraException as error:
            named, problem = "", str(error)
        if not named:
            raise ConfigurationError(f"{word!r} is not an override ({problem}); write key=value or group=choice")
    return list(OverridesParser.create().parse_overrides(list(overrides)))


@contextmanager
def one_line_errors(*others: type[Exception]) -> Iterator[None]:
    """Turn errors of Hydra, OmegaConf and YAML, and `others`, into a ConfigurationError."""
    try:
        yield
    except ConfigurationError:
        raise
    except RecursionError as error:
        raise ConfigurationError("a YAML file includes itself or is nested too deeply; correct it") from error
    except (HydraException, OmegaConfBaseException, YAMLError, *others) as error:
        cause = str(error.__cause__ or type(error).__name__)
        text = str(error) or cause  # Hydra's own errors may have no text
        text += f": {cause}" if text.startswith("Error merging override") else ""  # Hydra omits the reason
        raise ConfigurationError(text.split("See https", maxsplit=1)[0]) from error
