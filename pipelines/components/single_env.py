"""The configuration of one environment of a batch, for checks, videos and loops of users."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from ...envs.make import BATCH_ARGUMENTS, has_single_env, make_gymnasium_env


def is_single_env(node: DictConfig) -> bool:
    """Return whether `single_env_config` makes one of the environments of a batch."""
    options = node.get("id"), node.get("vectorization", "auto"), node.get("wrappers") or ()
    return str(node._target_).endswith("make_env") and has_single_env(*options)


def single_env_config(node: DictConfig) -> DictConfig:
    """Return the configuration of one Gymnasium environment of a batch that `make_env` makes."""
    unset = {"render_mode"} if node.get("render_mode") is None else set()
    keys = {str(key): node[key] for key in node if key not in BATCH_ARGUMENTS | unset}
    return OmegaConf.create({**keys, "_target_": f"{make_gymnasium_env.__module__}.make_gymnasium_env"})
