"""What happens around the updates: evaluation, checkpoints, progress and time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from ...errors import ConfigurationError
from ..distributed import together
from ..episodes import Evaluation
from .stop_on_signal import StopOnSignal


class EvaluateAndSave(Callback):
    """Evaluates every so many frames and at the end, and keeps the best checkpoint and, each time, the last.

    Args:
        run_evaluation: plays the evaluation's episodes with a policy.
        directory: of `best.ckpt` and `last.ckpt`.
        every_frames: between evaluations; none: only at the end.
        stop_at: mean return of an evaluation at which the training ends; none: it goes on to its last frame.
        stop: tells of a signal, which ends an evaluation, and after which none is begun.

    Raises:
        ConfigurationError: if `every_frames` is below 1, or `stop_at` is no number.

    """

    def __init__(
        self,
        run_evaluation: Callable[[Any], Evaluation],
        directory: Path,
        every_frames: int | None,
        stop_at: float | None,
        stop: StopOnSignal,
    ) -> None:
        """Nothing has been evaluated."""
        if every_frames is not None and every_frames < 1:
            raise ConfigurationError(f"eval.every_frames={every_frames} must be at least 1, or null for the end alone")
        if not isinstance(stop_at, int | float | None):
            raise ConfigurationError(f"eval.stop_at={stop_at} is not a number")
        self.stop_at = stop_at
        self.stop = stop
        self.run_evaluation = run_evaluation
        self.directory = directory
        self.every_frames = every_frames
        self.best = float("-inf")
        self.last: Evaluation | None = None
        self._evaluated_at = 0

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training has to know."""
        return {"best": self.best, "evaluated_at": self._evaluated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.best, self._evaluated_at = state_dict["best"], state_dict["evaluated_at"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Evaluate when enough frames have passed."""
        if self.every_frames is not None and pl_module.frames - self._evaluated_at >= self.every_frames:
            self._evaluate(trainer, pl_module)
            if self.last is not None and self.stop_at is not None and self.last.mean >= self.stop_at:
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep the final policy and, if no signal came, evaluate it."""
        if self._evaluated_at != pl_module.frames:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, ppo: Any) -> None:
        self._evaluated_at = ppo.frames
        self._save(trainer, "last.ckpt")  # first: an evaluation that fails must not cost it

        def play() -> Evaluation | None:
            return self.stop.interruptible(lambda: self.run_evaluation(ppo.actor)) if trainer.is_global_zero else None

        self.last = evaluation = trainer.strategy.broadcast(together(play))
        if evaluation is None:
            return
        for logger in trainer.loggers:
            logger.log_metrics(
                {"eval/mean_reward": evaluation.mean, "eval/std_reward": evaluation.std}, step=ppo.frames
            )
            logger.save()
        if evaluation.mean > self.best:
            self.best = evaluation.mean
            self._save(trainer, "best.ckpt")
            self._save(trainer, "last.ckpt")  # which is to know that it is the best

    def _save(self, trainer: Trainer, name: str) -> None:
        """Write it beside the one before, which Lightning would write over: a full disk would cost both."""
        path, part = self.directory / name, self.directory / f".{name}.part"
        try:
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error
