"""The shapes of images. This file does not import PyTorch, because the command line checks shapes without it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...errors import ConfigurationError

MIN_IMAGE_SIZE = 36
"""Smallest height and width, in pixels, that the convolutions of `nature_cnn` can process."""
COLORS = (1, 2, 3, 4)
"""Usual numbers of channels of single images and short stacks."""


def channels_first_order(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the dimensions of an image in the order (stack,) channels, height, width.

    With 3 dimensions, the channels are the first or the last dimension. The first rule that decides is used:

    1. The other two dimensions are equal (a square) in only one of the two orders.
    2. There are at most 4 channels in only one of the two orders.
    3. The image is closer to a square in one of the two orders. If both are equal, the channels are last.

    With 4 dimensions, height and width are the adjacent pair whose smaller size is largest.
    """
    if len(shape) == 2:
        return (0, 1)
    if len(shape) == 4:
        height = max((1, 2, 0), key=lambda dim: min(shape[dim], shape[dim + 1]))
        others = [dim for dim in range(4) if dim not in (height, height + 1)]
        if height == 0:
            others.reverse()  # a stack is usually the last dimension here
        return (*others, height, height + 1)
    first, last = (0, 1, 2), (2, 0, 1)
    for rule in (_is_square, _has_few_channels, _squareness):
        of_first, of_last = (rule(*(shape[dim] for dim in order)) for order in (first, last))
        if of_first != of_last:
            return first if of_first > of_last else last
    return last


def _is_square(_: int, height: int, width: int) -> float:
    return height == width


def _has_few_channels(channels: int, _: int, __: int) -> float:
    return channels in COLORS


def _squareness(_: int, height: int, width: int) -> float:
    return min(height, width) / max(height, width)


def channels_first_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shape `[channels, height, width]` of an image. The images of a stack become channels."""
    *channels, height, width = (shape[dim] for dim in channels_first_order(shape))
    return (math.prod(channels), height, width)


def require_image_shape(shape: Sequence[int], policy: str) -> tuple[int, int, int]:
    """Check the shape of an image and return it as `[channels, height, width]`.

    Raises:
        ConfigurationError: If `policy` cannot process images of this shape.

    """
    if len(shape) not in (2, 3, 4) or min(channels_first_shape(shape)[1:]) < MIN_IMAGE_SIZE:
        raise ConfigurationError(
            f"policy={policy} needs a single image of at least 36x36 pixels, but observations have the shape "
            f"{list(shape)}; use policy=mlp, which encodes images of any size and several entries"
        )
    return channels_first_shape(shape)
