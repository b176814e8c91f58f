"""Frames of a video: rendered images of one size with a line of text."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...errors import EnvironmentFailure

MIN_WIDTH = 240
"""Minimum width of a frame. Narrower frames are enlarged by a whole number, so that the text fits."""
TEXT_HEIGHT = 18
RENDER_HINT = "return an image [height, width, 3] from render()"


def images_of(rendered: Any) -> list[NDArray[np.uint8]]:
    """Convert the result of `render()` to images `[height, width, 3]`.

    Args:
        rendered: an image, a list of images, or `None`. An image is grayscale, RGB or RGBA, with the channels last or
            first. Its values are integers in [0, 255], booleans, or floats in [0, 1] or [0, 255].

    Raises:
        EnvironmentFailure: if `rendered` contains anything else.

    """
    if rendered is None:
        return []
    if isinstance(rendered, list | tuple) and all(one is None or np.ndim(one) >= 2 for one in rendered):
        return [image for one in rendered for image in images_of(one)]
    array = rendered.detach().cpu().numpy() if isinstance(rendered, Tensor) else np.asarray(rendered)
    if array.dtype.kind not in "buif" or array.size == 0 or array.ndim not in (2, 3, 4):
        text = f"{type(rendered).__name__} {array.dtype} {array.shape}"
        raise EnvironmentFailure(f"the environment renders {text}; {RENDER_HINT}")
    if array.ndim == 4:  # a sequence of images
        return [image for one in array for image in images_of(one)]
    return [_rgb(_as_uint8(array))]


def _as_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    array = np.nan_to_num(array.astype(np.float64))
    return np.clip(array * 255 if array.max() <= 1.0 else array, 0, 255).round().astype(np.uint8)


def _rgb(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert `[height, width]`, or an image with 1 to 4 channels (last or first), to `[height, width, 3]`."""
    if array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4):
        if array.shape[0] not in (1, 2, 3, 4):
            raise EnvironmentFailure(f"the environment renders an array {array.shape}; {RENDER_HINT}")
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2:
        array = array[..., None]
    return np.repeat(array[..., :1], 3, -1) if array.shape[-1] < 3 else array[..., :3]


class CollectFrames(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Renders and keeps the images, because an environment is reset before its images are read.

    Gymnasium's `RenderCollection` needs `metadata["render_modes"]`, which some environments lack.

    Args:
        env: the environment.
        steps: an image is rendered every `steps` steps, and at the start and the end of an episode.

    Attributes:
        starts: images after resets, one for every episode.
        last: image after the last step; `None` if it was not rendered.

    """

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int = 1) -> None:
        super().__init__(env)
        self.steps = steps
        self.starts: deque[Any] = deque()
        self.last: Any = None
        self._num_steps = -1  # of the episode, before the first reset

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**kwargs)
        if self._num_steps == 0:  # the episode had no steps
            self.starts.pop()
        self.starts.append(self.env.render())
        self._num_steps = 0
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._num_steps += 1
        is_shown = result[2] or result[3] or self._num_steps % self.steps == 0
        self.last = self.env.render() if is_shown else None
        return result


class Canvas:
    """Resizes images to the size of the first one and writes a line of text above them."""

    def __init__(self, first: NDArray[np.uint8]) -> None:
        height, width = first.shape[:2]
        scale = max(1, math.ceil(MIN_WIDTH / width))
        # The codec needs even sizes.
        self._size = (width * scale + width * scale % 2, height * scale + height * scale % 2)
        self.size = (self._size[0], self._size[1] + TEXT_HEIGHT)
        self._font = ImageFont.load_default()  # loading the font takes as long as writing a line

    def __call__(self, image: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
        """Return a new frame `[height, width, 3]`."""
        line = Image.new("L", (self.size[0], TEXT_HEIGHT))
        ImageDraw.Draw(line).text((4, 3), text, fill="white", font=self._font)
        if image.shape[1::-1] != self._size:
            picture = Image.fromarray(np.ascontiguousarray(image))
            image = np.asarray(picture.resize(self._size, Image.Resampling.NEAREST))
        frame = np.empty((self.size[1], self.size[0], 3), np.uint8)
        frame[:TEXT_HEIGHT], frame[TEXT_HEIGHT:] = np.asarray(line)[..., None], image
        return frame


def newest_image(observation: Sequence[Any] | Tensor | None) -> NDArray[np.uint8]:
    """Return the newest of stacked grayscale images `[1, images, height, width]` as an RGB image.

    Raises:
        EnvironmentFailure: if the observation does not have these dimensions.

    """
    if not (isinstance(observation, Tensor) and observation.dim() == 4):
        raise EnvironmentFailure("the environment does not render images; support render_mode='rgb_array'")
    return images_of(observation[0, -1].cpu().numpy())[0]
