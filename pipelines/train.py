"""Trains one run, from its configuration to its summary: `torchppo train`."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import yaml
from filelock import FileLock, Timeout
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LambdaCallback
from omegaconf import DictConfig, OmegaConf

from ..errors import ConfigurationError, RunLockedError
from .build import EVALUATION_RANK, Training, build_trainer, build_training, env_name, evaluation_compile
from .collectors.collector import seconds_of
from .components.instantiate import build_evaluation_env, seed_for_rank
from .episodes import EvaluateAndSave, Evaluation, evaluate, num_envs_for
from .run_files.summary import (
    ProgressBar,
    Stopwatch,
    Summary,
    make_summary,
    plot_learning_curve,
    print_files,
    print_summary,
    write_summary,
)
from .run_files.video import try_to_record_video

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def train(cfg: DictConfig, overrides: list[str]) -> int:
    """Train and write everything to `cfg.run_dir`.

    Args:
        cfg: the composed configuration with `run_dir`.
        overrides: overrides of the command line, stored next to the configuration.

    Returns:
        The exit code: 0, or 128 plus the number of the signal that stopped the training.

    Raises:
        TorchPPOError: if training cannot start or fails; the message says what to do.

    """
    if cfg.num_threads < 1:
        raise ConfigurationError(f"num_threads={cfg.num_threads} must be at least 1")
    silence_lightning()
    torch.set_num_threads(cfg.num_threads)
    run_dir = Path(cfg.run_dir)
    stop, stopwatch = StopOnSignal(), Stopwatch()
    save_config = LambdaCallback(on_train_batch_start=lambda trainer, *_: save_configuration(trainer, cfg, overrides))
    evaluation = EvaluateAndSave(
        make_evaluation(cfg, stop), run_dir / "checkpoints", cfg.eval.every_frames, cfg.eval.stop_at
    )
    trainer = build_trainer(cfg, [save_config, stopwatch, ProgressBar(), evaluation, stop])
    if trainer.precision in ("64-true", "bf16-true", "16-true"):  # refused here, before the run directory exists
        raise ConfigurationError(
            f"trainer.precision={trainer.precision} does not fit the environments' float32; use 32-true, bf16-mixed or "
            "16-mixed"
        )
    seed_everything(seed_for_rank(cfg.seed, trainer.global_rank), verbose=False)
    training = build_training(cfg, trainer.global_rank, overrides)
    with closing(training), locked(run_dir) if trainer.is_global_zero else nullcontext():
        fit(trainer, training)
        if trainer.is_global_zero:
            summary = make_summary(
                env=env_name(cfg),
                seed=cfg.seed,
                overrides=overrides,
                ppo=training.ppo,
                collector_seconds=seconds_of(training.collector),
                wall_seconds=stopwatch.seconds,
                evaluation=evaluation.last,
                was_interrupted=stop.received is not None,
            )
            write_results(cfg, training, summary)
    return 0 if stop.received is None else 128 + stop.received


def fit(trainer: Trainer, training: Training) -> None:
    """Call `trainer.fit`; convert errors of Lightning to ConfigurationError, and Ctrl-C to KeyboardInterrupt."""
    try:
        trainer.fit(training.ppo, train_dataloaders=training.collector)
    except MisconfigurationException as error:
        raise ConfigurationError(f"trainer: {error}; change trainer.*") from error
    except SystemExit as error:  # Lightning turns Ctrl-C before the first rollout into this
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise error.__context__ from None


def save_configuration(trainer: Trainer, cfg: DictConfig, overrides: list[str]) -> None:
    """Write `config.yaml` and `overrides.yaml` before the first rollout.

    They are not written earlier, because a directory with a configuration counts as a run and is not used again. Only
    rank 0 writes them, because the `run_dir` of other ranks may contain a later time.
    """
    path = Path(cfg.run_dir) / "config.yaml"
    if trainer.is_global_zero and not path.exists():
        OmegaConf.save(cfg, path, resolve=True)
        path.with_name("overrides.yaml").write_text(yaml.safe_dump(overrides))


def silence_lightning() -> None:
    """Silence messages of Lightning that users cannot act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hardware, tips
    # The directory exists because it holds the lock.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning 2.6 on torch 2.13


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create a run directory and lock it for this process.

    Raises:
        RunLockedError: if another process trains in it.
        ConfigurationError: if it already holds a run.

    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RunLockedError(f"run_dir={run_dir} is in use by another training; choose another run_dir") from None
    with lock:
        if (run_dir / "config.yaml").exists():
            raise ConfigurationError(
                f"run_dir={run_dir} already holds a run; choose another run_dir or delete this folder"
            )
        yield


def make_evaluation(cfg: DictConfig, stop: StopOnSignal) -> Callable[[Any], Evaluation | None]:
    """Return a function that evaluates a policy on new environments, with the same seed each time.

    It returns `None` if `stop` receives a signal.
    """
    if cfg.eval.episodes < 1:
        raise ConfigurationError(f"eval.episodes={cfg.eval.episodes} must be at least 1")

    def run(actor: Any) -> Evaluation:
        seed, num_envs = seed_for_rank(cfg.seed, EVALUATION_RANK), num_envs_for(cfg.eval.episodes)
        with closing(build_evaluation_env(cfg, seed=seed, num_envs=num_envs)) as env:
            result = evaluate(actor, env, cfg.eval.episodes, compile=evaluation_compile(cfg))
        torch.set_num_threads(cfg.num_threads)  # closing TorchRL's SerialEnv changes it
        return result

    return lambda actor: stop.interruptible(lambda: run(actor))


def write_results(cfg: DictConfig, training: Training, summary: Summary) -> None:
    """Write summary, learning curve and video, and print the results and the paths of the files."""
    run_dir = Path(cfg.run_dir)
    write_summary(summary, run_dir / "summary.json")
    print_summary(summary)
    files = {"checkpoint": run_dir / "checkpoints" / "last.ckpt"}
    if "csv" in cfg.logger:
        files["learning curve"] = run_dir / "learning_curve.png"
        title = f"{summary['env']}, seed {summary['seed']}"
        plot_learning_curve(run_dir / "metrics.csv", files["learning curve"], title)
    if cfg.eval.video and summary["exit"] == "completed":
        seed = seed_for_rank(cfg.seed, EVALUATION_RANK)
        video = try_to_record_video(cfg, training.ppo.actor, run_dir / "videos" / "last.mp4", seed)
        files |= {"video": video} if video else {}
    print_files(files)


class StopOnSignal(Callback):
    """Ends the training on every rank after the current rollout; a second signal ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._is_stopping = False  # True after a signal has reached any rank
        self._previous: dict[int, Any] = {}
        self._interrupts = self._prints = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the handlers before Lightning replaces them."""
        self._prints = trainer.is_global_zero
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handlers, which exit with code 0 or 1."""
        for number in self._previous:
            signal.signal(number, self._receive)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop all ranks after the same rollout."""
        self._is_stopping = trainer.strategy.reduce_boolean_decision(self._is_stopping, all=False)
        trainer.should_stop = trainer.should_stop or self._is_stopping

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """Return the result of `work`, or `None` if a signal arrived earlier or interrupts it."""
        self._interrupts = True
        try:
            return None if self._is_stopping else work()
        except _Interrupted:
            return None
        finally:
            self._interrupts = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received, self._is_stopping = number, True
        signal.signal(number, signal.SIG_DFL)
        if self._prints:  # `print` is not safe here: the signal may have interrupted another call of it
            os.write(2, b"\ntorchppo: stopping after this rollout; press again to stop at once\n")
        if self._interrupts:
            raise _Interrupted


class _Interrupted(BaseException):
    """Raised by a signal inside `StopOnSignal.interruptible`."""
