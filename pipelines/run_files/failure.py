"""What a failed run leaves behind: `summary.json` with the reason."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ... import __version__
from ...errors import TorchPPOError
from ..build import env_name
from .summary import null_if_not_finite


def report_failure(cfg: DictConfig, overrides: list[str], error: BaseException, trainer: Any = None) -> None:
    """Write `summary.json`. Does nothing for signals.

    Args:
        cfg: the configuration.
        overrides: overrides of the command line.
        error: what ended the training.
        trainer: the Trainer, if there is one.

    """
    if not isinstance(error, Exception):
        return
    ppo: Any = None if trainer is None else trainer.lightning_module
    if trainer is None or trainer.is_global_zero:
        with suppress(OSError):
            write_failure(cfg, overrides, error, ppo)


def write_failure(cfg: DictConfig, overrides: list[str], error: BaseException, ppo: Any) -> None:
    """Write `summary.json` of a run that has started."""
    run_dir = Path(cfg.run_dir)
    if not (run_dir / "config.yaml").exists():  # no rollout has been collected
        return
    returns = [reward for reward, _ in ppo.episodes.episodes] if ppo is not None else []
    summary = {
        "env": env_name(cfg),
        "seed": cfg.seed,
        "overrides": overrides,
        "frames": None if ppo is None else ppo.frames,
        "train_return_mean": sum(returns) / len(returns) if returns else None,
        "train_episodes": None if ppo is None else ppo.episodes.num_episodes,
        "eval_return_mean": None,
        "exit": "failed",
        "exit_code": exit_code_of(error),
        "reason": str(error) if isinstance(error, TorchPPOError) else f"{type(error).__name__}: {error}",
        "version": __version__,
    }
    (run_dir / "summary.json").write_text(json.dumps(null_if_not_finite(summary), indent=2) + "\n")


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
