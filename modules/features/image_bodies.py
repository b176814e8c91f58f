"""Convolutional bodies for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrl.modules import ConvNet

from .bodies import orthogonal_, require_positive, require_widths, to_float
from .image_shapes import require_image_shape
from .images import ToChannelsFirst


def nature_cnn(shape: torch.Size, num_features: int = 512, layer_norm: bool = False) -> nn.Module:
    """Build the convolutional network of Mnih et al. 2015 for stacked images.

    Args:
        shape: Shape of one image of at least 36x36 pixels, see `channels_first_order`.
        num_features: Width of the layer after the convolutions.
        layer_norm: Whether to apply layer normalization before every activation.

    Returns:
        A module `[*, *shape] -> [*, num_features]` for bytes, or floats that are already scaled.

    Raises:
        ConfigurationError: If the observation is not such an image, or `num_features` is less than 1.

    """
    first, *size = require_image_shape(shape, "cnn")
    require_positive("policy.body", num_features=num_features)
    channels = [32, 64, 64]
    convolutions = ConvNet(
        in_features=first,
        num_cells=channels,
        kernel_sizes=[8, 4, 3],
        strides=[4, 2, 1],
        activation_class=nn.ReLU,
        norm_class=nn.GroupNorm if layer_norm else None,
        norm_kwargs=[{"num_groups": 1, "num_channels": number} for number in channels] if layer_norm else None,
        aggregator_class=FlattenImage,
        aggregator_kwargs={},
    )
    width = convolutions(torch.zeros(1, first, *size)).shape[-1]
    norm = [nn.LayerNorm(num_features)] if layer_norm else []
    body = nn.Sequential(convolutions, nn.Linear(width, num_features), *norm, nn.ReLU())
    return ImageNetwork(orthogonal_(body, math.sqrt(2)), shape)


def impala_resnet(
    shape: torch.Size, channels: Sequence[int] = (16, 32, 32), num_features: int = 256, layer_norm: bool = False
) -> nn.Module:
    """Build the residual network of Espeholt et al. 2018 (figure 3, right, without the LSTM) for images.

    Args:
        shape: Shape of one image of at least 36x36 pixels, see `channels_first_order`.
        channels: Number of channels of every stage; each stage halves the image.
        num_features: Width of the layer after the convolutions.
        layer_norm: Whether to apply layer normalization before every activation.

    Returns:
        A module `[*, *shape] -> [*, num_features]` for bytes, or floats that are already scaled.

    Raises:
        ConfigurationError: If the observation is not such an image, or a width is less than 1.

    """
    first, *size = require_image_shape(shape, "resnet")
    require_widths("channels", channels)
    require_positive("policy.body", num_features=num_features)
    stages: list[nn.Module] = []
    for in_channels, out_channels in zip((first, *channels), channels, strict=False):
        stages += [
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualBlock(out_channels, layer_norm),
            ResidualBlock(out_channels, layer_norm),
        ]
    num_flat = channels[-1] * math.prod(math.ceil(side / 2 ** len(channels)) for side in size)
    before, after = [nn.GroupNorm(1, channels[-1])] * layer_norm, [nn.LayerNorm(num_features)] * layer_norm
    dense = nn.Linear(num_flat, num_features)
    body = nn.Sequential(*stages, *before, nn.ReLU(), FlattenImage(), dense, *after, nn.ReLU())
    orthogonal_(body, math.sqrt(2))
    for block in body:
        if isinstance(block, ResidualBlock):
            # Blocks start as the identity (Zhang et al. 2019); otherwise every block would add variance.
            orthogonal_(block.network[-1], 0.0)
    return ImageNetwork(body, shape)


class ImageNetwork(nn.Module):
    """Runs a convolutional network on images with any number of batch dimensions.

    Images are converted to the channels-last memory format, in which convolutions are faster.

    Args:
        network: Module `float32 [batch, channels, height, width] -> [batch, features]`.
        shape: Shape of one image, see `channels_first_order`.

    """

    def __init__(self, network: nn.Module, shape: torch.Size) -> None:
        super().__init__()
        self.to_channels_first = ToChannelsFirst(shape)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """Shapes: `[*, *shape] -> [*, features]`."""
        image = self.to_channels_first(image)
        batch = image.shape[:-3]
        flat = image.reshape(-1, *image.shape[-3:]).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.network(to_float(flat))
        return features.reshape(*batch, features.shape[-1])


class FlattenImage(nn.Module):
    """Flattens images in channels-last order, which is their memory format, so that nothing is copied."""

    def forward(self, image: Tensor) -> Tensor:
        """Shapes: `[batch, channels, height, width] -> [batch, height * width * channels]`."""
        return image.permute(0, 2, 3, 1).flatten(1)


class ResidualBlock(nn.Module):
    """Two convolutions with a skip connection, and optionally layer normalization before each activation."""

    def __init__(self, channels: int, layer_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            norm = [nn.GroupNorm(1, channels)] if layer_norm else []
            layers += [*norm, nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.network = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """Shapes: `[batch, channels, height, width]`, for input and output."""
        residual: Tensor = self.network(image)
        return image + residual
