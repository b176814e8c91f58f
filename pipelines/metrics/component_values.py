"""The hyperparameters of components that were built in Python."""

from __future__ import annotations

from typing import Any

from torch import nn

COMPONENTS = ("objective", "estimator", "critic_estimator", "update", "reward_normalizer")
OPTIONS = ("total_frames", "max_grad_norm", "normalize_advantage", "value_pretraining")


def component_values(module: Any) -> dict[str, Any]:
    """Return the options and the scalars of the components of a LightningModule, as `{"optimizer.lr": 0.001}`."""
    found = {name: getattr(module, name, None) for name in OPTIONS}
    parts = {name: getattr(module, name, None) for name in COMPONENTS} | {"collector": module.trainer.train_dataloader}
    for name, part in parts.items():
        found |= {f"{name}.{key}": value for key, value in attributes(part).items()}
    found |= {f"optimizer.{key}": value for key, value in module.optimizer.defaults.items()}
    return {key: value for key, value in found.items() if isinstance(value, bool | int | float | str)}


def attributes(component: Any) -> dict[str, Any]:
    """Return the public attributes of a component and its buffers of one element as numbers."""
    found = {name: value for name, value in getattr(component, "__dict__", {}).items() if name != "training"}
    if isinstance(component, nn.Module):
        buffers = component.named_buffers(recurse=False)
        found |= {name: float(f"{value.item():.7g}") for name, value in buffers if value.numel() == 1}  # 0.2 in float32
    return {name: value for name, value in found.items() if not name.startswith("_")}
