"""From a checkpoint back to a policy: nothing but the file is needed."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torchrl.envs import EnvBase

from ..errors import CheckpointError
from .build import build_evaluation_env, build_ppo
from .ppo import PPO


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint; reading them runs no code from it.

    Raises:
        CheckpointError: if the file is missing, damaged, or no checkpoint of torchppo.

    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; checkpoints are runs/<name>/<run>/checkpoints/*.ckpt")
    content = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            damaged = archive.testzip()  # torch.load does not look at the checksums
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged (in {damaged}); use another checkpoint")
        content.seek(0)
        checkpoint = torch.load(content, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint: {str(error)[:200]}") from error
    if not isinstance(checkpoint, dict) or "torchppo" not in checkpoint:
        raise CheckpointError(f"{path} is a checkpoint of something else; torchppo's are made by torchppo train")
    return checkpoint


def restore(path: Path | str, *, seed: int, num_envs: int) -> tuple[PPO, DictConfig, EnvBase]:
    """The trained module, its configuration and an environment it can act in.

    The configuration names what is imported and called: only for checkpoints that are trusted.

    Raises:
        CheckpointError: if the file is no checkpoint, or has no configuration to build a model from.

    """
    checkpoint = load_checkpoint(Path(path))
    config = checkpoint["torchppo"]["config"]
    if not config:
        raise CheckpointError(f"{path} has no configuration; it was trained from Python: load it with PPO(...) there")
    cfg = OmegaConf.create(config)
    sys.path += [folder for folder in cfg.get("code_dirs", []) if folder not in sys.path]
    env = build_evaluation_env(cfg, seed=seed, num_envs=num_envs)
    ppo = build_ppo(cfg, env)
    try:
        ppo.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its configuration: {str(error)[:200]}") from error
    return ppo, cfg, env
