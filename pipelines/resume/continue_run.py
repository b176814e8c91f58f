"""The command `torchppo resume`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...errors import CheckpointError, ConfigurationError
from ..run_files.summary import FINISHED, read_summary
from ..saving.existing import require_run
from ..saving.plain_checkpoints import newest_checkpoint
from ..saving.trusted import is_inside, trusted_config
from ..train import train

CHANGEABLE_KEYS = ("run_dir", "resume", "code_dirs")
"""Keys that may differ when a run continues."""


def resume_run(path: Path, overrides: Sequence[str] = (), trust: Sequence[str] = ()) -> int:
    """Continue a run in its directory from its last checkpoint.

    Args:
        path: the directory of the run, or one of its checkpoints.
        overrides: nothing, or `total_frames=...`.
        trust: packages that the checkpoint may name, see `trusted_config`.

    Returns:
        The exit code of `train`; 0 if the run is complete.

    Raises:
        CheckpointError: if there is no valid checkpoint, it was trained from Python, or it names code that is not
            trusted.
        ConfigurationError: if an override is not a larger `total_frames`.

    """
    require_run(path)
    checkpoint, content = newest_checkpoint(path.absolute())
    state = content["torchppo"]
    if not state["config"]:
        raise CheckpointError(
            f"{checkpoint} has no configuration, because it was trained from Python; use trainer.fit(ppo, "
            f'collector, ckpt_path="{checkpoint}")'
        )
    cfg = trusted_config(checkpoint, state["config"], trust)
    run_dir = run_dir_of(checkpoint)
    move_run(cfg, run_dir)
    words = read_overrides(run_dir)
    if total_frames := new_total_frames(overrides, state["frames"]):
        cfg.total_frames = total_frames
        words = [word for word in words if not word.startswith("total_frames=")] + [f"total_frames={total_frames}"]
    elif is_complete(run_dir, state["frames"]):
        print(f"{path} is complete after {state['frames']:,} frames; add total_frames=... to train longer")
        return 0
    require_no_links(run_dir)
    require_same_run(cfg, run_dir, checkpoint)
    return train(cfg, words, checkpoint)


def run_dir_of(checkpoint: Path) -> Path:
    """Return the directory of the run that a checkpoint belongs to. What the file itself says may be anything."""
    folder = checkpoint.absolute().parent
    if folder.name != "checkpoints":
        raise CheckpointError(
            f"{checkpoint} is not in a folder named checkpoints; move it to <run>/checkpoints, to continue in <run>"
        )
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else folder.parent


def read_config(run_dir: Path) -> dict[str, Any] | None:
    """Return `config.yaml` of a run with its current folder, or `None` if the file is missing or damaged."""
    try:
        cfg = OmegaConf.load(run_dir / "config.yaml")
        if not isinstance(cfg, DictConfig):
            return None
        move_run(cfg, run_dir)
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    except (FileNotFoundError, yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, AttributeError):
        return None


def require_same_run(cfg: DictConfig, run_dir: Path, checkpoint: Path) -> None:
    """Raise a CheckpointError if the configuration of a checkpoint differs from that of its run directory."""
    stored, own = read_config(run_dir), OmegaConf.to_container(cfg)
    changed = [] if stored is None else sorted(differing_keys({**stored, "total_frames": cfg.total_frames}, own))
    if changed:
        raise CheckpointError(
            f"{checkpoint} does not belong to the run of {run_dir / 'config.yaml'} ({'; '.join(changed[:5])}); to "
            "continue it, move it to a new folder <name>/checkpoints"
        )


def differing_keys(stored: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys whose values differ in two configurations, with both values."""
    for key in {**stored, **new}:
        name = f"{prefix}{key}"
        before, after = (None, None) if name in CHANGEABLE_KEYS else (stored.get(key), new.get(key))
        if isinstance(before, dict) and isinstance(after, dict):
            yield from differing_keys(before, after, f"{name}.")
        elif before != after:
            yield f"{name} is {before}, not {after}"


def require_no_links(run_dir: Path) -> None:
    """Raise a CheckpointError if a link in the directory of a run leads out of it: the run would write there."""
    root = run_dir.resolve()
    for path in run_dir.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise CheckpointError(f"{path} is a link out of the run directory; replace it by what it points to")


def move_run(cfg: DictConfig, run_dir: Path) -> None:
    """Set the directory of a run, also in the options of its loggers."""
    old, new = str(cfg.run_dir), str(run_dir)
    for logger in cfg.logger.values():
        for key, value in logger.items():
            if isinstance(value, str) and is_inside(value, old):
                scheme = "file:" if value.startswith("file:") else ""
                logger[key] = scheme + new + value.removeprefix(scheme).removeprefix(old)
    cfg.run_dir = new


def read_overrides(run_dir: Path) -> list[str]:
    """Return the overrides that the run was started with; empty without a file."""
    path = run_dir / "overrides.yaml"
    try:
        words = yaml.safe_load(path.read_text()) if path.is_file() else []
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not YAML ({error}); delete it") from error
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def new_total_frames(overrides: Sequence[str], frames: int) -> int | None:
    """Return the number in `total_frames=...`, or `None` without overrides."""
    found = None
    for word in overrides:
        name, _, value = word.partition("=")
        if name != "total_frames":
            raise ConfigurationError(f"{word} cannot change when a run continues; only total_frames=... can")
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            number = float("nan")
        if not (number.is_integer() and number > frames):
            raise ConfigurationError(f"{word} must be an integer above {frames}, the frames of the checkpoint")
        found = int(number)
    return found


def is_complete(run_dir: Path, frames: int) -> bool:
    """Return whether a run has written the summary of all its frames."""
    summary = read_summary(run_dir)
    return summary.get("exit") in FINISHED and summary.get("frames") == frames
