"""The command `torchppo eval`. Importing this file imports PyTorch."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path

from ...envs.guards import Watchdog
from ...errors import CheckpointError
from ..evaluate import evaluate_checkpoint
from ..run_files.failure import end_process
from ..run_files.summary import print_evaluation
from ..run_files.video import require_writable
from ..stopping.stop_on_signal import StopOnSignal
from .config import parse


def run(arguments: argparse.Namespace) -> int:
    """Run `torchppo eval`."""
    if arguments.video:
        require_writable(arguments.video)
    records_video = not arguments.no_video and arguments.render is None
    with StopOnSignal() as stop, Watchdog(end_process), stdout_to_stderr() if arguments.json else nullcontext():
        stop.watch()
        report = evaluate_checkpoint(
            arguments.checkpoint,
            episodes=arguments.episodes,
            seed=arguments.seed,
            video=(arguments.video or default_video(arguments.checkpoint)) if records_video else None,
            video_episodes=arguments.video_episodes,
            deterministic=not arguments.stochastic,
            render_mode=arguments.render,
            overrides=parse(arguments.overrides),
            trust=arguments.trust,
        )
    if arguments.json:
        print(json.dumps(report, allow_nan=False), flush=True)
        if sys.stdout is sys.__stdout__:  # an environment may print when the process ends
            os.dup2(2, 1)
    else:
        print_evaluation(report)
    return 0


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect the stdout of this process, its libraries and its child processes to stderr."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        with suppress(AttributeError, OSError, TypeError):  # flush the buffered output of C code
            ctypes.CDLL(None).fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


def default_video(checkpoint: Path) -> Path:
    """Return a path in the run directory of a checkpoint, or next to a checkpoint that is not in a run directory."""
    folder = checkpoint.resolve().parent
    path = (folder.parent / "videos" if folder.name == "checkpoints" else folder) / f"{checkpoint.stem}.mp4"
    if path.is_symlink() or path.parent.is_symlink():  # who made the directory must not choose what is overwritten
        raise CheckpointError(f"{path} is a link; choose a path with --video, or use --no-video")
    return path
