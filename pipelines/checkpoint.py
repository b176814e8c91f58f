"""Reads checkpoint files, rebuilds a policy from one, and lets Lightning's `ModelCheckpoint` write them."""

from __future__ import annotations

import io
import pickle
import sys
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchrl.envs import EnvBase

from ..errors import CheckpointError, ConfigurationError
from .build import build_ppo
from .components.instantiate import build_evaluation_env
from .ppo import PPO

CODE_HINT = "use the version of the code that wrote it"
BUILD_HINT = "build it as in the training"


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
            f"{path} has no configuration, because it was trained from Python; use load_policy(path, actor=...) or "
            "PPO.load_from_checkpoint(path, objective=..., ...)"
        )
    cfg = OmegaConf.create(config)
    sys.path += [folder for folder in cfg.get("code_dirs", []) if folder not in sys.path]
    env = build_evaluation_env(cfg, seed=seed, num_envs=num_envs)
    ppo = build_ppo(cfg, env)
    load_weights(ppo, checkpoint["state_dict"], f"{path} does not fit its configuration", CODE_HINT)
    ppo.on_load_checkpoint(checkpoint)
    return ppo, cfg, env


def load_module(make: Callable[..., PPO], path: Path | str, components: dict[str, Any]) -> PPO:
    """Return the trained module, built from its configuration or from the arguments of `make`; see `restore`."""
    for name in ("map_location", "strict", "weights_only", "hparams_file"):
        if name in components:
            raise ConfigurationError(f"PPO.load_from_checkpoint does not support {name}; remove it")
    if not components:
        ppo, _, env = restore(path, seed=0, num_envs=1)
        env.close()
        return ppo
    checkpoint = load_checkpoint(Path(path))
    ppo = make(**components)
    load_weights(ppo, checkpoint["state_dict"], f"{path} does not fit the components", BUILD_HINT)
    ppo.on_load_checkpoint(checkpoint)
    return ppo


def load_actor(path: Path | str, actor: nn.Module) -> None:
    """Load the weights and statistics of a checkpoint's actor.

    Raises:
        CheckpointError: if the file is not a checkpoint, or does not fit the actor.

    """
    state = load_checkpoint(Path(path))["state_dict"]
    prefixes = ("objective.actor_network.", "objective.actor_network_params.")  # the second one if functional=True
    weights = {
        name.removeprefix(prefix): value
        for prefix in prefixes
        for name, value in state.items()
        if name.startswith(prefix)
    }
    load_weights(actor, weights, f"{path} does not fit the actor", BUILD_HINT)


def load_weights(module: nn.Module, weights: dict[str, Any], problem: str, hint: str) -> None:
    """Load a state dict. Raise a CheckpointError with `problem`, the reason and `hint` if it does not fit."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{problem} ({str(error)[:300]}); {hint}") from error


def save_after_rollouts(trainer: Trainer) -> None:
    """Make every `ModelCheckpoint` save after the rollout in which a save is due. Tested with Lightning 2.6.

    Lightning saves if the number of optimizer steps is a multiple of `every_n_train_steps`, but a rollout takes many
    steps at once. With manual optimization it ignores `train_time_interval`.
    """
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            vars(callback)["on_train_batch_end"] = partial(save_if_due, callback)


def save_if_due(callback: ModelCheckpoint, trainer: Trainer, *arguments: Any) -> None:
    """Call Lightning's hook of a `ModelCheckpoint` if a save is due."""
    steps, interval, last = trainer.global_step, callback._train_time_interval, callback._last_time_checked
    num_steps = callback._every_n_train_steps
    if interval is not None:
        is_late = last is not None and time.monotonic() - last >= interval.total_seconds()
        is_due = trainer.strategy.broadcast(is_late)
    else:
        is_due = num_steps > 0 and steps // num_steps > callback._last_global_step_saved // num_steps
    if is_due:
        callback._every_n_train_steps = max(1, steps)  # Lightning saves at multiples of it
        try:
            type(callback).on_train_batch_end(callback, trainer, *arguments)
        finally:
            callback._every_n_train_steps = num_steps
