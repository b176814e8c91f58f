"""Composes the configuration with Hydra and reports every mistake in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ...errors import ConfigurationError, did_you_mean
from .config_checks import check_deleted_keys, check_user_files

CONF = Path(__file__).parents[2] / "conf"

Options = dict[str, dict[str, str]]
"""The choices of every group with their descriptions."""


TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    DictConfig: "a group of keys",
    ListConfig: "a list, such as [a,b]",
}
ALLOW_AUTO = ("env.num_workers", "trainer.devices")
"""Whole numbers that may also be `auto`."""
ALLOW_PAIR = ("objective.clip_epsilon",)
"""Numbers that may also be a pair."""
ALLOW_NULL = ("eval.every_frames", "eval.stop_at", "update.sequence_length")
"""Numbers that may also be null."""


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """Compose the configuration of one run and choose its `run_dir`.

    Args:
        overrides: Hydra's overrides, such as `policy=mlp` or `optimizer.lr=1e-3`.
        config_dir: a folder with more groups, which are added to the built-in ones.

    Raises:
        ConfigurationError: if an override is wrong; the message names it and the most similar valid name.

    """
    parsed = parse(overrides)
    search = [f"hydra.searchpath=[{quoted(f'file://{config_dir.resolve()}')}]"] if config_dir else []
    options = options_by_group(config_dir)
    groups = [override for override in parsed if is_group(override.key_or_group, options)]
    keys = [override for override in parsed if override not in groups]
    built_in = compose_with_hydra([])
    choices = built_in.hydra.runtime.choices
    check_choices([one for one in groups if not isinstance(one.value(), str | list | Sweep)], options, choices)
    chosen_groups = [*(str(override.input_line) for override in groups), *search]
    try:
        default, cfg = compose_with_hydra(chosen_groups), compose_with_hydra([*overrides, *search])
    except ConfigurationError:
        with one_line_errors():  # explain what Hydra has refused
            check_values(parsed)
            check_choices(groups, options, choices)
            check_keys(keys, compose_with_hydra(chosen_groups), [*keys_of(built_in), *options])
        raise
    chosen = cfg.hydra.runtime.choices
    del cfg.hydra, built_in.hydra
    changed = [one.key_or_group for one in keys if not (one.is_delete() or one.key_or_group.startswith("hydra."))]
    with one_line_errors():  # for a ${key} that does not exist
        check_types(cfg, default, changed)
        if config_dir:
            check_types(cfg, built_in, shared_numbers(cfg, built_in))
            check_user_files(cfg, built_in, set(changed))
        if any(override.is_delete() for override in parsed):
            check_deleted_keys(cfg, built_in)
        OmegaConf.to_container(cfg, resolve=True)
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise ConfigurationError(f"{missing[0]} has no value; add {missing[0]}=... to the command")
    if cfg.run_dir is None:
        cfg.run_dir = default_run_dir(cfg, chosen, has_env_id="env.id" in changed)
    cfg.run_dir = str(cfg.run_dir)  # YAML reads a name such as 2026 as a number
    return cfg


def default_run_dir(cfg: DictConfig, choices: DictConfig, *, has_env_id: bool) -> str:
    """Return `runs/<experiment or environment>/<date>-<time>-s<seed>`."""
    env = re.sub(r"[^\w.-]+", "-", str(cfg.env.id)) if has_env_id else choices.env
    return str(Path("runs") / (choices.get("experiment") or env) / f"{datetime.now():%Y%m%d-%H%M%S}-s{cfg.seed}")


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar, in which a backslash is special only before a quotation mark."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"


def compose_with_hydra(overrides: Sequence[str]) -> DictConfig:
    """Compose `conf/train.yaml` with Hydra.

    Raises:
        ConfigurationError: if Hydra fails; the message is Hydra's in one line.

    """
    with one_line_errors(), initialize_config_module("torchppo.conf", version_base="1.3"):
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
        except HydraException:
            named = ""
        if not named:
            raise ConfigurationError(f"{word!r} is not an override; write key=value or group=choice")
    return list(OverridesParser.create().parse_overrides(list(overrides)))


def is_group(key: str, options: Options) -> bool:
    """Return whether `key` (or the first part of `group@package`) is a folder in `conf/` or in the user's folder."""
    return key.split("@", maxsplit=1)[0] in options


def options_by_group(config_dir: Path | None = None) -> Options:
    """Return the choices of every group with the first comment of their files.

    Raises:
        ConfigurationError: if `config_dir` is not a folder.

    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigurationError(f"--config-dir {config_dir} is not a folder")
    groups: Options = {}
    for path in sorted([*CONF.glob("*/*.yaml"), *(config_dir.glob("*/*.yaml") if config_dir else ())]):
        lines = path.read_text().splitlines()
        comments = [line[2:] for line in lines if line.startswith("# ") and "@package" not in line]
        groups.setdefault(path.parent.name, {})[path.stem] = comments[0] if comments else ""
    return groups


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
        if key in known:
            raise ConfigurationError(f"{key} belongs to a component that is not chosen; +{key}=... adds it")
        raise ConfigurationError(f"unknown key {key!r}{did_you_mean(key, known)}; +{key}=... adds a new key")


def check_types(cfg: DictConfig, default: DictConfig, keys: Iterable[str]) -> None:
    """Check that values have the type of their defaults; convert 1e6 to an integer if the default is one.

    Raises:
        ConfigurationError: if a value has another type; the message names the first such key.

    """
    for key in keys:
        before, after = OmegaConf.select(default, key), OmegaConf.select(cfg, key)
        if before is None or type(after) is type(before):
            continue
        is_null = after is None and (key in ALLOW_NULL or type(before) not in (bool, int, float))
        is_pair = isinstance(after, ListConfig) and key in ALLOW_PAIR
        if is_null or is_pair or (after == "auto" and key in ALLOW_AUTO):
            continue
        if type(before) is int and isinstance(after, float) and after.is_integer():
            OmegaConf.update(cfg, key, int(after))
            continue
        wanted = TYPE_NAMES.get(type(before))
        if wanted and not (isinstance(before, float) and type(after) is int):
            raise ConfigurationError(f"{key}={after} is not {wanted} (the default is {before})")


def shared_numbers(cfg: DictConfig, built_in: DictConfig) -> list[str]:
    """Return the keys of numbers and booleans that a component has in both configurations."""

    def target_of(key: str, node: DictConfig) -> Any:
        return OmegaConf.select(node, f"{key.rpartition('.')[0]}._target_".lstrip("."))

    present = set(keys_of(cfg))
    keys = [key for key in keys_of(built_in) if isinstance(OmegaConf.select(built_in, key), bool | int | float)]
    return [key for key in keys if key in present and target_of(key, cfg) == target_of(key, built_in)]


def keys_of(cfg: DictConfig) -> list[str]:
    """Return every dotted key except Hydra's."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key in node:
            yield f"{prefix}{key}"
            value = node._get_node(key)
            if isinstance(value, DictConfig):
                yield from walk(value, f"{prefix}{key}.")

    return [key for key in walk(cfg, "") if key.split(".")[0] != "hydra"]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors of Hydra, OmegaConf and YAML into a ConfigurationError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigurationError(str(error).split("See https", maxsplit=1)[0]) from error
