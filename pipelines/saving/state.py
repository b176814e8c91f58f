"""What a training continues from, in addition to weights and optimizer: counters, random numbers and episodes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...envs.resume.plain_data import load_random_state, save_random_state
from ...errors import ConfigurationError
from ..distributed import gathered, num_ranks, rank
from .files import verify_checksum

RESUME_TEXTS = {
    "snapshot": "a restart continues exactly (snapshot: the state of the environments is saved)",
    "replay": "a restart continues exactly (replay: the current episodes are repeated)",
    "inexact": "a restart begins new episodes (inexact)",
}


def training_state(ppo: Any) -> dict[str, Any]:
    """Return the state of a training as plain data. All ranks must call it.

    Lightning saves the weights, the optimizer, the callbacks, and the collector of rank 0.
    """
    collector = None if ppo._trainer is None else ppo.trainer.train_dataloader
    return {
        "config": ppo.config,
        "frames": ppo.frames,
        "total_frames": ppo.total_frames,
        "num_rollouts": ppo.num_rollouts,
        "seconds": dict(ppo.seconds),
        "update": ppo.update.state_dict(),
        "coefficients": ppo.coefficients.state_dict(),
        "resume_class": resume_class_of(collector),
        "ranks": gathered([rank_state(ppo, collector)]),
        **ppo.episodes.state_dict(),
    }


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


def load_training_state(ppo: Any, state: Mapping[str, Any]) -> None:
    """Restore counters and statistics; `start_training` restores the rest.

    Raises:
        CheckpointError: if the file that the Trainer reads is damaged.

    """
    path = None if ppo._trainer is None else ppo.trainer.ckpt_path
    if path is not None and Path(path).is_file():
        verify_checksum(Path(path), Path(path).read_bytes())
    ppo.frames, ppo.num_rollouts = state["frames"], state["num_rollouts"]
    ppo.seconds.update(state["seconds"])
    ppo.update.load_state_dict(state["update"])
    ppo.coefficients.load_state_dict(state["coefficients"])
    ppo.episodes.load_state_dict(state)


def start_training(ppo: Any, resumed: Mapping[str, Any] | None) -> None:
    """Test how the episodes can continue, or continue from a checkpoint: the last thing before the first rollout.

    Args:
        ppo: the LightningModule.
        resumed: the `training_state` that was loaded, or `None` at the first start.

    """
    collector = ppo.trainer.train_dataloader
    if resumed is not None and len(resumed["ranks"]) == num_ranks():
        own = resumed["ranks"][rank()]
        if rank() > 0 and hasattr(collector, "load_state_dict"):
            collector.load_state_dict(own["collector"])
            for name, module in modules_with_state(ppo).items():
                module.set_extra_state(own["modules"][name])
        load_random_state(own["random"])
    if set_class := getattr(collector, "set_resume_class", None):
        set_class()


def load_collector(trainer: Any) -> None:
    """Load the state of the collector from a checkpoint that was saved when a training ended.

    Lightning skips it there, because the checkpoint says that its only epoch is complete. Tested with Lightning 2.6.
    """
    loop = trainer.fit_loop
    if states := loop._combined_loader_states_to_load:
        loop._combined_loader._load_state_dicts(states)
        loop._combined_loader_states_to_load = []


def resume_class_of(collector: Any) -> str:
    """Return how the episodes of a collector continue after a restart."""
    return str(getattr(collector, "resume_class", "inexact"))


def describe_resume(collector: Any, name: str | None, found: str | None, *, require_exact: bool) -> str:
    """Return a sentence on how a training continues after a restart.

    Args:
        collector: receives its `resume_class` at the first start.
        name: the `resume_class` that a checkpoint stored; `None` at the first start.
        found: the `resume_class` that other environments have; `None` tests new environments.
        require_exact: whether to refuse `inexact`.

    Raises:
        ConfigurationError: if `require_exact` is set and the class is `inexact`.

    """
    if name is None:
        if set_class := getattr(collector, "set_resume_class", None):
            set_class(found)
        name = resume_class_of(collector)
    if name == "inexact" and require_exact:
        raise ConfigurationError(
            "resume.require_exact=true, but the episodes of this environment cannot continue after a restart; set it "
            "to false, or keep the state of the environment in plain attributes"
        )
    return RESUME_TEXTS[name]
