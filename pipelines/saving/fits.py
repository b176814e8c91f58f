"""Whether a checkpoint fits the training that continues from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from ...errors import CheckpointError
from ..step_factory import warn_once
from .state import environment_of, versions


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
        if name.endswith("_extra_state"):
            continue
        pair = [one.get(name, "nothing") for one in shapes]
        if pair[0] != pair[1]:
            raise CheckpointError(
                f"{path} does not fit the components: {name} has the shape {pair[0]}, not {pair[1]}; build them as in "
                "the training"
            )


def collector_of(trainer: Trainer) -> Any:
    """Return the collector before Lightning has set it up. Tested with Lightning 2.6."""
    return trainer.fit_loop._data_source.instance
