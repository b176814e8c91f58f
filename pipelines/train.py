"""Trains one run, from its configuration to its summary: `torchppo train`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from filelock import FileLock, Timeout
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torchrl.envs import EnvBase

from ..envs.vector.interface import SlicedVectorEnv, Watchdog
from ..envs.vector_env import vector_of
from ..errors import ConfigurationError, EnvironmentFailure, RunLockedError
from .build import EVALUATION_RANK, Training, build_trainer, build_training, env_name, evaluation_compile
from .collectors.collector import seconds_of
from .components.instantiate import build_evaluation_env, evaluation_config, seed_for_rank
from .distributed import StopOnSignal
from .episodes import EvaluateAndSave, Evaluation, evaluate
from .run_files.failure import end_process, report_failure
from .run_files.progress_bar import ProgressBar
from .run_files.summary import (
    ProgressLines,
    Stopwatch,
    Summary,
    make_summary,
    plot_learning_curve,
    print_files,
    print_summary,
    write_summary,
)
from .run_files.video import try_to_record_video
from .saving.state import describe_resume


def train(cfg: DictConfig, overrides: list[str], checkpoint: Path | None = None) -> int:
    """Train and write everything to `cfg.run_dir`. Return 0, or 128 plus the number of the signal that stopped it.

    Args:
        cfg: the composed configuration with `run_dir`.
        overrides: overrides of the command line, stored next to the configuration.
        checkpoint: the checkpoint that the run in `cfg.run_dir` continues from; `None` starts a new run.

    Raises:
        TorchPPOError: if training cannot start or fails; the message says what to do.

    """
    silence_lightning()
    torch.set_num_threads(cfg.num_threads)
    run_dir = Path(cfg.run_dir)
    stop, stopwatch = StopOnSignal(), Stopwatch()
    hooks: Any = {
        "on_train_batch_start": lambda trainer, *_: save_configuration(trainer, cfg, overrides),
        "on_exception": lambda trainer, _, error: report_failure(cfg, overrides, error, trainer),
    }
    evaluator = Evaluator(cfg, stop) if cfg.eval.episodes else None
    evaluation, progress = make_evaluation(cfg, evaluator), ProgressBar() if Console().is_terminal else ProgressLines()
    trainer = build_trainer(cfg, [LambdaCallback(**hooks), stopwatch, progress, evaluation, stop])
    check_precision(trainer)
    seed_everything(seed_for_rank(cfg.seed, trainer.global_rank), verbose=False)
    with ExitStack() as stack, Watchdog(lambda failure: end_process(cfg, overrides, failure)):
        training = stack.enter_context(closing(build_training(cfg, trainer.global_rank, overrides)))
        if evaluator and trainer.is_global_zero:
            stack.enter_context(closing(evaluator))
            evaluator.make_env()
        if trainer.is_global_zero:
            stack.enter_context(locked(run_dir, is_used=checkpoint is not None))
        prepare_resume(cfg, trainer, training, evaluator, checkpoint)
        fit(trainer, training, checkpoint)
        if evaluator:
            evaluator.close()  # before the environment of the video is made
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


def make_evaluation(cfg: DictConfig, evaluator: Evaluator | None) -> EvaluateAndSave:
    """Make the callback that evaluates and saves checkpoints."""
    limits = {f"save_{name}": value for name, value in cfg.checkpoint.items()}
    directory = Path(cfg.run_dir) / "checkpoints"
    return EvaluateAndSave(evaluator, directory, cfg.eval.every_frames, cfg.eval.stop_at, **limits)


def prepare_resume(
    cfg: DictConfig, trainer: Trainer, training: Training, evaluator: Evaluator | None, checkpoint: Path | None
) -> None:
    """Prepare the log files of a run that continues; print how the run continues after the next restart."""
    start, name, found = "", None, None
    if checkpoint is None and evaluator is None and not cfg.resume.require_exact:
        found = "inexact"  # without a test, because a second environment may be impossible
    if checkpoint is None and evaluator is not None and trainer.is_global_zero:
        found = evaluator.resume_class()
    if checkpoint is not None:
        from .run_files.continued_logs import continue_logs

        name = continue_logs(trainer, checkpoint)
        start = f"continuing from {checkpoint}; "
    text = describe_resume(training.collector, name, found, require_exact=cfg.resume.require_exact)
    if trainer.is_global_zero:
        print(start + text, flush=True)


def fit(trainer: Trainer, training: Training, checkpoint: Path | None) -> None:
    """Call `trainer.fit`; convert errors of Lightning to ConfigurationError, and Ctrl-C to KeyboardInterrupt."""
    try:
        trainer.fit(training.ppo, train_dataloaders=training.collector, ckpt_path=checkpoint, weights_only=True)
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
    if trainer.is_global_zero and (trainer.ckpt_path is not None or not path.exists()):
        OmegaConf.save(cfg, path, resolve=True)
        path.with_name("overrides.yaml").write_text(yaml.safe_dump(overrides))


def silence_lightning() -> None:
    """Silence messages of Lightning that users cannot act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hardware, tips
    # The directory exists because it holds the lock.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning 2.6 on torch 2.13


@contextmanager
def locked(run_dir: Path, *, is_used: bool) -> Iterator[None]:
    """Create a run directory, or with `is_used` take that of a run that continues, and lock it for this process.

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
        if not is_used and (run_dir / "config.yaml").exists():
            raise ConfigurationError(
                f"run_dir={run_dir} already holds a run; choose another run_dir, delete this folder, or continue the "
                f"run with torchppo resume {run_dir}"
            )
        yield


def check_precision(trainer: Trainer) -> None:
    """Raise a ConfigurationError if the precision is not supported, before the run directory exists."""
    if (name := trainer.precision) in ("64-true", "bf16-true", "16-true"):
        message = "does not fit the environments' float32; use 32-true, bf16-mixed or 16-mixed"
        raise ConfigurationError(f"trainer.precision={name} {message}")


class Evaluator:
    """Evaluates policies with the same seed each time, in environments that are made once.

    Evaluations do not change the random state of training. They return `None` if `stop` receives a signal.
    """

    def __init__(self, cfg: DictConfig, stop: StopOnSignal) -> None:
        self._cfg, self._stop = cfg, stop
        self._seed = seed_for_rank(cfg.seed, EVALUATION_RANK)
        self._env: EnvBase | None = None

    def make_env(self) -> None:
        """Make the environments. Call this before training starts threads, which forked processes do not inherit."""
        with isolate_rng():
            try:
                self._env = build_evaluation_env(self._cfg, seed=self._seed, episodes=self._cfg.eval.episodes)
            except EnvironmentFailure as error:
                raise EnvironmentFailure(f"evaluation: {error}; eval.episodes=0 disables evaluations") from error

    def resume_class(self) -> str | None:
        """Return the class of the environments (see `SlicedVectorEnv`); `None` if those of training may differ."""
        vector = vector_of(cast(EnvBase, self._env))
        if not isinstance(vector, SlicedVectorEnv) or evaluation_config(self._cfg).env != self._cfg.env:
            return None
        with isolate_rng():
            return vector.own_resume_class()

    def __call__(self, actor: Any) -> Evaluation | None:
        return self._stop.interruptible(lambda: self._evaluate(actor))

    def _evaluate(self, actor: Any) -> Evaluation:
        env, options = cast(EnvBase, self._env), self._cfg.eval
        with isolate_rng():
            env.set_seed(self._seed)
            compile_mode = evaluation_compile(self._cfg)
            return evaluate(actor, env, options.episodes, max_steps=options.max_steps, compile=compile_mode)

    def close(self) -> None:
        if self._env is not None and not self._env.is_closed:
            self._env.close()
            torch.set_num_threads(self._cfg.num_threads)  # closing TorchRL's SerialEnv changes it


def write_results(cfg: DictConfig, training: Training, summary: Summary) -> None:
    """Write summary, learning curve and video, and print the results and the paths of the files."""
    run_dir = Path(cfg.run_dir)
    write_summary(summary, run_dir / "summary.json")
    print_summary(summary)
    files = {"checkpoint": run_dir / "checkpoints" / "last.ckpt"}
    for logger in [one for one in training.ppo.trainer.loggers if isinstance(one, CSVLogger)][:1]:
        files["learning curve"] = run_dir / "learning_curve.png"
        title = f"{summary['env']}, seed {summary['seed']}"
        plot_learning_curve(Path(logger.log_dir, "metrics.csv"), files["learning curve"], title)
    if cfg.eval.video and cfg.eval.episodes and summary["exit"] == "completed":
        seed = seed_for_rank(cfg.seed, EVALUATION_RANK)
        video = try_to_record_video(cfg, training.ppo.actor, run_dir / "videos" / "last.mp4", seed, episodes=1)
        files |= {"video": video} if video else {}
    print_files(files)
