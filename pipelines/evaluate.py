"""Evaluates a checkpoint: `torchppo eval`."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigurationError
from .build import env_name, evaluation_compile
from .checkpoint import restore
from .episodes import evaluate, num_envs_for
from .metrics.episode_info import mean_infos
from .run_files.summary import Summary
from .run_files.video import try_to_record_video


def evaluate_checkpoint(path: Path, *, episodes: int, seed: int, video: Path | None) -> Summary:
    """Roll out whole episodes with a checkpoint's deterministic policy, and record one.

    Args:
        path: path of the checkpoint.
        episodes: number of episodes.
        seed: seed of the environments.
        video: path of the video; `None` disables it.

    Raises:
        TorchPPOError: if the checkpoint cannot be used or its environment cannot be made.

    """
    if seed < 0:
        raise ConfigurationError(f"--seed {seed} must not be negative")
    if episodes < 1:
        raise ConfigurationError(f"--episodes {episodes} must be at least 1")
    ppo, cfg, env = restore(path, seed=seed, num_envs=num_envs_for(episodes))
    result = evaluate(ppo.actor, env, episodes, compile=evaluation_compile(cfg))
    env.close()
    recorded = try_to_record_video(cfg, ppo.actor, video, seed) if video else None
    return {
        "env": env_name(cfg),
        "checkpoint": str(path),
        "eval_return_mean": result.mean,
        "eval_return_std": result.std,
        "eval_length_mean": sum(result.lengths) / len(result.lengths),
        "eval_episodes": episodes,
        **mean_infos("eval", result.infos, "_"),
        "video": str(recorded) if recorded else None,
    }
