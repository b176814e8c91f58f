"""Trains one run, from its configuration to its summary: `torchppo train`."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig
from rich.console import Console
from torchrl.envs import EnvBase

from ..envs.guards import Watchdog
from ..envs.vector_env import vector_of
from ..errors import ConfigurationError, EnvironmentFailure
from .build import EVALUATION_RANK, Training, build_trainer, build_training, env_name, evaluation_compile
from .collectors.collector import seconds_of
from .components.instantiate import build_evaluation_env, check_same_spaces, evaluation_config, seed_for_rank
from .distributed import leave_group
from .episodes import EvaluateAndSave, Evaluation, evaluate
from .health.report import HealthReport
from .ppo import PPO
from .run_files.failure import end_process, report_failure, write_failure
from .run_files.progress import ProgressBar, ProgressLines, Stopwatch, silence_lightning
from .run_files.summary import (
    FINISHED,
    Summary,
    how_to_continue,
    make_summary,
    plot_learning_curve,
    print_files,
    print_summary,
    short_path,
    write_at_once,
    write_summary,
)
from .run_files.video import try_to_record_video
from .saving.files import locked, save_configuration
from .saving.state import describe_resume
from .stopping.processes import wait_for
from .stopping.signals import Stopped, exit_code, exit_name
from .stopping.stop_on_signal import StopOnSignal


def train(cfg: DictConfig, overrides: list[str], checkpoint: Path | None = None, *, is_used: bool = False) -> int:
    """Train and write everything to `cfg.run_dir`.

    Args:
        cfg: the composed configuration with `run_dir`.
        overrides: overrides of the command line, stored next to the configuration.
        checkpoint: the checkpoint that the run in `cfg.run_dir` continues from; `None` starts a new run.
        is_used: whether a new run may replace one in `cfg.run_dir` that has no checkpoint.

    Returns:
        The exit code: 0, or that of the signal that stopped the training.

    Raises:
        TorchPPOError: if training cannot start or fails; the message says what to do.

    """
    silence_lightning()
    torch.set_num_threads(cfg.num_threads)
    cfg.run_dir = str(Path(cfg.run_dir).absolute())  # an environment may change the working directory
    with StopOnSignal() as stop:
        try:
            run(cfg, overrides, checkpoint, stop, is_used=is_used or checkpoint is not None)
        except Stopped as stopped:
            stop.received = stopped.number
    leave_group()
    # Lightning kills rank 0 if a rank that it has launched returns anything else than 0.
    return 0 if stop.received is None or stop.is_launched else exit_code(stop.received)


def run(cfg: DictConfig, overrides: list[str], checkpoint: Path | None, stop: StopOnSignal, *, is_used: bool) -> None:
    """Build everything, train, and write the results; see `train`."""
    stopwatch, health, run_dir = Stopwatch(), HealthReport(), Path(cfg.run_dir)
    path = run_dir / "summary.json"
    save_config = LambdaCallback(
        on_train_batch_start=lambda trainer, *_: save_configuration(trainer, cfg, overrides),
        on_exception=lambda trainer, _, error: report_failure(run_dir, error, trainer, lambda: summary_of("failed")),
    )
    evaluator = Evaluator(cfg, stop) if cfg.eval.episodes else None
    evaluation, progress = make_evaluation(cfg, evaluator), ProgressBar() if Console().is_terminal else ProgressLines()
    trainer = build_trainer(cfg, [save_config, stopwatch, progress, health, evaluation, stop])
    seed_everything(seed_for_rank(cfg.seed, trainer.global_rank), verbose=False)
    watchdog = Watchdog(lambda error: end_process(error, lambda: write_failure(run_dir, error, save_at_once("failed"))))
    with ExitStack() as stack, watchdog:
        rank, num_ranks = trainer.global_rank, trainer.world_size
        training = stack.enter_context(closing(build_training(cfg, rank, overrides, num_ranks=num_ranks)))
        if evaluator and trainer.is_global_zero:
            stack.enter_context(closing(evaluator))
            evaluator.make_env(training.env)
        if trainer.is_global_zero:
            stack.enter_context(locked(short_path(run_dir), is_used=is_used))
        checkpoint = prepare_resume(cfg, trainer, training, evaluator, checkpoint)

        def summary_of(end: str) -> Summary:
            run: dict[str, Any] = {"env": env_name(cfg), "seed": cfg.seed, "overrides": overrides}
            run |= {"collector_seconds": seconds_of(training.collector), "wall_seconds": stopwatch.seconds}
            return make_summary(**run, ppo=training.ppo, evaluation=evaluation.last, end=end, health=health)

        def save_at_once(end: str) -> Summary:
            evaluation.last_checkpoint.save_from_memory()
            return summary_of(end) | {"frames": evaluation.last_checkpoint.frames}

        if trainer.is_global_zero:
            stop.before_exit = lambda number: write_at_once(save_at_once(exit_name(number)), run_dir)
        fit(trainer, training, checkpoint, stop)
        if evaluator:
            evaluator.close()  # before the environment of the video is made
        if trainer.is_global_zero:
            summary = summary_of(end_of(training.ppo, stop))
            try:
                write_results(cfg, training, summary)
            except Stopped as stopped:  # a run is not complete without its video
                write_summary(summary | {"exit": exit_name(stopped.number)}, path)
                raise


def make_evaluation(cfg: DictConfig, evaluator: Evaluator | None) -> EvaluateAndSave:
    """Make the callback that evaluates and saves checkpoints."""
    limits = {f"save_{name}": value for name, value in cfg.checkpoint.items()}
    directory = Path(cfg.run_dir) / "checkpoints"
    return EvaluateAndSave(evaluator, directory, cfg.eval.every_frames, cfg.eval.stop_at, **limits)


def prepare_resume(
    cfg: DictConfig, trainer: Trainer, training: Training, evaluator: Evaluator | None, checkpoint: Path | None
) -> Path | None:
    """Check the checkpoint, prepare the log files, and print how the run continues after the next restart.

    Return the checkpoint to load: `None` if it was saved before the first rollout, so that the run starts anew.
    """
    start, name, found = "", None, None
    if checkpoint is not None:
        from .run_files.continued_logs import continue_logs

        start = f"continuing from {short_path(checkpoint)}; "
        name, frames = continue_logs(trainer, training.ppo, training.collector, checkpoint)
        checkpoint, name = (checkpoint, name) if frames else (None, None)
    if checkpoint is None and evaluator is None:
        found = own_resume_class(training.env)  # because a second environment may be impossible
    elif checkpoint is None and evaluator is not None and trainer.is_global_zero:
        found = evaluator.resume_class()
    text = describe_resume(training.collector, name, found, cfg)
    if trainer.is_global_zero:
        print(start + text, flush=True)
    return checkpoint


def fit(trainer: Trainer, training: Training, checkpoint: Path | None, stop: StopOnSignal) -> None:
    """Call `trainer.fit`; convert errors of Lightning to ConfigurationError, and Ctrl-C to KeyboardInterrupt."""
    stop.watch()
    try:
        trainer.fit(training.ppo, train_dataloaders=training.collector, ckpt_path=checkpoint, weights_only=True)
    except MisconfigurationException as error:
        raise ConfigurationError(f"trainer: {error}; change trainer.*") from error
    except SystemExit as error:  # Lightning turns Ctrl-C before the first rollout into this
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise error.__context__ from None
    finally:
        if stop.received is not None:  # end the ranks that Lightning has started
            wait_for(getattr(trainer.strategy.launcher, "procs", []), seconds=5.0 if trainer.should_stop else 0.0)


def end_of(ppo: PPO, stop: StopOnSignal) -> str:
    """Return how a training ended: by a signal, after all its frames, or before (`eval.stop_at`, a callback)."""
    if stop.received is not None:
        return exit_name(stop.received)
    return "completed" if ppo.frames + ppo.frames / ppo.num_rollouts > ppo.total_frames else "stopped"


class Evaluator:
    """Evaluates policies with the same seed each time, in environments that are made once.

    Evaluations do not change the random state of training. They return `None` if `stop` receives a signal.
    """

    def __init__(self, cfg: DictConfig, stop: StopOnSignal) -> None:
        self._cfg, self._stop = cfg, stop
        self._seed = seed_for_rank(cfg.seed, EVALUATION_RANK)
        self._env: EnvBase | None = None

    def make_env(self, training_env: EnvBase) -> None:
        """Make the environments. Call this before training starts threads, which forked processes do not inherit."""
        with isolate_rng():
            try:
                self._env = build_evaluation_env(self._cfg, seed=self._seed, episodes=self._cfg.eval.episodes)
            except EnvironmentFailure as error:
                raise EnvironmentFailure(f"evaluation: {error}; eval.episodes=0 disables evaluations") from error
            if self._cfg.eval.env:
                check_same_spaces(self._env, training_env, "eval.env")

    def resume_class(self) -> str | None:
        """Return the class of the environments (see `SlicedVectorEnv`); `None` if those of training may differ."""
        if evaluation_config(self._cfg).env != self._cfg.env:
            return None
        env = cast(EnvBase, self._env)
        found, vector = own_resume_class(env), vector_of(env)
        if vector is not None and vector.own_steps:
            from .check.advice import print_advice

            print_advice(vector, vector.own_steps, self._cfg)
        return found

    def __call__(self, actor: Any) -> Evaluation | None:
        return self._stop.interruptible(lambda: self._evaluate(actor))

    def _evaluate(self, actor: Any) -> Evaluation:
        env, cfg = cast(EnvBase, self._env), self._cfg.eval
        with isolate_rng():
            env.set_seed(self._seed)
            return evaluate(actor, env, cfg.episodes, max_steps=cfg.max_steps, compile=evaluation_compile(self._cfg))

    def close(self) -> None:
        if self._env is not None and not self._env.is_closed:
            self._env.close()
            torch.set_num_threads(self._cfg.num_threads)  # closing TorchRL's SerialEnv changes it


def own_resume_class(env: EnvBase) -> str | None:
    """Return the class of environments after a test before their first reset; `None` without one."""
    vector = vector_of(env)
    return None if vector is None else vector.own_resume_class()


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
    if cfg.eval.video and cfg.eval.episodes and summary["exit"] in FINISHED:
        seed = seed_for_rank(cfg.seed, EVALUATION_RANK)
        video = try_to_record_video(cfg, training.ppo.actor, run_dir / "videos" / "last.mp4", seed, episodes=1)
        files |= {"video": video} if video else {}
    print_files(files)
    if summary["exit"] not in FINISHED:
        print(how_to_continue(run_dir))
