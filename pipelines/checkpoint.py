"""Writes and reads checkpoint files, and rebuilds a policy from one."""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from torchrl.envs import EnvBase

from ..errors import CheckpointError
from .build import build_ppo
from .components.instantiate import build_evaluation_env
from .ppo import PPO


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint under a temporary name and rename it.

    Lightning overwrites the file in place, so that a full disk would destroy the previous checkpoint too.

    Raises:
        OSError: if the file cannot be written; the error names `path`.

    """
    part = path.with_name(f".{path.name}.part")
    try:
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint. Reading it does not run code from the file.

    Raises:
        CheckpointError: if the file is missing, damaged, or not a checkpoint of torchppo.

    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; checkpoints are runs/<name>/<run>/checkpoints/*.ckpt")
    content = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            damaged = archive.testzip()  # `torch.load` does not verify the checksums
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged (in {damaged}); use another checkpoint")
        content.seek(0)
        checkpoint = torch.load(content, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint ({str(error)[:200]}); use a file that torchppo train has written"
        ) from error
    if not isinstance(checkpoint, dict) or "torchppo" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of torchppo; use one that torchppo train has written")
    return checkpoint


def restore(path: Path | str, *, seed: int, num_envs: int) -> tuple[PPO, DictConfig, EnvBase]:
    """Return the trained module, its configuration, and an environment to act in.

    The configuration names classes that are imported and called, so load only checkpoints that you trust.

    Raises:
        CheckpointError: if the file is not a checkpoint, or has no configuration to build a model from.

    """
    checkpoint = load_checkpoint(Path(path))
    config = checkpoint["torchppo"]["config"]
    if not config:
        raise CheckpointError(
            f"{path} has no configuration, because it was trained from Python; use "
            "trainer.fit(ppo, ..., ckpt_path=...) to continue there"
        )
    cfg = OmegaConf.create(config)
    sys.path += [folder for folder in cfg.get("code_dirs", []) if folder not in sys.path]
    env = build_evaluation_env(cfg, seed=seed, num_envs=num_envs)
    ppo = build_ppo(cfg, env)
    try:
        ppo.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit its configuration ({str(error)[:200]}); use the version of the code that wrote it"
        ) from error
    return ppo, cfg, env
