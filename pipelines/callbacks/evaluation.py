"""Evaluation during training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from ...errors import ConfigurationError
from ..distributed import on_rank_zero
from ..episodes import Evaluation
from .stop_on_signal import StopOnSignal


class EvaluateAndSave(Callback):
    """Evaluates the policy every `every_frames` frames and at the end, and saves the last and the best checkpoint.

    Args:
        run_evaluation: function that evaluates a policy.
        directory: folder of `best.ckpt` and `last.ckpt`.
        every_frames: frames between evaluations; `None` evaluates only at the end.
        stop_at: mean return of an evaluation that ends the training; `None` trains to the last frame.
        stop: interrupts an evaluation when a signal arrives.

    Raises:
        ConfigurationError: if `every_frames` is below 1 or `stop_at` is not a number.

    """

    def __init__(
        self,
        run_evaluation: Callable[[Any], Evaluation],
        directory: Path,
        every_frames: int | None,
        stop_at: float | None,
        stop: StopOnSignal,
    ) -> None:
        if every_frames is not None and every_frames < 1:
            raise ConfigurationError(
                f"eval.every_frames={every_frames} must be at least 1, or null to evaluate only at the end"
            )
        if not isinstance(stop_at, int | float | None):
            raise ConfigurationError(f"eval.stop_at={stop_at} is not a number")
        self.run_evaluation = run_evaluation
        self.directory = directory
        self.every_frames = every_frames
        self.stop_at = stop_at
        self.stop = stop
        self.best = float("-inf")
        self.last: Evaluation | None = None
        self._evaluated_at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "evaluated_at": self._evaluated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._evaluated_at = state_dict["best"], state_dict["evaluated_at"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.every_frames is not None and pl_module.frames - self._evaluated_at >= self.every_frames:
            self._evaluate(trainer, pl_module)
            if self.last is not None and self.stop_at is not None and self.last.mean >= self.stop_at:
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._evaluated_at != pl_module.frames:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, ppo: Any) -> None:
        """Save the last checkpoint, then evaluate, so that the checkpoint exists even if the evaluation fails."""
        self._evaluated_at = ppo.frames
        save_checkpoint(trainer, self.directory / "last.ckpt")

        def run() -> Evaluation | None:
            return self.stop.interruptible(lambda: self.run_evaluation(ppo.actor))

        self.last = evaluation = on_rank_zero(run)
        if evaluation is None:  # interrupted
            return
        ppo.publish(evaluation.metrics)
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "monitor", None) in evaluation.metrics:
                callback.on_validation_end(trainer, ppo)
        if evaluation.mean > self.best:
            self.best = evaluation.mean
            save_checkpoint(trainer, self.directory / "best.ckpt")
            save_checkpoint(trainer, self.directory / "last.ckpt")  # with the new best return


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
