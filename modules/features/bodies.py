"""Bodies: from one observation's shape to a module that turns observations into features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.modules import MLP

from ...errors import ConfigurationError

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}


def orthogonal_(module: nn.Module, gain: float) -> nn.Module:
    """Initialise every linear and convolutional layer: orthogonal weights of `gain`, zero biases.

    Source: Saxe et al. 2014; the gains of Engstrom et al. 2020 are sqrt(2) for bodies, 0.01 for the
    policy's last layer, 1 for the critic's.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


class Float(nn.Module):
    """Integers to floats, bytes to [0, 1]."""

    def forward(self, observation: Tensor) -> Tensor:
        """`[*] -> floating [*]`."""
        return as_floats(observation)


def as_floats(observation: Tensor) -> Tensor:
    """Bytes as floats in [0, 1], other integers as their floats, floats as they are."""
    if observation.dtype == torch.uint8:
        return observation / 255.0
    return observation if observation.is_floating_point() else observation.float()


def mlp(
    shape: torch.Size,
    num_cells: Sequence[int] = (64, 64),
    activation: str = "tanh",
    layer_norm: bool = False,
) -> nn.Module:
    """A multilayer perceptron over a flattened observation.

    Args:
        shape: of one observation.
        num_cells: width of every layer, at least one.
        activation: after every layer, one of `ACTIVATIONS`.
        layer_norm: whether to normalise before every activation.

    Returns:
        A module `[*, *shape] -> [*, num_cells[-1]]`.

    Raises:
        ConfigurationError: if the activation is unknown or there is no layer.

    """
    if activation not in ACTIVATIONS:
        raise ConfigurationError(f"activation={activation!r} is unknown; one of {', '.join(ACTIVATIONS)}")
    require_widths("num_cells", num_cells)
    body = MLP(
        in_features=math.prod(shape),
        out_features=num_cells[-1],
        num_cells=list(num_cells[:-1]),
        activation_class=ACTIVATIONS[activation],
        norm_class=nn.LayerNorm if layer_norm else None,
        norm_kwargs=[{"normalized_shape": width} for width in num_cells] if layer_norm else None,
        activate_last_layer=True,
    )
    flatten = nn.Flatten(-len(shape)) if len(shape) > 1 else nn.Identity()
    return nn.Sequential(Float(), flatten, orthogonal_(body, math.sqrt(2)))


def require_widths(name: str, widths: Sequence[int]) -> None:
    """Raise ConfigurationError unless there is a width, and none that no layer can have."""
    if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ConfigurationError(f"{name}={list(widths)} is no list of widths, at least one, each at least 1")


class FullPrecision(nn.Module):
    """Runs a head in its own precision, also under autocast: 8 bits of a log-probability are no basis for a ratio."""

    def __init__(self, head: nn.Module) -> None:
        """Wrap a head."""
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, *others: Tensor | None, **keywords: Tensor | None) -> Any:
        """What the head makes of `features`."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(next(self.head.parameters()).dtype), *others, **keywords)
