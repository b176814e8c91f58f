"""Prints advice about the user's own environment at the start of a training, and omits advice that is followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from ...envs.spaces.encoding import EncodeSpaces
from .data import check_action_space, check_observation_scale, check_observations, check_reward_scale


def print_advice(vector: Any, seen: Sequence[Any], cfg: DictConfig) -> None:
    """Print a line for every problem in steps that were taken already; `torchppo check` does more.

    Args:
        vector: a vector environment that has its environments in this process.
        seen: observations of resets, and (observation, reward, terminated, truncated) of steps.
        cfg: the configuration of the training.

    """
    env = vector.envs[0].env if isinstance(vector.envs[0], EncodeSpaces) else vector.envs[0]
    steps = [one for one in seen if isinstance(one, tuple) and len(one) == 4]
    findings = check_observations(env.observation_space, [observation for observation, *_ in steps])
    if not findings:
        findings = check_observation_scale(env.observation_space, [observation for observation, *_ in steps])
    findings += [*check_reward_scale([reward for _, reward, *_ in steps]), *check_action_space(env.action_space)]
    for finding in findings:
        if not is_done(finding.override, cfg):
            print(f"torchppo: {finding}", flush=True)


def is_done(override: str, cfg: DictConfig) -> bool:
    """Return whether the configuration contains an advice already."""
    if override == "reward=normalized":
        return cfg.ppo.reward_normalizer is not None
    if override == "policy.normalize_observation=true":
        return bool(cfg.policy.get("normalize_observation"))
    return override == "env.num_workers=auto" and cfg.env.get("num_workers") != 0
