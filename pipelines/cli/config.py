"""The configuration: composed by Hydra from `conf/`, every mistake told in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ...errors import ConfigurationError, did_you_mean

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    DictConfig: "a group of keys",
    ListConfig: "a list, such as [a,b]",
}
MAY_BE_AUTO = ("env.num_workers", "trainer.devices")
"""Numbers in whose place their part also takes `auto`."""
MAY_BE_NULL = ("eval.every_frames", "eval.stop_at", "update.sequence_length")
"""Numbers of ours, or of experiments, in whose place there may be none."""
CONF = Path(__file__).parents[2] / "conf"

Options = dict[str, dict[str, str]]
"""The choices of every group, with what each is."""


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """The configuration of one run, its `run_dir` chosen.

    Args:
        overrides: Hydra's, such as `policy=mlp` or `optimizer.lr=1e-3`.
        config_dir: a folder of further groups, which add to the built-in ones.

    Raises:
        ConfigurationError: naming the override and the nearest name that exists.

    """
    parsed = parse(overrides)
    search = [f"hydra.searchpath=[{quoted(f'file://{config_dir.resolve()}')}]"] if config_dir else []
    options = options_by_group(config_dir)
    groups = [override for override in parsed if is_group(override.key_or_group, options)]
    for override in groups:
        if not override.is_delete() and not isinstance(override.value(), str | list | Sweep):
            raise ConfigurationError(unknown_choice(override.key_or_group, override.value(), options))
    choices = [str(override.input_line) for override in groups]
    with one_line_errors(options):
        default = _compose([*choices, *search])
        cfg = _compose([*overrides, *search])
        given = [override for override in parsed if override not in groups and not override.is_delete()]
        fit_types(cfg, default, [override.key_or_group for override in given])
        if config_dir:
            built_in = _compose([])
            fit_types(cfg, built_in, numbers_in_common(cfg, built_in))
            refuse_misspelt(cfg, built_in, {override.key_or_group for override in given})
    if any(override.is_delete() for override in parsed):
        refuse_missing(cfg, _compose([]))
    chosen = cfg.hydra.runtime.choices
    del cfg.hydra
    with one_line_errors(options):
        OmegaConf.to_container(cfg, resolve=True)  # refuses a ${key} that leads nowhere
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigurationError(f"{missing[0]} has no value; add {missing[0]}=... to the command")
    if cfg.run_dir is None:
        moment = datetime.now().strftime("%Y%m%d-%H%M%S")
        own_id = any(override.key_or_group == "env.id" for override in parsed)
        name = chosen.get("experiment") or (re.sub(r"[^\w.-]+", "-", str(cfg.env.id)) if own_id else chosen.env)
        cfg.run_dir = str(Path("runs") / name / f"{moment}-s{cfg.seed}")
    cfg.run_dir = str(cfg.run_dir)  # a folder called 2026 is no number
    return cfg


def quoted(text: str) -> str:
    """A text as Hydra's grammar takes any: backslashes count only before a quotation mark."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return f"'{escaped}'"


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_module("torchppo.conf", version_base="1.3"):
        cfg = hydra.compose("train", list(overrides), return_hydra_config=True)
    OmegaConf.set_struct(cfg, False)
    return cfg


def parse(overrides: Sequence[str]) -> list[Override]:
    """Hydra's overrides, understood.

    Raises:
        ConfigurationError: for a word that is none.

    """
    for word in overrides:
        try:
            named = OverridesParser.create().parse_override(word).key_or_group
        except HydraException:
            named = ""
        if not named:
            raise ConfigurationError(f"{word!r} is not an override; write key=value or group=choice")
    return list(OverridesParser.create().parse_overrides(list(overrides)))


def combinations(overrides: Sequence[str], config_dir: Path | None = None) -> list[list[str]]:
    """One list of overrides for every combination of swept values; of one key, the last word counts.

    Raises:
        ConfigurationError: for what cannot be swept over.

    """
    values: dict[str, list[str]] = {}
    options = options_by_group(config_dir)
    for override in parse(overrides):
        key, swept = override.get_key_element(), override.value()
        if isinstance(swept, Glob):
            group = override.key_or_group.split("@", maxsplit=1)[0]
            values[key] = [f"{key}={name}" for name in swept.filter([*options.get(group, {})])]
        elif override.is_sweep_override():
            with one_line_errors(options):
                values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            values[key] = [str(override.input_line)]
    return [list(combination) for combination in product(*values.values())]


def is_group(key: str, options: Options) -> bool:
    """Whether `key` (possibly `group@package`) names a folder of `conf/`, or one that only the user has."""
    return key.split("@", maxsplit=1)[0] in options


def options_by_group(config_dir: Path | None = None) -> Options:
    """The choices of every group, built in and the user's, with the first comment of their file.

    Raises:
        ConfigurationError: if the user's folder is none.

    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigurationError(f"--config-dir {config_dir} is not a folder")
    groups: Options = {}
    for path in sorted([*CONF.glob("*/*.yaml"), *(config_dir.glob("*/*.yaml") if config_dir else ())]):
        comments = [
            line[2:] for line in path.read_text().splitlines() if line.startswith("# ") and "@package" not in line
        ]
        groups.setdefault(path.parent.name, {})[path.stem] = comments[0] if comments else ""
    return groups


def numbers_in_common(cfg: DictConfig, built_in: DictConfig) -> list[str]:
    """The keys of numbers and truth values that the same part has in the built-in configuration."""

    def target_of(key: str, of: DictConfig) -> Any:
        return OmegaConf.select(of, f"{key.rpartition('.')[0]}._target_".lstrip("."))

    present = set(keys_of(cfg))
    keys = [key for key in keys_of(built_in) if isinstance(OmegaConf.select(built_in, key), bool | int | float)]
    return [key for key in keys if key in present and target_of(key, cfg) == target_of(key, built_in)]


def refuse_missing(cfg: DictConfig, built_in: DictConfig) -> None:
    """Raise a ConfigurationError for a deleted key of our own, which no part has a default for."""
    for key in [*built_in, *(f"eval.{name}" for name in built_in.eval)]:
        if OmegaConf.select(cfg, key) is None and OmegaConf.select(built_in, key) is not None:
            raise ConfigurationError(f"~{key}: {key} is needed; leave ~{key} out, or give it another value")


def refuse_misspelt(cfg: DictConfig, built_in: DictConfig, given: set[str]) -> None:
    """Raise a ConfigurationError for what a user's file holds in vain, where it was not `given` on purpose."""
    if "experiment" in cfg and not any(key.split(".")[0] == "experiment" for key in given):
        raise ConfigurationError(
            "a file of experiment/ changes nothing unless it begins with '# @package _global_', which makes its keys "
            "those of the whole"
        )
    for prefix, node, known in (("", cfg, built_in), ("eval.", cfg["eval"], built_in["eval"])):
        for key in map(str, node):
            hint = did_you_mean(key, known, cutoff=0.8)
            if key not in known and f"{prefix}{key}" not in given and hint:
                raise ConfigurationError(f"unknown key '{prefix}{key}'{hint}; it is in a file of --config-dir")


def fit_types(cfg: DictConfig, default: DictConfig, keys: Iterable[str]) -> None:
    """Make 1e6 a whole number where one belongs; refuse what is no number, truth value, list or part where one does."""
    for key in keys:
        before, after = OmegaConf.select(default, key), OmegaConf.select(cfg, key)
        if before is None or type(after) is type(before):
            continue
        if after is None and (key in MAY_BE_NULL or type(before) not in (bool, int, float)):
            continue
        if after == "auto" and key in MAY_BE_AUTO:
            continue
        if type(before) is int and isinstance(after, float) and after.is_integer():
            OmegaConf.update(cfg, key, int(after))  # 1e6
            continue
        wanted = KINDS.get(type(before))
        if wanted and not (isinstance(before, float) and type(after) is int):
            raise ConfigurationError(f"{key}={after} is not {wanted} (the default is {before})")


@contextmanager
def one_line_errors(options: Options) -> Iterator[None]:
    """Turn what Hydra says into one line with the nearest name."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigurationError(explain(str(error), options)) from error


def explain(message: str, options: Options) -> str:
    """One line for one of Hydra's messages."""
    if unknown := re.search(r"Could not override '([^']+)'|Could not delete from config. '([^']+)'", message):
        key, built_in = unknown.group(1) or unknown.group(2), _compose([])
        places = [place for place in built_in.hydra.runtime.choices if place.startswith(f"{key}@")]
        if places:
            return f"{key} has several places; write {'=..., '.join(places)}=..."
        known = [*keys_of(built_in), *options]
        if key in known and unknown.group(2) and OmegaConf.select(built_in, key) is None:
            return f"~{key}: Hydra does not remove what is null"
        if key in known:
            return f"{key}: the parts that are chosen have no such key; +{key}=... adds it"
        return f"unknown key {key!r}{did_you_mean(key, known)}; a key of your own is added with +{key}=..."
    if choice := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", message):
        group, name = choice.groups()
        return unknown_choice(group, name, options)
    if ambiguous := re.search(r"Ambiguous value for argument '([^']+)'", message):
        return f"{ambiguous.group(1)} has several values; add -m for one run each, or write key=[a,b] for a list"
    return message.split("See https", maxsplit=1)[0]


def unknown_choice(group: str, choice: Any, options: Options) -> str:
    """One line for a choice that a group does not have."""
    names = options.get(group.split("@", maxsplit=1)[0], {})
    if choice is None:
        return f"{group}=null: leave it out, or choose one of {', '.join(names)}"
    return f"unknown choice {group}={choice}{did_you_mean(str(choice), names)}; there is {', '.join(names) or 'none'}"


def keys_of(cfg: DictConfig) -> list[str]:
    """Every dotted key but Hydra's own."""

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key in node:
            yield f"{prefix}{key}"
            value = node._get_node(key)
            if isinstance(value, DictConfig):
                yield from walk(value, f"{prefix}{key}.")

    return [key for key in walk(cfg, "") if key.split(".")[0] != "hydra"]
