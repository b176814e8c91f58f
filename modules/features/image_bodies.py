"""Bodies for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrl.modules import ConvNet

from ...errors import ConfigurationError
from .bodies import as_floats, orthogonal_, require_widths


class OverImages(nn.Module):
    """Runs a convolutional network over byte images with any number of batch dimensions.

    Images lie channels last in memory, which convolutions are faster on.
    """

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network `float32 [batch, channels, height, width] -> [batch, features]`."""
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """`[*, channels, height, width] -> [*, features]`, from bytes brought to [0, 1] or from floats as they are."""
        batch = image.shape[:-3]
        flat = image.reshape(-1, *image.shape[-3:]).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.network(as_floats(flat))
        return features.reshape(*batch, features.shape[-1])


def nature_cnn(shape: torch.Size, num_features: int = 512) -> nn.Module:
    """The convolutional network of Mnih et al. 2015 over stacked byte images, channels first.

    Args:
        shape: of one observation, `[channels, height, width]`, at least 36 pixels each way.
        num_features: width of the layer after the convolutions.

    Returns:
        A module `[*, *shape] -> [*, num_features]`.

    Raises:
        ConfigurationError: if the observation is no such image, or there is no feature.

    """
    require_images(shape, "cnn")
    require_width("num_features", num_features)
    convolutions = ConvNet(
        in_features=shape[0],
        num_cells=[32, 64, 64],
        kernel_sizes=[8, 4, 3],
        strides=[4, 2, 1],
        activation_class=nn.ReLU,
        aggregator_class=FlattenImage,
        aggregator_kwargs={},
    )
    width = convolutions(torch.zeros(1, *shape)).shape[-1]
    body = nn.Sequential(convolutions, nn.Linear(width, num_features), nn.ReLU())
    return OverImages(orthogonal_(body, math.sqrt(2)))


def impala_resnet(shape: torch.Size, channels: Sequence[int] = (16, 32, 32), num_features: int = 256) -> nn.Module:
    """The residual network of Espeholt et al. 2018 (figure 3, right, without its LSTM) over byte images.

    Args:
        shape: of one observation, `[channels, height, width]`, at least 36 pixels each way.
        channels: of every stage, each of which halves the image.
        num_features: width of the layer after the convolutions.

    Returns:
        A module `[*, *shape] -> [*, num_features]`.

    Raises:
        ConfigurationError: if the observation is no such image, or there is no stage, channel or feature.

    """
    require_images(shape, "resnet")
    require_widths("channels", channels)
    require_width("num_features", num_features)
    stages: list[nn.Module] = []
    for num_inputs, width in zip((shape[0], *channels), channels, strict=False):
        stages += [
            nn.Conv2d(num_inputs, width, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualBlock(width),
            ResidualBlock(width),
        ]
    size = channels[-1] * math.prod(math.ceil(side / 2 ** len(channels)) for side in shape[1:])
    body = nn.Sequential(*stages, nn.ReLU(), FlattenImage(), nn.Linear(size, num_features), nn.ReLU())
    orthogonal_(body, math.sqrt(2))
    for block in body:
        if isinstance(block, ResidualBlock):
            orthogonal_(block.network[-1], 0.0)  # the identity, as in Zhang et al. 2019, or every block adds variance
    return OverImages(body)


class FlattenImage(nn.Module):
    """Makes one dimension of an image's three, in the order in which it lies in memory, so that nothing is copied."""

    def forward(self, image: Tensor) -> Tensor:
        """`[batch, channels, height, width] -> [batch, height * width * channels]`."""
        return image.permute(0, 2, 3, 1).flatten(1)


class ResidualBlock(nn.Module):
    """Two convolutions beside a connection that skips them."""

    def __init__(self, channels: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.network = nn.Sequential(
            *(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
            *(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, image: Tensor) -> Tensor:
        """`[batch, channels, height, width]`, of the same shape."""
        change: Tensor = self.network(image)
        return image + change


def require_width(name: str, width: int) -> None:
    """Raise ConfigurationError for a width that no layer can have."""
    if width < 1:
        raise ConfigurationError(f"{name}={width} must be at least 1")


def require_images(shape: torch.Size, policy: str) -> None:
    """Raise ConfigurationError unless observations are images that the convolutions of `policy` can read."""
    if len(shape) != 3 or min(shape[1:]) < 36:
        raise ConfigurationError(
            f"policy={policy} reads images [channels, height, width] of at least 36x36 pixels, not observations of "
            f"shape {list(shape)}; use policy=mlp, or wrappers that bring the channels to the front, such as "
            "env.wrappers=[{_target_: torchppo.envs.wrappers.ChannelsFirst, _partial_: true}]"
        )
