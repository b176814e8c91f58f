"""Names and creates the directories of runs."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from omegaconf import DictConfig

from ...errors import ConfigurationError

SWEPT = "TORCHPPO_SWEPT"
"""Environment variable that contains the swept overrides of a run as a JSON list."""


def default_run_dir(cfg: DictConfig, choices: DictConfig, *, has_env_id: bool) -> str:
    """Return `runs/<experiment or environment>/<date>-<time>-s<seed>`. In a sweep, append the swept values.

    Raises:
        ConfigurationError: if `resume=auto` is set, which needs `run_dir`.

    """
    if cfg.resume.auto is True:
        raise ConfigurationError("resume=auto needs run_dir=..., the folder of the run")
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
