"""Encoders: from one entry of an observation to features, chosen by its spec."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torchrl.data import Binary, Bounded, Categorical, MultiCategorical, OneHot, TensorSpec, Unbounded

from ...errors import ConfigurationError
from .bodies import Float, orthogonal_
from .image_bodies import nature_cnn

MAX_ONE_HOT = 1024
"""Largest number of categories that are told apart by one input each."""

NUM_CODES = 16
"""Entries of a small image that are told apart; larger ones count as the last, and as brightness."""


def make_encoder(spec: TensorSpec, num_batch: int, name: str) -> nn.Module:
    """The encoder of one entry.

    Args:
        spec: of the batch, `[*batch, *shape]`.
        num_batch: the number of batch dimensions.
        name: of the entry, such as `observation/image`.

    Returns:
        A module `[*, *shape] -> floating [*, features]`, for any number of leading dimensions.

    Raises:
        ConfigurationError: if there is no encoder for such a spec.

    """
    shape = spec.shape[num_batch:]
    match spec:
        case MultiCategorical():
            return nn.Sequential(Flattened(len(shape)), Indicators(spec.nvec[(0,) * num_batch].flatten().tolist()))
        case Binary() | OneHot():  # before Categorical, of which TorchRL derives the one
            return nn.Sequential(Scaled(torch.zeros(shape), torch.ones(shape)), Flattened(len(shape)))
        case Categorical() if not shape:
            return (
                nn.Embedding(spec.n, 64) if spec.n > MAX_ONE_HOT else nn.Sequential(Flattened(0), Indicators([spec.n]))
            )
        case Categorical() if len(shape) == 1:
            return Words(spec.n, shape[0])
        case Bounded() | Unbounded() if len(shape) == 3 and spec.dtype == torch.uint8:
            return image_encoder(shape)
        case Bounded() if not spec.dtype.is_floating_point:
            low, high = (bound[(0,) * num_batch] for bound in (spec.space.low, spec.space.high))
            return nn.Sequential(Scaled(low, high), Flattened(len(shape)))
        case Bounded() | Unbounded():
            return nn.Sequential(Float(), Flattened(len(shape)))
    raise ConfigurationError(
        f"{name} has no encoder for {spec}; supported are boxes, Binary, OneHot and "
        "MultiCategorical of any shape, and Categorical of none or one dimension; transforms=[...] can leave it out "
        "(torchrl.envs.ExcludeTransform)"
    )


class Encoders(nn.Module):
    """Encoders of several entries side by side.

    Args:
        encoders: one for every entry, in the order in which `forward` takes the entries.

    """

    def __init__(self, encoders: Iterable[nn.Module]) -> None:
        """Keep the order."""
        super().__init__()
        self.encoders = nn.ModuleList(encoders)

    def forward(self, *entries: Tensor) -> Tensor:
        """`[*, *shape]` of every entry to `[*, sum of features]`."""
        return torch.cat([encoder(entry) for encoder, entry in zip(self.encoders, entries, strict=True)], -1)


class Flattened(nn.Module):
    """Entries of any number of dimensions as vectors."""

    def __init__(self, num_dims: int) -> None:
        """Flatten the last `num_dims` dimensions; 0: add one."""
        super().__init__()
        self.num_dims = num_dims

    def forward(self, entry: Tensor) -> Tensor:
        """`[*, *shape] -> [*, product of shape]`."""
        return entry.flatten(-self.num_dims) if self.num_dims else entry.unsqueeze(-1)


class Indicators(nn.Module):
    """One input for every choice of every factor, 1 where it is chosen, else 0."""

    factor: Tensor
    choice: Tensor

    def __init__(self, nvec: Sequence[int]) -> None:
        """Tell apart `nvec[i]` choices of the i-th factor."""
        super().__init__()
        self.register_buffer("factor", torch.arange(len(nvec)).repeat_interleave(torch.tensor(nvec)), persistent=False)
        self.register_buffer("choice", torch.cat([torch.arange(n) for n in nvec]), persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        """`[*, factors] -> float32 [*, sum(nvec)]`."""
        return (index[..., self.factor] == self.choice).float()


class Scaled(nn.Module):
    """Integers as floats, those of wide finite ranges brought to [0, 1].

    Narrow ones, of at most 16, are left as they are, and so are those whose bounds are only their type's.
    """

    low: Tensor
    span: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        """Take the bounds `[*shape]`."""
        super().__init__()
        span = high.double() - low.double()  # an integer's own range overflows
        wide = (span > 16) & (span < 2**16)
        self.register_buffer("low", low.long().where(wide, 0), persistent=False)
        self.register_buffer("span", span.where(wide, 1.0).float(), persistent=False)

    def forward(self, entry: Tensor) -> Tensor:
        """`[*, *shape] -> float32 [*, *shape]`."""
        return (entry.long() - self.low) / self.span  # large numbers are not near to each other in float32


class Words(nn.Module):
    """Tokens, of which 0 is padding: every word with its place goes through one network, then the mean over words."""

    def __init__(self, num_tokens: int, max_words: int, num_features: int = 64) -> None:
        """Embed each of `num_tokens` tokens at each of `max_words` places."""
        super().__init__()
        self.token = nn.Embedding(num_tokens, 32)
        self.place = nn.Parameter(0.1 * torch.randn(max_words, 32))  # so that order matters, but less than words
        body = nn.Sequential(nn.Linear(32, num_features), nn.ReLU(), nn.Linear(num_features, num_features), nn.ReLU())
        self.network = orthogonal_(body, math.sqrt(2))

    def forward(self, tokens: Tensor) -> Tensor:
        """`int64 [*, words] -> [*, features]`; without a word, zeros."""
        is_word = (tokens != 0).unsqueeze(-1)
        features = self.network(self.token(tokens) + self.place) * is_word
        mean: Tensor = features.sum(-2) / is_word.sum(-2).clamp(min=1)
        return mean


def image_encoder(shape: torch.Size) -> nn.Module:
    """The encoder of byte images, whose channels are the smaller of their first and last dimension."""
    channels_first = shape[0] < shape[-1]
    if not channels_first:
        shape = torch.Size([shape[2], shape[0], shape[1]])
    network = nature_cnn(shape) if min(shape[1:]) >= 36 else SmallImages(shape)
    return network if channels_first else nn.Sequential(ChannelsFirst(), network)


class ChannelsFirst(nn.Module):
    """Images whose channels come last, with the channels in front."""

    def forward(self, image: Tensor) -> Tensor:
        """`[*, height, width, channels] -> [*, channels, height, width]`."""
        return image.movedim(-1, -3)


class SmallImages(nn.Module):
    """A small convolutional network for byte images below 36 pixels.

    Such images are mostly maps whose entries are codes (MiniGrid: 0 to 10, in a space that claims 0 to 255), so
    every entry is one-hot up to `NUM_CODES`; some are pictures, so it is also a number from 0 to 1.
    """

    codes: Tensor

    def __init__(self, shape: torch.Size, num_features: int = 128) -> None:
        """Take images `[channels, height, width]`."""
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
        """`uint8 [*, channels, height, width] -> [*, features]`."""
        batch = image.shape[:-3]
        flat = image.reshape(-1, *image.shape[-3:])
        codes = flat.clamp(max=NUM_CODES - 1).unsqueeze(2) == self.codes
        features: Tensor = self.network(torch.cat([flat / 255.0, codes.flatten(1, 2).float()], 1))
        return features.reshape(*batch, features.shape[-1])
