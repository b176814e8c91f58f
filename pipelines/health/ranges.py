"""Usual ranges of settings, and notes on overrides outside of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf


class Range(NamedTuple):
    """The usual range of a setting, and the effects of values below and above it."""

    low: float
    high: float
    below: str
    above: str


RANGES = {
    "objective.clip_epsilon": Range(0.1, 0.3, "the policy changes slowly", "updates are unstable"),
    "optimizer.lr": Range(1e-4, 3e-4, "learning is slow", "updates are unstable"),
    "update.epochs": Range(3, 10, "few updates are made with each rollout", "the policy overfits to each rollout"),
    "update.minibatch_size": Range(32, 256, "gradients are noisy", "each epoch has few optimizer steps"),
    "objective.critic_coeff": Range(0.5, 1.0, "the critic learns slowly", "the critic dominates the gradient"),
    "objective.entropy_coeff": Range(0.0, 0.01, "the policy explores little", "the policy stays random"),
    "estimator.lmbda": Range(0.9, 0.99, "advantages are biased", "advantages have a high variance"),
    "estimator.gamma": Range(0.9, 0.999, "only the next few rewards count", "returns have a high variance"),
    "ppo.max_grad_norm": Range(0.3, 10.0, "learning is slow", "gradients may explode"),
}
"""Usual ranges by key, from the section "Critical hyperparameters" of the specification (see docs/configuration.md).
The range of `ppo.max_grad_norm` is ours; the specification uses 0.5."""
WITHOUT_RATIO = ("A2CLoss", "ReinforceLoss")
"""Objectives without a probability ratio. Only the first epoch of a rollout follows the policy gradient."""
OF_CRITIC = ("optimizer.lr", "update.epochs", "update.minibatch_size")
"""Keys that apply only to the critic with a natural gradient."""


def notes(cfg: DictConfig, overrides: Iterable[str]) -> list[str]:
    """Return a line for every overridden key with an unusual value, and for several epochs without a ratio."""
    keys = [word.lstrip("+").partition("=")[0] for word in overrides]
    noted = [key for key in keys if key in RANGES and not is_excepted(cfg, key)]
    lines = [note(key, OmegaConf.select(cfg, key), RANGES[key]) for key in noted]
    if "ppo.normalize_advantage" in keys and cfg.ppo.normalize_advantage is None:
        lines.append("ppo.normalize_advantage=null; advantages are usually normalized, or updates are unstable")
    name, epochs = class_name(cfg, "objective"), OmegaConf.select(cfg, "update.epochs")
    if {"objective", "update.epochs"} & {*keys} and name in WITHOUT_RATIO and isinstance(epochs, int) and epochs > 1:
        reason = f"{name} has no probability ratio, so only the first epoch follows the policy gradient"
        lines.append(f"update.epochs={epochs}; {reason}; use update.epochs=1")
    return [line for line in lines if line]


def class_name(cfg: DictConfig, group: str) -> str:
    """Return the name of the class of a component."""
    return str(OmegaConf.select(cfg, f"{group}._target_")).rpartition(".")[2]


def is_excepted(cfg: DictConfig, key: str) -> bool:
    """Return whether the range of a key does not apply to this configuration."""
    classes = {class_name(cfg, group) for group in ("objective", "update")}
    if "NaturalGradientUpdate" in classes and key in OF_CRITIC:
        return True
    if key == "update.epochs":
        return bool(classes & {*WITHOUT_RATIO} or (OmegaConf.select(cfg, key) == 1 and "PhasicUpdate" in classes))
    return key == "update.minibatch_size" and has_four_minibatches(cfg)


def has_four_minibatches(cfg: DictConfig) -> bool:
    """Return whether a rollout is large enough for four minibatches of more than the usual size."""
    keys = ("env.num_envs", "collector.frames_per_env", "update.minibatch_size")
    num_envs, frames, size = (OmegaConf.select(cfg, key) for key in keys)
    if not all(isinstance(number, int) for number in (num_envs, frames, size)):
        return False
    return bool(RANGES["update.minibatch_size"].high < size <= num_envs * frames / 4)


def note(key: str, value: Any, usual: Range) -> str:
    """Return a line about a value outside of its range, or an empty string."""
    if not isinstance(value, int | float) or math.isnan(value) or usual.low <= value <= usual.high:
        return ""
    effect = usual.below if value < usual.low else usual.above
    return f"{key}={value:g} is outside of the usual {usual.low:g} to {usual.high:g}; {effect}"
