"""Hints before a training starts: an experiment for its environment, and settings outside of the usual ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence

from omegaconf import DictConfig

from ..health.ranges import notes
from .keys.reference import CONF


def hints(overrides: Sequence[str], cfg: DictConfig) -> list[str]:
    """Return the hints, one line each, for the overrides of a command line and the composed configuration."""
    line = hint(overrides, str(cfg.env.get("id")))
    return [*([line] if line else []), *(f"torchppo: {note}" for note in notes(cfg, overrides))]


def hint(overrides: Sequence[str], env_id: str) -> str:
    """Return one line that names the experiment with tuned settings for an environment, or an empty string.

    Args:
        overrides: the overrides of the command line.
        env_id: `env.id` of the composed configuration.

    """
    chosen = {word.split("=")[0].lstrip("+") for word in overrides}
    if "experiment" in chosen or not chosen & {"env", "env.id"}:
        return ""
    experiment = tuned_experiment(env_id)
    return f"torchppo: {env_id} trains with default settings; {experiment} has tuned ones" if experiment else ""


def tuned_experiment(env_id: str) -> str:
    """Return the overrides that select the tuned settings of an environment, or an empty string."""
    names = {path.stem for path in CONF.glob("env/*.yaml") if f"\nid: {env_id}\n" in path.read_text()}
    found = []
    for path in CONF.glob("experiment/*.yaml"):
        text = path.read_text()
        env = re.search(r"override /env: (\w+)", text)
        if (env and env[1] in names and "\nenv: {id:" not in text) or f"\nenv: {{id: {env_id}}}" in text:
            found.append((path.stem not in names, len(path.stem), path.stem))
    if found:
        return f"experiment={min(found)[2]}"
    return f"experiment=atari env.id={env_id}" if env_id.startswith("ALE/") else ""
