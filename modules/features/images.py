"""Functions that detect images and convert them to `[channels, height, width]`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrl.data import Bounded, TensorSpec, Unbounded

from .image_shapes import MIN_IMAGE_SIZE, channels_first_order, channels_first_shape

MAX_CHANNELS = 16
"""Largest number of channels of an image that is not of bytes."""


def is_image(spec: TensorSpec, num_batch: int) -> bool:
    """Return whether a box is an image, so that convolutions can process it.

    Boxes of bytes with 3 dimensions, or with 4 (stacked images), are images. Boxes of bytes with 2 dimensions are
    grayscale images if they have at least 36x36 pixels. Boxes of other dtypes with 3 or 4 dimensions are images if they
    have at least 36x36 pixels and at most `MAX_CHANNELS` channels.
    """
    shape = spec.shape[num_batch:]
    if not isinstance(spec, Bounded | Unbounded) or len(shape) not in (2, 3, 4):
        return False
    channels, height, width = channels_first_shape(shape)
    is_large = min(height, width) >= MIN_IMAGE_SIZE
    if spec.dtype == torch.uint8:
        return is_large or len(shape) > 2
    return is_large and len(shape) > 2 and channels <= MAX_CHANNELS


class ToChannelsFirst(nn.Module):
    """Converts images to `[channels, height, width]`.

    Args:
        shape: Shape of one image, of 2, 3 or 4 dimensions.

    """

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.order = channels_first_order(shape)

    def forward(self, image: Tensor) -> Tensor:
        """Shapes: `[*, *shape] -> [*, channels, height, width]`."""
        num_dims = len(self.order)
        if self.order == (0, 1, 2):
            return image
        if num_dims == 2:
            return image.unsqueeze(-3)
        num_batch = image.dim() - num_dims
        image = image.permute(*range(num_batch), *(num_batch + dim for dim in self.order))
        return image.flatten(-4, -3) if num_dims == 4 else image


class ScaleImage(nn.Module):
    """Divides images by the upper bound of their values."""

    def __init__(self, high: float) -> None:
        super().__init__()
        self.high = high

    def forward(self, image: Tensor) -> Tensor:
        """Shapes: `[*] -> float [*]`."""
        return (image if image.is_floating_point() else image.float()) / self.high


def scale_image(spec: TensorSpec) -> list[nn.Module]:
    """Return a list with the module that scales an image to [0, 1], or an empty list if none is needed.

    Image networks divide bytes by 255 and expect other values in [0, 1]. The module is needed for bytes with an upper
    bound other than 255, and for other dtypes with an upper bound above 1 and up to 255.
    """
    if not isinstance(spec, Bounded):
        return []
    high = float(spec.space.high.max())
    is_scaled = high in (0, 255) if spec.dtype == torch.uint8 else not 1 < high <= 255
    return [] if is_scaled else [ScaleImage(high)]
