"""Bodies: functions from the shape of one observation to a network that computes features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchrl.modules import MLP

from ...errors import ConfigurationError

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU}


def mlp(
    shape: torch.Size,
    num_cells: Sequence[int] = (64, 64),
    activation: str = "tanh",
    layer_norm: bool = False,
) -> nn.Module:
    """Build a multilayer perceptron over flattened observations.

    Args:
        shape: Shape of one observation.
        num_cells: Width of every layer, at least one.
        activation: Activation after every layer, one of `ACTIVATIONS`.
        layer_norm: Whether to apply layer normalization before every activation.

    Returns:
        A module `[*, *shape] -> [*, num_cells[-1]]`.

    Raises:
        ConfigurationError: If the activation is unknown or `num_cells` is invalid.

    """
    if activation not in ACTIVATIONS:
        raise ConfigurationError(
            f"policy.body.activation={activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}"
        )
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
    return nn.Sequential(ToFloat(), flatten, orthogonal_(body, math.sqrt(2)))


def simba(shape: torch.Size, width: int = 128, num_blocks: int = 2) -> nn.Module:
    """Build the residual network of SimBa for flattened observations, which should be normalized.

    x_0 = W x + b, x_i = x_(i-1) + MLP(LN(x_(i-1))), features = LN(x_n). The MLP has one hidden layer of 4 x `width`
    units with ReLU.

    Source: Lee et al. 2024, "SimBa: simplicity bias for scaling up parameters in deep reinforcement learning".

    Args:
        shape: Shape of one observation.
        width: Number of features.
        num_blocks: Number of residual blocks.

    Returns:
        A module `[*, *shape] -> [*, width]`.

    Raises:
        ConfigurationError: If an argument is less than 1.

    """
    require_positive("policy.body", width=width, num_blocks=num_blocks)
    flatten = nn.Flatten(-len(shape)) if len(shape) > 1 else nn.Identity()
    embedding = orthogonal_(nn.Linear(math.prod(shape), width), 1.0)
    blocks = [PreNormBlock(width) for _ in range(num_blocks)]
    return nn.Sequential(ToFloat(), flatten, embedding, *blocks, nn.LayerNorm(width))


class PreNormBlock(nn.Module):
    """A residual block of SimBa: x + MLP(LN(x)), with the initialization of He et al. 2015."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (first, second):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.network = nn.Sequential(nn.LayerNorm(width), first, nn.ReLU(), second)

    def forward(self, features: Tensor) -> Tensor:
        """Shapes: `[*, width] -> [*, width]`."""
        residual: Tensor = self.network(features)
        return features + residual


def flattens_images(body: Callable[..., nn.Module]) -> bool:
    """Return whether a body is `mlp` or `simba`. They flatten their input, so images need an encoder before them."""
    return (body.func if isinstance(body, partial) else body) in (mlp, simba)


def orthogonal_(module: nn.Module, gain: float) -> nn.Module:
    """Initialize every linear and convolutional layer in place with orthogonal weights and zero biases.

    Source: Saxe et al. 2014. The usual gains (Engstrom et al. 2020) are sqrt(2) for bodies, 0.01 for the last layer
    of the policy and 1 for that of the critic.

    Args:
        module: Module whose layers are initialized.
        gain: Factor of the orthogonal weights.

    Returns:
        The same module.

    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def require_widths(name: str, widths: Sequence[int]) -> None:
    """Raise ConfigurationError unless `widths` is a non-empty list of positive integers."""
    if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ConfigurationError(
            f"policy.body.{name}={list(widths)} must list at least one width, each an integer of at least 1"
        )


def require_positive(group: str, **sizes: int) -> None:
    """Raise ConfigurationError if a size is less than 1; `group` is the key of the component that has the sizes."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigurationError(f"{group}.{name}={size} must be at least 1")


def require_builders(builders: Mapping[str, Any]) -> None:
    """Raise a ConfigurationError for a module in the place of the function or class that builds it."""
    for name, builder in builders.items():
        if isinstance(builder, nn.Module):
            kind = type(builder).__name__
            raise ConfigurationError(
                f"{name} is a module of the class {kind}; pass the function or class that builds it, not the module"
            )


def require_base(group: str, module: Any, base: type[Any]) -> Any:
    """Return a module that a component has built. Raise a ConfigurationError if it is not derived from `base`."""
    if not isinstance(module, base):
        raise ConfigurationError(
            f"{group} builds an object of the class {type(module).__name__}; derive the class from "
            f"{base.__module__}.{base.__name__}"
        )
    return module


def to_float(observation: Tensor) -> Tensor:
    """Scale bytes to [0, 1] and convert other integers to float; floats stay unchanged."""
    if observation.dtype == torch.uint8:
        return observation / 255.0
    return observation if observation.is_floating_point() else observation.float()


class ToFloat(nn.Module):
    """Module form of `to_float`."""

    def forward(self, observation: Tensor) -> Tensor:
        return to_float(observation)


class FullPrecision(nn.Module):
    """Runs a head in the precision of its parameters, also under autocast.

    The 8 significant bits of bfloat16 are not enough for log-probabilities whose ratios are learned from.

    Args:
        head: Module whose first argument is `features`.

    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, *args: Tensor | None, **kwargs: Tensor | None) -> Any:
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(next(self.head.parameters()).dtype), *args, **kwargs)
