"""What a training continues from, in addition to weights and optimizer: counters, random numbers and episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...envs.vector.plain_data import load_random_state, save_random_state
from ..distributed import gathered, num_ranks, rank


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
    """Restore counters and statistics; `continue_training` restores the rest when the training starts."""
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
    if test := getattr(collector, "test_resume", None):
        test()


def resume_class_of(collector: Any) -> str:
    """Return how the episodes of a collector continue after a restart."""
    return str(getattr(collector, "resume_class", "inexact"))
