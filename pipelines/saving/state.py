"""What a training continues from besides weights and optimizer, and whether a checkpoint fits the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from omegaconf import DictConfig
from torch import nn

from ... import __version__
from ...envs.resume.plain_data import load_random_state, save_random_state
from ...envs.vector_env import vector_of
from ...errors import CheckpointError, ConfigurationError
from ..collectors.fixed_resets import follows_seed
from ..distributed import gathered, num_ranks, raise_on_all_ranks, rank
from ..step_factory import warn_once
from .files import verify_checksum
from .plain_checkpoints import require_complete

RESUME_TEXTS = {
    "snapshot": "a restart continues exactly (snapshot: the state of the environments is saved)",
    "replay": "a restart continues exactly (replay: the current episodes are repeated)",
    "reset": "a restart continues exactly (reset: new episodes start every checkpoint.every_frames)",
    "inexact": "a restart begins new episodes (inexact)",
}


def training_state(ppo: Any) -> dict[str, Any]:
    """Return the state of a training as plain data. All ranks must call it.

    Lightning saves the weights, the optimizer, the callbacks, and the collector of rank 0.
    """
    collector = None if ppo._trainer is None else ppo.trainer.train_dataloader
    return {
        "config": ppo.config,
        "versions": versions(),
        "environment": environment_of(collector),
        "frames": ppo.frames,
        "total_frames": ppo.total_frames,
        "num_rollouts": ppo.num_rollouts,
        "seconds": dict(ppo.seconds),
        "update": ppo.update.state_dict(),
        "coefficients": ppo.coefficients.state_dict(),
        "resume_class": resume_class_of(collector),
        "ranks": gathered([rank_state(ppo, collector)]),
        "metrics": last_metrics(ppo),
        **ppo.episodes.state_dict(),
    }


def last_metrics(ppo: Any) -> dict[str, float]:
    """Return the last value of every metric that callbacks read. Some metrics have no value in every rollout."""
    metrics = {} if ppo._trainer is None else ppo.trainer.callback_metrics
    found = {name: value.item() for name, value in metrics.items() if name[:5] != "time/"}
    return found if ppo._resumed is None else {**ppo._resumed["metrics"], **found}  # not restored yet


def versions() -> dict[str, str]:
    """Return the versions that a bitwise continuation depends on."""
    return {"torchppo": __version__, "torch": str(torch.__version__)}


def environment_of(collector: Any) -> dict[str, Any]:
    """Return the id, observations and actions of a collector's environment; empty if it has none."""
    env = getattr(collector, "env", None)
    if env is None:
        return {}
    num_dims = len(env.batch_size)
    specs = {
        **dict(env.observation_spec.items(include_nested=True, leaves_only=True)),
        **dict(env.full_action_spec.items(include_nested=True, leaves_only=True)),
    }
    spaces = {
        key
        if isinstance(key, str)
        else "/".join(key): f"{type(spec).__name__}{list(spec.shape[num_dims:])} {spec.dtype}"
        for key, spec in specs.items()
    }
    return {"id": getattr(getattr(vector_of(env), "spec", None), "id", None), "spaces": spaces}


def rank_state(ppo: Any, collector: Any) -> dict[str, Any]:
    """Return the state of this rank: its random numbers, and on other ranks than 0 what rank 0 saves elsewhere."""
    if ppo._resumed is not None and len(ppo._resumed["ranks"]) == num_ranks():
        return dict(ppo._resumed["ranks"][rank()])  # not restored yet, because the training has not started
    state: dict[str, Any] = {"random": save_random_state()}
    if rank() > 0:
        state["collector"] = collector.state_dict() if hasattr(collector, "state_dict") else {}
        state["modules"] = {name: module.get_extra_state() for name, module in modules_with_state(ppo).items()}
    return state


def modules_with_state(ppo: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that save more than tensors, such as `RewardNormalizer`."""
    default = nn.Module.get_extra_state
    return {name: module for name, module in ppo.named_modules() if type(module).get_extra_state is not default}


def load_training_state(ppo: Any, checkpoint: Mapping[str, Any]) -> None:
    """Restore counters and statistics; `start_training` restores the rest.

    Raises:
        CheckpointError: if the file that the Trainer reads is damaged, not complete, or does not fit. Nothing has
            changed then.

    """
    require_complete("the checkpoint", checkpoint)  # a user's own CheckpointIO may have read it
    if ppo._trainer is not None and ppo.trainer.ckpt_path is not None:
        path = Path(ppo.trainer.ckpt_path)
        if path.is_file():
            verify_checksum(path, path.read_bytes())
        raise_on_misfit(ppo, collector_of(ppo.trainer), checkpoint, path)
    state = checkpoint["torchppo"]
    ppo.frames, ppo.num_rollouts = state["frames"], state["num_rollouts"]
    ppo.seconds.update(state["seconds"])
    ppo.update.load_state_dict(state["update"])
    ppo.coefficients.load_state_dict(state["coefficients"])
    ppo.episodes.load_state_dict(state)


def raise_on_misfit(ppo: Any, collector: Any, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Compare versions, environment, spaces and weights with those of a training. Other versions are a warning.

    Raises:
        CheckpointError: if the checkpoint does not fit.

    """
    state = checkpoint["torchppo"]
    if state["versions"] != versions():
        texts = [", ".join(map(" ".join, found.items())) for found in (state["versions"], versions())]
        warn_once(
            f"torchppo: {path} was saved with {texts[0]}, and this is {texts[1]}; results may differ from one run"
        )
    saved, own = state["environment"], environment_of(collector)
    for name, kind in (("id", "environment"), ("spaces", "spaces")):
        if name in saved and name in own and saved[name] != own[name]:
            raise CheckpointError(
                f"{path} does not fit the {kind}: it has {saved[name]}, not {own[name]}; continue with the environment "
                "of the training, or load only the weights with torchppo.load_policy"
            )
    shapes = [
        {name: tuple(value.shape) for name, value in weights.items() if isinstance(value, torch.Tensor)}
        for weights in (checkpoint["state_dict"], ppo.state_dict())
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        pair = [one.get(name, "nothing") for one in shapes]
        if pair[0] != pair[1] and not name.endswith("_extra_state"):
            raise CheckpointError(
                f"{path} does not fit the components: {name} has the shape {pair[0]}, not {pair[1]}; build them as in "
                "the training"
            )


def collector_of(trainer: Trainer) -> Any:
    """Return the collector before Lightning has set it up. Tested with Lightning 2.6."""
    return trainer.fit_loop._data_source.instance


def has_same_end(ppo: Any) -> bool:
    """Return whether a training continues from a checkpoint to the same `total_frames`."""
    return ppo._resumed is not None and ppo._resumed["total_frames"] == ppo.total_frames


def restore_random_state(ppo: Any) -> None:
    """Restore the random numbers of the checkpoint that a training continues from."""
    if ppo._resumed is not None and len(ppo._resumed["ranks"]) == num_ranks():
        load_random_state(ppo._resumed["ranks"][rank()]["random"])


def start_training(ppo: Any) -> None:
    """Test how the episodes can continue, or continue from a checkpoint: the last thing before the first rollout."""
    collector, resumed = ppo.trainer.train_dataloader, ppo._resumed
    if resumed is not None:
        metrics = {name: torch.tensor(value) for name, value in resumed["metrics"].items()}
        ppo.trainer.callback_metrics.update(metrics)
    if resumed is not None and hasattr(collector, "load_state_dict"):
        load_collector(ppo.trainer)
        saved = len(resumed["ranks"])
        if saved != num_ranks():  # Lightning has loaded the episodes of rank 0 on every rank
            warn_once(f"torchppo: {saved} ranks saved the checkpoint and {num_ranks()} continue, so new episodes start")
            collector.load_state_dict({**collector.state_dict(), "rollouts": {}})
        else:
            raise_on_all_ranks(lambda: load_own_state(ppo, resumed["ranks"][rank()]) if rank() > 0 else None)
    restore_random_state(ppo)
    if has_same_end(ppo) and any(one.wait_count >= one.patience for one in ppo.trainer.early_stopping_callbacks):
        ppo.trainer.should_stop = True  # `EarlyStopping` had ended the training
    if set_class := getattr(collector, "set_resume_class", None):
        set_class()
    ppo._resumed = None


def load_own_state(ppo: Any, state: Mapping[str, Any]) -> None:
    """Restore the state that differs between ranks: the episodes of environments, and the extra state of modules."""
    ppo.trainer.train_dataloader.load_state_dict(state["collector"])
    for name, module in modules_with_state(ppo).items():
        module.set_extra_state(state["modules"][name])


def load_collector(trainer: Any) -> None:
    """Load the state of the collector from a checkpoint that was saved when a training ended.

    Lightning skips it there, because the checkpoint says that its only epoch is complete. Tested with Lightning 2.6.
    """
    loop = trainer.fit_loop
    if (states := loop._combined_loader_states_to_load) and hasattr(trainer.train_dataloader, "load_state_dict"):
        loop._combined_loader._load_state_dicts(states)
        loop._combined_loader_states_to_load = []


def resume_class_of(collector: Any) -> str:
    """Return how the episodes of a collector continue after a restart."""
    return str(getattr(collector, "resume_class", "inexact"))


def describe_resume(collector: Any, name: str | None, found: str | None, cfg: DictConfig) -> str:
    """Return a sentence on how a training continues after a restart.

    Args:
        collector: receives its `resume_class` at the first start.
        name: the `resume_class` that a checkpoint stored; `None` at the first start.
        found: the `resume_class` that other environments have; `None` tests new environments.
        cfg: if `resume.require_exact` is set, `reset` replaces `inexact`, with resets after `checkpoint.every_frames`.

    Raises:
        ConfigurationError: if `resume.require_exact` is set and the class is `inexact`.

    """
    require_exact, every_frames = cfg.resume.require_exact, cfg.checkpoint.every_frames
    if name is None:
        if set_class := getattr(collector, "set_resume_class", None):
            set_class(found)
        name = resume_class_of(collector)
        may_reset = require_exact and every_frames and getattr(collector, "may_reset", False)
        if name == "inexact" and may_reset and follows_seed(collector.env):
            collector.reset_every(every_frames)
            name = "reset"
    if name == "inexact" and require_exact:
        hint = "keep the state of the environment in plain attributes, or make a seed determine its episodes"
        if not every_frames:
            hint = "or set checkpoint.every_frames, so that new episodes start at every checkpoint"
        raise ConfigurationError(
            "resume.require_exact=true, but the episodes of this environment cannot continue after a restart; set it "
            f"to false, {hint}"
        )
    return RESUME_TEXTS[name]
