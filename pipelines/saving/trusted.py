"""The only way from the configuration inside a checkpoint to objects: whoever wrote the file must not choose the code.

A checkpoint may name what torchppo ships or lists, and registered environments. The user must trust everything else.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...errors import CheckpointError
from .known_targets import LISTED_TARGETS, PATH_OF_LOGGER, UNSAFE_KEYS, UNSAFE_KEYS_OF_LOGGERS, shipped

GROUPS = ("env", "policy", "objective", "estimator", "update", "optimizer", "ppo", "critic", "controller", "eval")
"""Parts of a configuration without which nothing can be built."""
MAX_VALUES, MAX_DEPTH = 100_000, 50
IDS = ("id", "env_name")
"""Arguments that contain the id of an environment."""
PATH_NAME = re.compile(r".*(dir|dirpath|path|folder|uri|file|filename)", re.IGNORECASE)
PATH = re.compile(r"[/~\\].*|file:.*|sqlite:.*|.*://.*|[A-Za-z]:[/\\].*|(.*[/\\])?\.\.([/\\].*)?", re.DOTALL)
CODE = re.compile(r"[^\W\d][\w.]*:(?!\d)\S*|[^\W\d]\w*(\.[^\W\d]\w*)+")
"""`module:name` (but not `cuda:0`) or `package.name`."""
BROAD = {"gymnasium", "hydra", "lightning", "numpy", "omegaconf", "tensordict", "torch", "torchppo", "torchrl"}
"""Packages of which a user should trust single names, as of the standard library."""


class Refusal(NamedTuple):
    """A value that needs the trust of the user, and the package or name to trust."""

    text: str
    trust: str


def trusted_config(path: Path | str, config: Any, trust: Iterable[str] = ()) -> DictConfig:
    """Return the configuration of a checkpoint, after checking that it names no other code than allowed.

    Nothing is imported before the check. The folders of the modules that the user trusts are added to `sys.path`.

    Args:
        path: path of the checkpoint, for messages.
        config: the configuration as plain data.
        trust: packages, modules or dotted names that it may name too.

    Raises:
        CheckpointError: if it names other code, writes outside of its run directory, or is not a configuration.

    """
    names = tuple([trust] if isinstance(trust, str) else trust)
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in GROUPS):
        raise CheckpointError(f"{path} has no complete configuration; use a file that torchppo train has written")
    found = list(dict.fromkeys(_Check(str(path), config, names).refusals()))
    if found:
        flags = list(dict.fromkeys(one.trust for one in found))
        texts = [one.text for one in found[:4]] + ([f"{len(found) - 4} others"] if found[4:] else [])
        raise CheckpointError(
            f"{path} names code or files that are not part of torchppo: {', '.join(texts)}; if you trust them, add "
            f"{' '.join(f'--trust {shlex.quote(flag)}' for flag in flags)} (in Python trust={flags})"
        )
    try:
        cfg = OmegaConf.create(config)
    except OmegaConfBaseException as error:
        raise CheckpointError(f"{path} has a wrong configuration ({error}); use a file of torchppo train") from error
    add_code_folders(config.get("code_dirs"), names)
    return cfg


def add_code_folders(code_dirs: Any, trust: Iterable[str]) -> None:
    """Let the packages that the user trusts be found in the working directory, or else where the training found them.

    Other folders of the configuration are not added: they might contain modules with the names of missing packages.
    """
    folders = [str(Path.cwd()), *(one for one in code_dirs or () if isinstance(one, str) and Path(one).is_absolute())]
    for name in trust:
        package = name.split(".")[0]
        if not is_importable(package):
            sys.path += [one for one in folders if PathFinder.find_spec(package, [one])][:1]


def is_importable(package: str, folders: Iterable[str] = ()) -> bool:
    """Return whether a top-level package can be found, without importing it."""
    try:
        return (find_spec(package) or PathFinder.find_spec(package, list(folders))) is not None
    except (ImportError, ValueError):  # `__main__` has no specification
        return package in sys.modules


def is_inside(text: str, run_dir: str) -> bool:
    """Return whether a path or a `file:` URI is a run directory or in it."""
    rest = text.removeprefix("file:").removeprefix(run_dir)
    is_below = text.removeprefix("file:").startswith(run_dir) and rest[:1] in ("", "/")
    return bool(run_dir) and is_below and ".." not in rest.split("/")


def printable(text: str) -> str:
    """Return a text of a checkpoint without control characters."""
    return "".join(one if one.isprintable() else "?" for one in text[:100])


class _Check:
    """Finds what in a configuration needs the trust of the user."""

    def __init__(self, path: str, config: dict[str, Any], trust: tuple[str, ...]) -> None:
        self._path, self._config, self._trust = path, config, trust
        self._run_dir = str(config.get("run_dir") or "")
        self._num_values = 0
        code_dirs = config.get("code_dirs")
        self._folders = [str(Path.cwd()), *map(str, code_dirs if isinstance(code_dirs, list) else ())]

    def refusals(self) -> Iterator[Refusal]:
        for name, value in self._config.items():
            self._require_plain(name, "")
            yield from self._walk(value, str(name), "", None, 0)
        if (changes := self._config["eval"].get("env")) and isinstance(changes, dict):
            known = {one.text for one in self._walk(self._config["env"], "eval.env", "", None, 1)}
            found = self._walk({**self._config["env"], **changes}, "eval.env", "", None, 1)
            yield from (one for one in found if one.text not in known)

    def _walk(self, value: Any, key: str, name: str, target: str | None, depth: int) -> Iterator[Refusal]:
        """Yield the refusals of a value.

        Args:
            value: the value.
            key: its dotted key.
            name: the last part of its key that is a name.
            target: what is called with it; `None` if nothing is, or if the user trusts it.
            depth: the number of containers around it.

        """
        self._require_plain(value, key, depth)
        if isinstance(value, dict):
            if isinstance(named := value.get("_target_"), str):
                yield from self._target(named, value, key)
                target = None if self._trusts(named) else named
            for child_name, child in value.items():
                self._require_plain(child_name, key)
                child_key = f"{key}.{child_name}"
                if target is not None and child_name in UNSAFE_KEYS and child is not None:
                    yield self._refusal(child_key, child, target)
                yield from self._text(str(child_name), child_key, "", target)
                yield from self._walk(child, child_key, str(child_name), target, depth + 1)
        elif isinstance(value, list | tuple):
            for index, child in enumerate(value):
                yield from self._walk(child, f"{key}.{index}", name, target, depth + 1)
        elif isinstance(value, str):
            yield from self._text(value, key, name, target)

    def _require_plain(self, value: Any, key: str, depth: int = 0) -> None:
        """Raise a CheckpointError for an interpolation, a value that is not plain, and endless structures."""
        self._num_values += 1
        if self._num_values > MAX_VALUES or depth > MAX_DEPTH:
            raise CheckpointError(f"{self._path} has an endless configuration; use a file of torchppo train")
        if not isinstance(value, str | int | float | dict | list | tuple | None):
            kind = type(value).__name__
            raise CheckpointError(f"{self._path}: {printable(key)} is a {kind}; use a file of torchppo train")
        if isinstance(value, str) and ("${" in value or value == "???"):
            raise CheckpointError(
                f"{self._path}: {printable(key)}={printable(value)} has no fixed value, and interpolations of a "
                "checkpoint are not resolved; use a file of torchppo train"
            )

    def _target(self, target: str, node: Mapping[Any, Any], key: str) -> Iterator[Refusal]:
        if self._trusts(target):
            return
        if target not in shipped().targets | LISTED_TARGETS:
            yield self._refusal(f"{key}._target_", target, package_of(target))
        elif place := PATH_OF_LOGGER.get(target):
            is_placed = isinstance(node.get(place), str) and is_inside(node[place], self._run_dir)
            if not is_placed or node.get("_args_"):
                yield self._refusal(f"{key}.{place}", node.get(place), target)
            for name in UNSAFE_KEYS_OF_LOGGERS & node.keys():
                yield self._refusal(f"{key}.{name}", node[name], target)

    def _text(self, text: str, key: str, name: str, target: str | None) -> Iterator[Refusal]:
        """Yield the refusals of a text: the id of an environment, a path, or the name of code."""
        if name == "_target_" or not (target or name in IDS):
            return
        if name in IDS and not (target or "").startswith("lightning."):
            if not self._allows_id(text):
                yield self._refusal(key, text, package_of(text))
        elif PATH_NAME.fullmatch(name) or PATH.fullmatch(text):
            if not is_inside(text, self._run_dir):
                yield self._refusal(key, text, str(target))
        elif CODE.fullmatch(text) and target not in PATH_OF_LOGGER and text not in shipped().texts:
            is_known = text in LISTED_TARGETS or text in gymnasium.registry or self._trusts(text)
            if not is_known and is_importable(re.split(r"[.:]", text)[0], self._folders):
                yield self._refusal(key, text, package_of(text))

    def _allows_id(self, text: str) -> bool:
        """Return whether the id of an environment imports nothing, or only what is shipped or trusted."""
        if ":" not in text and ("." not in text or text in gymnasium.registry):
            return True
        module, _, id_in_module = text.partition(":")
        is_shipped = module in shipped().modules and re.fullmatch(r"[\w/-]+-v\d+", id_in_module)
        package = module.split(".")[0]
        is_installed = package == "torchppo" or PathFinder.find_spec(package, [str(Path.cwd())]) is None
        return bool(is_shipped and is_installed) or self._trusts(text)

    def _trusts(self, text: str) -> bool:
        return any(text == one or text.startswith((f"{one}.", f"{one}:")) for one in self._trust if one)

    def _refusal(self, key: str, value: Any, trust: str) -> Refusal:
        return Refusal(printable(f"{key}={value}"), printable(trust))


def package_of(text: str) -> str:
    """Return what a user must trust to allow a name: its package, or the name itself if the package does much else."""
    package = re.split(r"[.:]", text)[0]
    is_broad = package in BROAD or package in sys.stdlib_module_names
    return text.partition(":")[0] if is_broad else package
