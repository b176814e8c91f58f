"""Encoders: networks that turn one entry of an observation into features, chosen by the entry's spec."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torchrl.data import Binary, Bounded, Categorical, MultiCategorical, OneHot, TensorSpec, Unbounded

from ...errors import ConfigurationError
from .bodies import ToFloat, orthogonal_
from .image_bodies import nature_cnn
from .image_shapes import MIN_IMAGE_SIZE, channels_first_shape
from .images import ToChannelsFirst, is_image, scale_image

MAX_ONE_HOT = 1024
"""Largest number of categories that are one-hot encoded; more are embedded."""

NUM_CODES = 16
"""Number of codes that `SmallImageCNN` one-hot encodes; larger values share the last code."""


def make_encoder(spec: TensorSpec, num_batch: int, name: str) -> nn.Module:
    """Build the default encoder of one entry.

    Args:
        spec: Spec of a batch of entries, `[*batch, *shape]`.
        num_batch: Number of batch dimensions of the spec.
        name: Name of the entry for error messages, such as `observation/image`.

    Returns:
        A module `[*, *shape] -> floating [*, features]`, for any number of leading dimensions.

    Raises:
        ConfigurationError: If there is no encoder for the spec.

    """
    shape = spec.shape[num_batch:]
    match spec:
        case MultiCategorical():
            return nn.Sequential(Flatten(len(shape)), MultiOneHot(spec.nvec[(0,) * num_batch].flatten().tolist()))
        case Binary() | OneHot():  # before Categorical, because TorchRL's Binary is a subclass of it
            return nn.Sequential(ScaleIntegers(torch.zeros(shape), torch.ones(shape)), Flatten(len(shape)))
        case Categorical() if not shape and spec.n > MAX_ONE_HOT:
            return nn.Embedding(spec.n, 64)
        case Categorical() if not shape:
            return nn.Sequential(Flatten(0), MultiOneHot([spec.n]))
        case Categorical() if len(shape) == 1:
            return TokenEncoder(spec.n, shape[0])
        case Bounded() | Unbounded() if is_image(spec, num_batch):
            return make_image_encoder(spec, shape)
        case Bounded() if not spec.dtype.is_floating_point:
            low, high = (bound[(0,) * num_batch] for bound in (spec.space.low, spec.space.high))
            return nn.Sequential(ScaleIntegers(low, high), Flatten(len(shape)))
        case Bounded() | Unbounded():
            return nn.Sequential(ToFloat(), Flatten(len(shape)))
    raise ConfigurationError(
        f"{name} has no encoder for {spec}; use a box, Binary, OneHot or MultiCategorical of any shape, or a "
        "Categorical of at most one dimension, or remove it with transforms=[...] (torchrl.envs.ExcludeTransform)"
    )


def make_image_encoder(spec: TensorSpec, shape: torch.Size) -> nn.Module:
    """Build the encoder of images of a shape; see `is_image`."""
    channels_first = channels_first_shape(shape)
    if min(channels_first[1:]) >= MIN_IMAGE_SIZE:
        return nn.Sequential(*scale_image(spec), nature_cnn(shape))
    return nn.Sequential(ToChannelsFirst(shape), SmallImageCNN(channels_first))


class ConcatEncoders(nn.Module):
    """Applies one encoder to every entry and concatenates the features.

    Args:
        encoders: One encoder per entry, in the order in which `forward` receives the entries.

    """

    def __init__(self, encoders: Iterable[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, *entries: Tensor) -> Tensor:
        """Shapes: `[*, *shape]` for every entry, to `[*, sum of features]`."""
        return torch.cat([encoder(entry) for encoder, entry in zip(self.encoders, entries, strict=True)], -1)


class Flatten(nn.Module):
    """Flattens the last `num_dims` dimensions, or adds a dimension if `num_dims` is 0.

    `torch.nn.Flatten` cannot add a dimension.
    """

    def __init__(self, num_dims: int) -> None:
        super().__init__()
        self.num_dims = num_dims

    def forward(self, entry: Tensor) -> Tensor:
        """Shapes: `[*, *shape] -> [*, product of shape]`."""
        return entry.flatten(-self.num_dims) if self.num_dims else entry.unsqueeze(-1)


class MultiOneHot(nn.Module):
    """One-hot encodes several categorical variables and concatenates them.

    Args:
        nvec: Number of categories of every variable.

    """

    variable: Tensor
    category: Tensor

    def __init__(self, nvec: Sequence[int]) -> None:
        super().__init__()
        variable = torch.arange(len(nvec)).repeat_interleave(torch.tensor(nvec))
        self.register_buffer("variable", variable, persistent=False)
        self.register_buffer("category", torch.cat([torch.arange(n) for n in nvec]), persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        """Shapes: `[*, variables] -> float32 [*, sum(nvec)]`."""
        return (index[..., self.variable] == self.category).float()


class ScaleIntegers(nn.Module):
    """Converts integers to floats and scales wide finite ranges to [0, 1].

    Ranges of at most 16 are not scaled, and neither are ranges so wide that they are only the limits of the dtype.

    Args:
        low: Lower bounds, `[*shape]`.
        high: Upper bounds, `[*shape]`.

    """

    low: Tensor
    span: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        span = high.double() - low.double()  # the range of an integer dtype overflows that dtype
        is_wide = (span > 16) & (span < 2**16)
        self.register_buffer("low", low.long().where(is_wide, 0), persistent=False)
        self.register_buffer("span", span.where(is_wide, 1.0).float(), persistent=False)

    def forward(self, entry: Tensor) -> Tensor:
        """Shapes: `[*, *shape] -> float32 [*, *shape]`."""
        # Subtract integers, because float32 cannot distinguish large neighbors.
        return (entry.long() - self.low) / self.span


class TokenEncoder(nn.Module):
    """Applies a network to the embedding of every token and averages over the tokens; 0 is padding.

    Args:
        num_tokens: Size of the vocabulary.
        max_words: Length of the token sequence.
        num_features: Number of features.

    """

    def __init__(self, num_tokens: int, max_words: int, num_features: int = 64) -> None:
        super().__init__()
        self.token = nn.Embedding(num_tokens, 32)
        self.position = nn.Parameter(0.1 * torch.randn(max_words, 32))  # word order matters, but less than the words
        body = nn.Sequential(nn.Linear(32, num_features), nn.ReLU(), nn.Linear(num_features, num_features), nn.ReLU())
        self.network = orthogonal_(body, math.sqrt(2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Shapes: `int64 [*, max_words] -> [*, features]`; the features of an empty text are zeros."""
        is_word = (tokens != 0).unsqueeze(-1)
        features = self.network(self.token(tokens) + self.position) * is_word
        mean: Tensor = features.sum(-2) / is_word.sum(-2).clamp(min=1)
        return mean


class SmallImageCNN(nn.Module):
    """A small convolutional network for byte images whose height or width is below 36 pixels.

    Most such images are maps of integer codes (MiniGrid: 0 to 10 in a space of 0 to 255), so every value is one-hot
    encoded over `NUM_CODES` codes. Some are pictures, so the value scaled to [0, 1] is an input too.

    Args:
        shape: Shape of one image, `[channels, height, width]`.
        num_features: Number of features.

    """

    codes: Tensor

    def __init__(self, shape: Sequence[int], num_features: int = 128) -> None:
        super().__init__()
        self.register_buffer("codes", torch.arange(NUM_CODES, dtype=torch.uint8).reshape(-1, 1, 1), persistent=False)
        convolutions = nn.Sequential(
            *(nn.Conv2d(shape[0] * (NUM_CODES + 1), 16, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
            nn.Flatten(),
        )
        width = 64 * math.prod(math.ceil(size / 4) for size in shape[1:])
        self.network = orthogonal_(nn.Sequential(convolutions, nn.Linear(width, num_features), nn.ReLU()), math.sqrt(2))

    def forward(self, image: Tensor) -> Tensor:
        """Shapes: `uint8 [*, channels, height, width] -> [*, features]`."""
        batch = image.shape[:-3]
        flat = image.reshape(-1, *image.shape[-3:])
        one_hot = flat.clamp(max=NUM_CODES - 1).unsqueeze(2) == self.codes
        features: Tensor = self.network(torch.cat([flat / 255.0, one_hot.flatten(1, 2).float()], 1))
        return features.reshape(*batch, features.shape[-1])
