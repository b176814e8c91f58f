"""The command `torchppo train` in a directory that already holds a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from ...errors import ConfigurationError
from ..checkpoint import newest_checkpoint
from ..run_files.summary import FINISHED, read_summary
from ..train import train
from .continue_run import move_run

NOT_COMPARED = ("run_dir", "resume", "code_dirs")
"""Keys that may differ when a run continues."""


def train_again(cfg: DictConfig, overrides: list[str], *, is_first_rank: bool = True) -> int:
    """Continue the run in `cfg.run_dir` if that is wanted: by `resume=auto`, by SLURM, or because it was requeued.

    Args:
        cfg: the composed configuration.
        overrides: overrides of the command line.
        is_first_rank: whether this process prints.

    Returns:
        The exit code of `train`; 0 if the run is finished.

    Raises:
        ConfigurationError: if the run has another configuration, or need not be continued.

    """
    run_dir = Path(cfg.run_dir)
    end = read_summary(run_dir).get("exit")
    if not (cfg.resume.auto or is_requeued() or end == "requeue"):
        return train(cfg, overrides)  # refuses the directory
    stored = cast(DictConfig, OmegaConf.load(run_dir / "config.yaml"))
    move_run(stored, run_dir)
    if changed := sorted(differing_keys(OmegaConf.to_container(stored), OmegaConf.to_container(cfg, resolve=True))):
        raise ConfigurationError(
            f"run_dir={run_dir} holds a run with another configuration ({'; '.join(changed[:5])}); use the same one, "
            "choose another run_dir, or train for longer with torchppo resume"
        )
    if end in FINISHED:
        if is_first_rank:
            print(f"{run_dir} is finished; nothing is left to do", flush=True)
        return 0
    saved = [path for path in (run_dir / "checkpoints").glob("*.ckpt") if path.stem in ("last", "previous")]
    return train(cfg, overrides, newest_checkpoint(run_dir)[0] if saved else None, is_used=True)


def is_requeued() -> bool:
    """Return whether SLURM has started this job before."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return count.isdigit() and int(count) > 0


def differing_keys(stored: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys whose values differ in two configurations, with both values."""
    for key in {**stored, **new}:
        name = f"{prefix}{key}"
        before, after = (None, None) if name in NOT_COMPARED else (stored.get(key), new.get(key))
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differing_keys(before, after, f"{name}.")
        elif before != after:
            yield f"{name} is {before}, not {after}"
