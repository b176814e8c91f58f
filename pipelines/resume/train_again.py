"""The command `torchppo train` in a directory that already holds a run."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from ...errors import ConfigurationError
from ..run_files.summary import FINISHED, read_summary
from ..saving.plain_checkpoints import newest_checkpoint
from ..train import train
from .continue_run import differing_keys, read_config


def train_again(cfg: DictConfig, overrides: list[str]) -> int:
    """Continue the run in `cfg.run_dir` if that is wanted: by `resume=auto`, by SLURM, or because it was requeued.

    Args:
        cfg: the composed configuration.
        overrides: overrides of the command line.

    Returns:
        The exit code of `train`; 0 if the run is finished.

    Raises:
        ConfigurationError: if the run has another configuration, or need not be continued.

    """
    run_dir = Path(cfg.run_dir)
    end = read_summary(run_dir).get("exit")
    if not (cfg.resume.auto or is_requeued() or end == "requeue"):
        return train(cfg, overrides)  # refuses the directory
    stored = read_config(run_dir)
    if stored is None:
        raise ConfigurationError(
            f"{run_dir / 'config.yaml'} is damaged; use torchppo resume {run_dir}, or delete this folder"
        )
    if changed := sorted(differing_keys(stored, OmegaConf.to_container(cfg, resolve=True))):
        raise ConfigurationError(
            f"run_dir={run_dir} holds a run with another configuration ({'; '.join(changed[:5])}); use the same one, "
            "choose another run_dir, or train for longer with torchppo resume"
        )
    if end in FINISHED:
        rank_zero_only(print)(f"{run_dir} is finished; nothing is left to do", flush=True)
        return 0
    saved = [path for path in (run_dir / "checkpoints").glob("*.ckpt") if path.stem in ("last", "previous")]
    return train(cfg, overrides, newest_checkpoint(run_dir.absolute())[0] if saved else None, is_used=True)


def is_requeued() -> bool:
    """Return whether SLURM has started this job before."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return count.isdigit() and int(count) > 0
