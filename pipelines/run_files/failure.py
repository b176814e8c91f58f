"""What a failed run leaves behind: the last finite state, and `summary.json` with the reason."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ... import __version__
from ...errors import EnvironmentFailure, NumericalError, TorchPPOError
from ..build import env_name
from ..distributed import num_ranks
from ..health.report import HealthReport
from .summary import write_summary


def report_failure(cfg: DictConfig, overrides: list[str], error: BaseException, trainer: Any = None) -> None:
    """Save `last.ckpt` if the state is finite, and write `summary.json`. Does nothing for signals.

    Args:
        cfg: the configuration.
        overrides: overrides of the command line.
        error: what ended the training.
        trainer: the Trainer, if it can still save.

    """
    if not isinstance(error, Exception):
        return
    ppo: Any = None if trainer is None else trainer.lightning_module
    is_on_all_ranks = num_ranks() == 1 or isinstance(error, EnvironmentFailure | NumericalError)
    if trainer is not None and is_on_all_ranks and not isinstance(error, OSError) and has_finite_state(ppo):
        for callback in trainer.callbacks:
            if (last := getattr(callback, "last_checkpoint", None)) is not None and ppo.num_rollouts > 0:
                with suppress(Exception):  # the failure is more important
                    last.save(trainer, ppo.frames)
    if trainer is None or trainer.is_global_zero:
        with suppress(OSError):
            write_failure(cfg, overrides, error, ppo)


def has_finite_state(ppo: Any) -> bool:
    """Return whether all parameters, buffers and moments of the optimizer are finite."""
    states = getattr(ppo.optimizer, "state", {})  # an empty list before the training starts
    moments = [value for state in states.values() for value in state.values()]
    tensors = [one for one in (*ppo.state_dict().values(), *moments) if isinstance(one, torch.Tensor)]
    return all(bool(one.isfinite().all()) for one in tensors if one.is_floating_point())


def write_failure(cfg: DictConfig, overrides: list[str], error: BaseException, ppo: Any) -> None:
    """Write `summary.json` of a run that has started."""
    run_dir = Path(cfg.run_dir)
    if not (run_dir / "config.yaml").exists():  # no rollout has been collected
        return
    returns = [reward for reward, _ in ppo.episodes.episodes] if ppo is not None else []
    callbacks = [] if ppo is None else ppo.trainer.callbacks
    health = next((one for one in callbacks if isinstance(one, HealthReport)), HealthReport())
    summary = {
        "env": env_name(cfg),
        "seed": cfg.seed,
        "overrides": overrides,
        "frames": None if ppo is None else ppo.frames,
        "train_return_mean": sum(returns) / len(returns) if returns else None,
        "train_episodes": None if ppo is None else ppo.episodes.num_episodes,
        "eval_return_mean": None,
        **health.summary,
        "exit": "failed",
        "exit_code": exit_code_of(error),
        "reason": str(error) if isinstance(error, TorchPPOError) else f"{type(error).__name__}: {error}",
        "version": __version__,
    }
    write_summary(summary, run_dir / "summary.json")


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of the command line for an error."""
    if isinstance(error, TorchPPOError):
        return error.exit_code
    return 74 if isinstance(error, OSError) else 1


def end_process(cfg: DictConfig, overrides: list[str], failure: Exception) -> None:
    """End a process whose main thread does not return from an environment."""
    print(f"torchppo: {failure}", file=sys.stderr, flush=True)
    with suppress(Exception):
        report_failure(cfg, overrides, failure)
    os._exit(exit_code_of(failure))
