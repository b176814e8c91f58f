"""The channels of images are found in any layout."""

from __future__ import annotations

import pytest
import torch

from torchppo.modules.features.image_shapes import channels_first_order, channels_first_shape
from torchppo.modules.features.images import ToChannelsFirst


@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((84, 84), (0, 1)),
        ((3, 64, 64), (0, 1, 2)),  # squares
        ((64, 64, 3), (2, 0, 1)),
        ((8, 8, 19), (2, 0, 1)),
        ((19, 8, 8), (0, 1, 2)),
        ((4, 4, 7), (2, 0, 1)),
        ((3, 120, 160), (0, 1, 2)),  # few channels
        ((210, 160, 3), (2, 0, 1)),
        ((1, 16, 512), (0, 1, 2)),
        ((6, 7, 2), (2, 0, 1)),
        ((12, 64, 96), (0, 1, 2)),  # nearly square
        ((64, 96, 12), (2, 0, 1)),
        ((8, 9, 19), (2, 0, 1)),
        ((3, 5, 4), (0, 1, 2)),
        ((7, 7, 7), (2, 0, 1)),  # no rule decides
        ((4, 64, 64, 3), (0, 3, 1, 2)),  # stacks
        ((4, 3, 64, 64), (0, 1, 2, 3)),
        ((64, 64, 3, 4), (3, 2, 0, 1)),
        ((4, 120, 160, 3), (0, 3, 1, 2)),
        ((4, 8, 8, 19), (0, 3, 1, 2)),
    ],
)
def test_channels_are_found(shape: tuple[int, ...], order: tuple[int, ...]) -> None:
    assert channels_first_order(torch.Size(shape)) == order


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 5), (5, 5, 2), (3, 5, 5, 2), (3, 2, 5, 5), (5, 5, 2, 3)])
@pytest.mark.parametrize("batch", [(), (4,), (4, 2)])
def test_images_are_permuted_and_stacks_become_channels(shape: tuple[int, ...], batch: tuple[int, ...]) -> None:
    size = torch.Size(shape)
    image = torch.arange(torch.Size([*batch, *shape]).numel()).reshape(*batch, *shape)
    result = ToChannelsFirst(size)(image)
    assert result.shape == (*batch, *channels_first_shape(size))
    expected = image.reshape(-1, *shape)[-1].permute(*channels_first_order(size)).reshape(channels_first_shape(size))
    assert torch.equal(result.reshape(-1, *result.shape[-3:])[-1], expected)
