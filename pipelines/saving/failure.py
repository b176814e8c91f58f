"""Saves a checkpoint before a failure ends the training."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import torch
from lightning import Callback, Trainer

from ...errors import EnvironmentFailure, NumericalError, TorchPPOError
from ..distributed import num_ranks
from .files import LastCheckpoint


class SaveBeforeFailure(Callback):
    """Saves the last checkpoint if an environment fails or numbers are not finite, but the weights are.

    A rollout that has failed has no state that it could continue from, so new episodes start after a restart. The exact
    checkpoint before it stays as `previous.ckpt`.
    """

    last_checkpoint: LastCheckpoint

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        is_on_all_ranks = num_ranks() == 1 or isinstance(exception, EnvironmentFailure)
        if not (is_on_all_ranks and isinstance(exception, EnvironmentFailure | NumericalError)):
            return
        if pl_module.num_rollouts == 0 or not has_finite_state(pl_module):
            return
        with suppress(OSError, TorchPPOError):  # the failure itself is reported
            self.last_checkpoint.save(trainer, pl_module.frames)
            if trainer.is_global_zero:
                path = self.last_checkpoint.path
                print(f"torchppo: saved {path} after {pl_module.frames:,} frames", file=sys.stderr, flush=True)


def has_finite_state(ppo: Any) -> bool:
    """Return whether all weights, statistics and moments of the optimizer are finite."""
    moments = [value for state in ppo.optimizer.state.values() for value in state.values()]
    values = (*ppo.parameters(), *ppo.buffers(), *moments)
    return all(bool(value.isfinite().all()) for value in values if isinstance(value, torch.Tensor))
