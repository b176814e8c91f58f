"""Builds TorchRL's collectors, with or without worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torchrl.envs import Compose, EnvBase, InitTracker, TensorDictPrimer, TransformedEnv

from ...envs import VectorEnv
from ...errors import ConfigurationError
from ...modules.features.recurrent import RecurrentModule
from .instantiate import build_env, call, parameter_names, seed_for_rank

if TYPE_CHECKING:
    from ..collectors.rollout_loader import RolloutLoader


def with_recurrent_states(env: EnvBase, primers: Iterable[TensorDictPrimer]) -> EnvBase:
    """Add transforms that write `is_init` and the initial recurrent states of a policy.

    Args:
        env: a batched environment.
        primers: the result of `state_primers`.

    """
    if isinstance(env, VectorEnv):
        env.list_all_info_keys()
    return TransformedEnv(env, Compose(InitTracker(), *primers))


def state_primers(policy: nn.Module) -> list[TensorDictPrimer]:
    """Return the transforms that write the initial recurrent states of torchppo's modules in a policy.

    The user adds those of TorchRL's LSTMModule and GRUModule.
    """
    return [module.make_tensordict_primer() for module in policy.modules() if isinstance(module, RecurrentModule)]


def build_worker_env(
    cfg: DictConfig, primers: Iterable[TensorDictPrimer], *, seed: int, changes: dict[str, Any]
) -> EnvBase:
    """Build the environment of a worker process of a TorchRL collector, and seed the process.

    A terminal sends Ctrl-C to all processes. Only the training process handles it and ends its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.manual_seed(seed)
    return with_recurrent_states(build_env(cfg, seed=seed, **changes), primers)


def build_torchrl_collector(
    cfg: DictConfig, env: EnvBase, policy: Any, rank: int, frames_per_batch: int
) -> RolloutLoader:
    """Build a TorchRL collector. It steps `env` or makes an environment in each worker process."""
    primers, workers = state_primers(policy), num_workers(cfg)
    if workers is None:
        create_env_fn: Any = with_recurrent_states(env, primers)
    else:
        changes = {"num_envs": env.batch_size.numel() // workers}
        seeds = [seed_for_rank(seed_for_rank(cfg.seed, rank), worker) for worker in range(workers)]
        create_env_fn = [partial(build_worker_env, cfg, primers, seed=seed, changes=changes) for seed in seeds]
    own_keys = [str(key) for key in cfg.collector if key not in ("frames_per_env", "frames_per_batch")]
    collector = call(
        OmegaConf.masked_copy(cfg.collector, own_keys),
        create_env_fn=create_env_fn,
        policy=policy,
        frames_per_batch=frames_per_batch,
        total_frames=-1,  # `RolloutLoader` counts the frames of all ranks
    )
    from ..collectors.rollout_loader import RolloutLoader  # imports TorchRL's collectors, which takes 0.1 s

    return RolloutLoader(collector, cfg.total_frames)


def num_workers(cfg: DictConfig) -> int | None:
    """Return the number of worker processes of a TorchRL collector, or `None` if it has none."""
    default = 1 if "num_workers" in parameter_names(cfg.collector) else None
    workers: int | None = cfg.collector.get("num_workers", cfg.collector.get("num_collectors", default))
    return workers


def num_envs_of_workers(cfg: DictConfig, env: EnvBase) -> int:
    """Return the number of environments that all workers step.

    The workers share `env.num_envs` environments. Without this key, each worker makes the whole environment.

    Raises:
        ConfigurationError: if the workers cannot share the environments equally.

    """
    num_envs, workers = int(env.batch_size.numel()), num_workers(cfg) or 1
    if "num_envs" not in cfg.env:
        return num_envs * workers
    if workers < 1 or num_envs % workers:
        raise ConfigurationError(
            f"collector.num_workers={workers} does not divide env.num_envs={num_envs}; use a divisor"
        )
    return num_envs
