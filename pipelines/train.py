"""One training run, from its configuration to its summary."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LambdaCallback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from .. import __version__
from ..errors import ConfigurationError, RunLockedError
from .build import (
    EVALUATION_RANK,
    Training,
    build_evaluation_env,
    build_trainer,
    build_training,
    env_name,
    seed_of,
    traces_evaluation,
)
from .callbacks.evaluation import EvaluateAndSave
from .callbacks.progress import ProgressBar, Stopwatch
from .callbacks.stop_on_signal import StopOnSignal
from .collectors.collector import seconds_of
from .episodes import Evaluation, envs_for, evaluate
from .precision import bf16_speed
from .run_files.summary import Summary, plot_learning_curve, print_files, print_summary, write_summary
from .run_files.video import try_to_film


def train(cfg: DictConfig, overrides: list[str]) -> int:
    """Run a training and leave everything behind in `cfg.run_dir`.

    Args:
        cfg: the composed configuration, `run_dir` set.
        overrides: the command line's changes, kept beside the configuration.

    Returns:
        The exit code: 0, or 128 and the signal's number if one stopped the training.

    Raises:
        TorchPPOError: naming the key, the value and the way out.

    """
    if cfg.num_threads < 1:
        raise ConfigurationError(f"num_threads={cfg.num_threads} must be at least 1")
    quieten_lightning()
    torch.set_num_threads(cfg.num_threads)
    run_dir = Path(cfg.run_dir)
    stop, stopwatch = StopOnSignal(), Stopwatch()
    keep = LambdaCallback(on_train_batch_start=lambda trainer, *_: keep_configuration(trainer, cfg, overrides))
    evaluation = EvaluateAndSave(evaluator(cfg), run_dir / "checkpoints", cfg.eval.every_frames, cfg.eval.stop_at, stop)
    trainer = build_trainer(cfg, [keep, stopwatch, ProgressBar(), evaluation, stop])
    seed_everything(seed_of(cfg.seed, trainer.global_rank), verbose=False)
    training = build_training(cfg, trainer.global_rank)
    with closing(training.env), owned(run_dir) if trainer.is_global_zero else nullcontext():
        if trainer.is_global_zero:
            tell_if_bf16_is_slower(trainer)
        try:
            trainer.fit(training.ppo, train_dataloaders=training.collector)
        except MisconfigurationException as error:  # what Lightning sees only now
            raise ConfigurationError(f"trainer: {error}") from error
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            raise error.__context__ from None  # Lightning's answer to Ctrl-C before the first rollout
        if trainer.is_global_zero:
            leave_behind(cfg, training, summary_of(cfg, training, stopwatch.seconds, evaluation.last, stop.received))
    return 0 if stop.received is None else 128 + stop.received


def keep_configuration(trainer: Trainer, cfg: DictConfig, overrides: list[str]) -> None:
    """Write it beside the run, once there is something to keep: a directory with a configuration is taken."""
    path = Path(cfg.run_dir) / "config.yaml"
    if trainer.is_global_zero and not path.exists():  # other ranks have a run_dir of a later second
        OmegaConf.save(cfg, path, resolve=True)
        path.with_name("overrides.yaml").write_text(yaml.safe_dump(overrides))


def quieten_lightning() -> None:
    """Silence what a person who trains can do nothing about."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # hardware found, tips
    # It holds the lock alone.
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")  # Lightning 2.6 on torch 2.13


def tell_if_bf16_is_slower(trainer: Trainer) -> None:
    """Say in one line where mixed precision would not pay."""
    if (
        trainer.precision == "bf16-mixed"
        and trainer.strategy.root_device.type == "cpu"
        and (speed := bf16_speed()) < 0.9
    ):
        Console(stderr=True, soft_wrap=True).print(
            f"trainer.precision=bf16-mixed: this processor multiplies in bfloat16 at {speed:.1f} times the speed of "
            "float32; 32-true is faster here"
        )


@contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """A new run directory that belongs to this process alone.

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
            raise ConfigurationError(f"run_dir={run_dir} already holds a run; choose another, or remove it")
        yield


def evaluator(cfg: DictConfig) -> Callable[[Any], Evaluation]:
    """A function that plays the evaluation's episodes with a policy, the same ones each time."""
    if cfg.eval.episodes < 1:
        raise ConfigurationError(f"eval.episodes={cfg.eval.episodes} must be at least 1")

    def run(actor: Any) -> Evaluation:
        seed, num_envs = seed_of(cfg.seed, EVALUATION_RANK), envs_for(cfg.eval.episodes)
        with closing(build_evaluation_env(cfg, seed=seed, num_envs=num_envs)) as env:
            result = evaluate(actor, env, cfg.eval.episodes, trace=traces_evaluation(cfg))
        torch.set_num_threads(cfg.num_threads)  # TorchRL's SerialEnv takes more when it is closed
        return result

    return run


def summary_of(
    cfg: DictConfig, training: Training, seconds: float, evaluation: Evaluation | None, signal_number: int | None
) -> Summary:
    """The figures of a run, as `summary.json` holds them."""
    ppo = training.ppo
    returns = [episode[0] for episode in ppo.episodes]
    parts = {name: part / seconds for name, part in (seconds_of(training.collector) | ppo.seconds).items()}
    accounted = sum(parts.get(name, 0.0) for name in ("collect", "estimate", "update"))
    return {
        "env": env_name(cfg),
        "seed": cfg.seed,
        "frames": ppo.frames,
        "wall_seconds": seconds,
        "frames_per_second": ppo.frames / seconds,
        "environment_frames_per_second": environment_speed(training),
        "train_return_mean": sum(returns) / len(returns) if returns else None,
        "train_episodes": ppo.num_episodes,
        "eval_return_mean": evaluation.mean if evaluation else None,
        "eval_return_std": evaluation.std if evaluation else None,
        "eval_episodes": len(evaluation.returns) if evaluation else 0,
        "time": {**parts, "other": 1 - accounted},
        "exit": "completed" if signal_number is None else "interrupted",
        "version": __version__,
    }


def environment_speed(training: Training) -> float | None:
    """Frames per second of the environment alone, where its time is known."""
    environment = seconds_of(training.collector).get("environment")
    return training.ppo.frames / environment if environment else None


def leave_behind(cfg: DictConfig, training: Training, summary: Summary) -> None:
    """Write the summary, the learning curve and the video, and say what was reached and where everything is."""
    run_dir = Path(cfg.run_dir)
    write_summary(summary, run_dir / "summary.json")
    print_summary(summary)
    files = {"checkpoint": run_dir / "checkpoints" / "last.ckpt"}
    if "csv" in cfg.logger:
        files["picture"] = run_dir / "learning_curve.png"
        plot_learning_curve(run_dir / "metrics.csv", files["picture"], f"{summary['env']}, seed {summary['seed']}")
    if cfg.eval.video and summary["exit"] == "completed":
        video = try_to_film(
            cfg, training.ppo.actor, run_dir / "videos" / "last.mp4", seed_of(cfg.seed, EVALUATION_RANK)
        )
        files |= {"video": video} if video else {}
    print_files(files)
