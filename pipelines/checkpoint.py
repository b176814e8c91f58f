"""Rebuilds a policy from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torchrl.envs import EnvBase

from ..errors import CheckpointError, ConfigurationError, did_you_mean
from .build import build_ppo
from .components.instantiate import build_env, build_evaluation_env, check_same_spaces
from .ppo import PPO
from .saving.plain_checkpoints import load_checkpoint
from .saving.trusted import trusted_config

CODE_HINT = "use the version of the code that wrote it"
BUILD_HINT = "build it as in the training"


def restore(
    path: Path | str,
    *,
    seed: int,
    episodes: int = 1,
    overrides: Iterable[Override] = (),
    trust: Iterable[str] = (),
    **options: Any,
) -> tuple[PPO, DictConfig, EnvBase]:
    """Return the trained module, its configuration, and an environment to evaluate it in.

    Args:
        path: path of the checkpoint.
        seed: seed of the environment.
        episodes: number of episodes of the evaluation, which determines the number of environments.
        overrides: overrides of Hydra that change the environment.
        trust: packages that the configuration may name, see `trusted_config`.
        options: further arguments of `build_evaluation_env`.

    Raises:
        CheckpointError: if the file is not a checkpoint, has no configuration to build a model from, or one that names
            code that is not trusted.

    """
    checkpoint = load_checkpoint(Path(path))
    config = checkpoint["torchppo"]["config"]
    if not config:
        raise CheckpointError(
            f"{path} has no configuration, because it was trained from Python; use load_policy(path, actor=...) or "
            "PPO.load_from_checkpoint(path, objective=..., ...)"
        )
    training_cfg = trusted_config(path, config, trust)
    cfg = training_cfg.copy()
    change_environment(cfg, overrides)
    try:
        env = build_evaluation_env(cfg, seed=seed, episodes=episodes, **options)
        try:
            ppo = build_ppo(cfg, env)
            load_weights(ppo, checkpoint["state_dict"], f"{path} does not fit its configuration", CODE_HINT)
            ppo.on_load_checkpoint(checkpoint)
        except BaseException as error:
            env.close()
            if isinstance(error, Exception) and cfg.eval.env != training_cfg.eval.env:
                with closing(build_env(training_cfg, seed=seed, num_envs=1, num_workers=0)) as training_env:
                    check_same_spaces(env, training_env, "the environment of the evaluation")
            raise
    except OmegaConfBaseException as error:
        raise CheckpointError(f"{path} has an incomplete configuration ({error}); {CODE_HINT}") from error
    return ppo, cfg, env


def change_environment(cfg: DictConfig, overrides: Iterable[Override]) -> None:
    """Apply overrides such as `env.gravity=5` to `cfg.eval.env`, and `eval.max_steps=100` to `cfg.eval`.

    Raises:
        ConfigurationError: if an override has another key, or replaces a key that the configuration does not have.

    """
    for override in overrides:
        name, word = override.key_or_group, str(override.input_line)
        key = name if name.startswith("eval.") else f"eval.{name}"
        if not key.startswith(("eval.env.", "eval.max_steps")) or override.is_delete() or override.is_sweep_override():
            raise ConfigurationError(f"{word} does not change an evaluation; use env.key=value or eval.max_steps=1000")
        known = [f"env.{one}" for one in cfg.env]
        if key.startswith("eval.env.") and not override.is_add() and f"env.{key.split('.')[2]}" not in known:
            hint = did_you_mean(key.removeprefix("eval."), known)
            raise ConfigurationError(f"{word}: the training did not set {name}{hint}; add it with +{word}")
        OmegaConf.update(cfg, key, override.value(), force_add=True)


def load_module(
    make: Callable[..., PPO], path: Path | str, components: dict[str, Any], trust: Iterable[str] = ()
) -> PPO:
    """Return the trained module, built from its configuration or from the arguments of `make`; see `restore`."""
    for name in ("map_location", "strict", "weights_only", "hparams_file"):
        if name in components:
            raise ConfigurationError(f"PPO.load_from_checkpoint does not support {name}; remove it")
    if not components:
        ppo, _, env = restore(path, seed=0, num_workers=0, trust=trust)
        env.close()
    elif trust:
        raise ConfigurationError(f"trust={trust} has no effect with components; remove it")
    else:
        checkpoint = load_checkpoint(Path(path))
        ppo = make(**components)
        load_weights(ppo, checkpoint["state_dict"], f"{path} does not fit the components", BUILD_HINT)
        ppo.on_load_checkpoint(checkpoint)
    ppo._resumed = None  # a training continues from the checkpoint only with `ckpt_path`
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
