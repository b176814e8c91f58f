"""Results of `render()` are converted to images of one size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from torchppo.errors import EnvironmentFailure
from torchppo.pipelines.run_files.frames import MIN_WIDTH, TEXT_HEIGHT, Canvas, images_of, newest_image

GREY = np.full((6, 8), 51, np.uint8)
RGB = np.full((6, 8, 3), 51, np.uint8)


@pytest.mark.parametrize(
    "rendered",
    [
        *(GREY, GREY[..., None], GREY[None], RGB, np.concatenate([RGB, RGB[..., :1]], -1), np.moveaxis(RGB, -1, 0)),
        *(RGB.astype(np.int64), RGB.astype(np.float32), RGB / 255, (RGB / 255).astype(np.float16), GREY / 255),
        *(torch.from_numpy(RGB), torch.from_numpy(RGB / 255).permute(2, 0, 1), Image.fromarray(RGB)),
        *(np.stack([GREY, GREY], -1), [RGB], (GREY,), [None, RGB], RGB[None]),
    ],
)
def test_an_image_becomes_rgb(rendered: Any) -> None:
    (image,) = images_of(rendered)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)


def test_a_list_has_several_images_and_none_has_no_image() -> None:
    assert len(images_of([RGB, GREY, RGB / 255])) == 3
    assert images_of(None) == images_of([]) == []


def test_values_out_of_range_and_booleans_become_black_and_white() -> None:
    (image,) = images_of(np.array([[-3.0, 300.0], [np.nan, 255.0]]))
    assert image[..., 0].tolist() == [[0, 255], [0, 255]]
    (image,) = images_of(np.array([[False, True]]))
    assert image[..., 0].tolist() == [[0, 255]]


@pytest.mark.parametrize("rendered", ["text", 3.0, {}, np.zeros(5), np.zeros((0, 4, 3)), np.zeros((9, 8, 7))])
def test_something_else_is_an_environment_failure(rendered: Any) -> None:
    with pytest.raises(EnvironmentFailure, match="renders"):
        images_of(rendered)


@pytest.mark.parametrize(("shape", "size"), [((7, 9, 3), (244, 190)), ((301, 401, 3), (402, 302))])
def test_frames_have_an_even_size_with_room_for_the_text(shape: tuple[int, ...], size: tuple[int, int]) -> None:
    canvas = Canvas(np.full(shape, 200, np.uint8))
    assert canvas.size == (size[0], size[1] + TEXT_HEIGHT)
    assert canvas.size[0] >= MIN_WIDTH
    frame = canvas(np.full((20, 30, 3), 200, np.uint8), "step 1")
    assert frame.shape == (canvas.size[1], canvas.size[0], 3)
    assert (frame[TEXT_HEIGHT:] == 200).all()
    assert 0 < (frame[:TEXT_HEIGHT] > 0).mean() < 0.5


def test_the_newest_of_stacked_images_is_shown() -> None:
    stacked = torch.stack([torch.zeros(6, 8), torch.full((6, 8), 51.0)])[None].to(torch.uint8)
    np.testing.assert_array_equal(newest_image(stacked), RGB)
    for other in (None, torch.zeros(1, 3)):
        with pytest.raises(EnvironmentFailure, match="rgb_array"):
            newest_image(other)


def test_text_is_drawn_as_by_pillow_on_an_image() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 300, 3), np.uint8)
    drawn = Image.new("RGB", (300, 40 + TEXT_HEIGHT))
    drawn.paste(Image.fromarray(image), (0, TEXT_HEIGHT))
    ImageDraw.Draw(drawn).text((4, 3), "step 7", fill="white")
    np.testing.assert_array_equal(Canvas(image)(image, "step 7"), np.asarray(drawn))
