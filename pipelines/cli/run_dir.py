"""Names and creates the directories of runs."""

from __future__ import annotations

import errno
import json
import os
import re
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from omegaconf import DictConfig

from ...errors import ConfigurationError
from .keys.checks import shown

SWEPT = "TORCHPPO_SWEPT"
"""Environment variable that contains the swept overrides of a run as a JSON list."""


def default_run_dir(cfg: DictConfig, choices: DictConfig, *, has_env_id: bool) -> str:
    """Return `runs/<experiment or environment>/<date>-<time>-s<seed>`. In a sweep, append the swept values."""
    env = file_name(str(cfg.env.id)) if has_env_id else choices.env
    swept = [word.lstrip("+") for word in json.loads(os.environ.get(SWEPT, "[]")) if not word.startswith("seed=")]
    name = "-".join(
        [
            f"{datetime.now():%Y%m%d-%H%M%S}-s{str(cfg.seed).removesuffix('.0')}",
            *(file_name(word)[:50] for word in swept),
        ]
    )
    return str(Path("runs") / (choices.get("experiment") or env) / name[:200])


def file_name(text: str) -> str:
    """Replace characters that need quotes in a path on the command line."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")


def create_unique(run_dir: str) -> str:
    """Create a folder and return its path. If it exists, append a number."""
    for number in count(1):
        path = Path(run_dir if number == 1 else f"{run_dir}-{number}")
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return str(path)
    raise AssertionError


def create(run_dir: str) -> None:
    """Create a folder that may exist.

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


def is_first_rank() -> bool:
    """Return whether this process is rank 0, from the variables that Lightning, torchrun and SLURM set."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def quote_path(word: str) -> str:
    """Quote the value of `run_dir=`, so that a path may contain any characters."""
    key, _, path = word.partition("=")
    is_plain = re.fullmatch(r"[\w./${}:+~@%-]*|(['\"]).*\1|.*\\.*", path, re.ASCII)
    return word if key.lstrip("+") != "run_dir" or is_plain else f"{key}={quoted(path)}"


def quoted(text: str) -> str:
    """Quote a text for Hydra's grammar, in which a backslash is special only before a quotation mark."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"
