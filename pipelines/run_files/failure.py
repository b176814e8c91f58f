"""What a failed run leaves behind: the last finite state, and `summary.json` with the reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ...errors import EnvironmentFailure, NumericalError, TorchPPOError
from ..distributed import num_ranks
from .summary import Summary, write_summary


def report_failure(run_dir: Path, error: BaseException, trainer: Any, summarize: Callable[[], Summary]) -> None:
    """Save `last.ckpt` if the state is finite, and write `summary.json`. Does nothing for signals.

    Args:
        run_dir: directory of the run.
        error: what ended the training.
        trainer: the Trainer.
        summarize: returns the summary of the run.

    """
    if not isinstance(error, Exception):
        return
    ppo: Any = trainer.lightning_module
    is_on_all_ranks = num_ranks() == 1 or isinstance(error, EnvironmentFailure | NumericalError)
    if is_on_all_ranks and not isinstance(error, OSError) and has_finite_state(ppo):
        for callback in trainer.callbacks:
            if (last := getattr(callback, "last_checkpoint", None)) is not None and ppo.num_rollouts > 0:
                with suppress(Exception):  # the failure is more important
                    last.save(trainer, ppo.frames)
    if trainer.is_global_zero:
        with suppress(OSError):
            write_failure(run_dir, error, summarize())


def has_finite_state(ppo: Any) -> bool:
    """Return whether all parameters, buffers and moments of the optimizer are finite."""
    states = getattr(ppo.optimizer, "state", {})  # an empty list before the training starts
    moments = [value for state in states.values() for value in state.values()]
    tensors = [one for one in (*ppo.state_dict().values(), *moments) if isinstance(one, torch.Tensor)]
    return all(bool(one.isfinite().all()) for one in tensors if one.is_floating_point())


def write_failure(run_dir: Path, error: BaseException, summary: Summary) -> None:
    """Write `summary.json` with the summary and the failure, if the run has collected a rollout."""
    if (run_dir / "config.yaml").exists():
        reason = str(error) if isinstance(error, TorchPPOError) else f"{type(error).__name__}: {error}"
        end = {"exit": "failed", "exit_code": exit_code_of(error), "reason": reason}
        write_summary(summary | end, run_dir / "summary.json")


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of the command line for an error."""
    if isinstance(error, TorchPPOError):
        return error.exit_code
    return 74 if isinstance(error, OSError) else 1


def end_process(failure: Exception, report: Callable[[], object] = lambda: None) -> None:
    """End a process whose main thread does not return from an environment. `report` may fail."""
    print(f"torchppo: {failure}", file=sys.stderr, flush=True)
    with suppress(Exception):
        report()
    os._exit(exit_code_of(failure))
