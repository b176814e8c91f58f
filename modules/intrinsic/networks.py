"""Networks of reward models: features of an observation, with the encoders and the body of the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torchrl.data import Composite, TensorSpec, Unbounded

from ...errors import ConfigurationError
from ..features.extractor import Body, FeatureExtractorBuilder, select_entries, split_observation_spec
from ..features.image_shapes import MIN_IMAGE_SIZE, channels_first_shape
from ..features.images import is_image
from ..heads.value_heads import last_layer
from ..normalizers import ObservationNormalizer, Reduce

CLIP = 5.0
"""Limit of normalized observations (Burda et al. 2019, section 2.4)."""


class FeatureNetworks:
    """Builds networks from an observation to features. All networks share one running normalization.

    Entries of floats and images of at least 36x36 pixels are normalized and clipped to `[-5, 5]`, because a random
    network does not adapt to their scale. Other entries have encodings of a fixed scale.

    Args:
        name: Name of the reward model.
        observation_spec: Batched spec with the entry `observation`, a tensor or nested.
        body: Builds the body of every network, see `make_actor_critic`.
        encoders: See `make_actor_critic`.
        observations: Entries that the networks read, such as `image`; `None` means all.

    Attributes:
        in_keys: Keys of the entries that the networks read.

    Raises:
        ConfigurationError: If an entry does not exist.

    """

    def __init__(
        self,
        name: str,
        observation_spec: Composite,
        body: Body,
        encoders: Mapping[str, Body] | None = None,
        observations: Sequence[str] | None = None,
    ) -> None:
        entries, self._num_batch = split_observation_spec(observation_spec), len(observation_spec.shape)
        selected = select_entries(observation_spec, entries, observations, f"intrinsic.{name}.observations")
        specs = {key: self._normalizable(spec) for key, spec in {**entries.specs, **selected}.items()}
        self._specs = {key: specs[key] for key in selected}
        self._body = body
        self._build = FeatureExtractorBuilder(specs, self._num_batch, True, encoders or {}, None)
        for normalizer in self._build.normalizers.values():
            normalizer.clip = CLIP
        self.in_keys: list[NestedKey] = list(selected)

    def __call__(self, key: str, widths: Sequence[int]) -> TensorDictSequential:
        """Build a network that writes `key`, `[*, widths[-1]]`.

        Args:
            key: Key of the output.
            widths: Widths of the layers after the body. All but the last are followed by a ReLU.

        """
        extractor = self._build(key, self._specs, self._body)
        layers: list[nn.Module] = []
        sizes = [extractor.num_features, *widths]
        for width, num_outputs in pairwise(sizes[:-1]):
            layers += [nn.Linear(width, num_outputs), nn.ReLU()]
        layers.append(last_layer(sizes[-2], sizes[-1]))
        return TensorDictSequential(
            *extractor.modules, TensorDictModule(nn.Sequential(*layers), [extractor.key], [key])
        )

    def _normalizable(self, spec: TensorSpec) -> TensorSpec:
        """Return the spec of floats for a large image of bytes, and other specs unchanged."""
        shape = spec.shape[self._num_batch :]
        is_large = len(shape) > 2 and min(channels_first_shape(shape)[1:]) >= MIN_IMAGE_SIZE
        is_large_image = is_large and is_image(spec, self._num_batch)
        return Unbounded(spec.shape, dtype=torch.float32) if is_large_image else spec


def update_normalizers(network: nn.Module, data: TensorDictBase, reduce: Reduce) -> None:
    """Update the normalizers of a network with the observations of data `[*]`."""
    for module in network.modules():
        if isinstance(module, ObservationNormalizer):
            module.update(data[module.key], reduce)


def output_of(network: TensorDictModuleBase, data: TensorDictBase) -> torch.Tensor:
    """Return the last output of a network for data `[*]`, without writing into it."""
    output: torch.Tensor = network(data.select(*network.in_keys))[network.out_keys[-1]]
    return output


def next_keys(keys: Sequence[NestedKey]) -> list[NestedKey]:
    """Return the keys of the next observation, such as `("next", "observation")`."""
    return [("next", key) if isinstance(key, str) else ("next", *key) for key in keys]


def first_rows(rows: TensorDictBase, share: float) -> TensorDictBase:
    """Return a share of the rows of a minibatch, at least one. They are a random sample, because rows are shuffled."""
    return rows[: max(1, round(share * len(rows)))]


def check_network_options(name: str, num_features: int, share: float) -> None:
    """Raise a ConfigurationError if an option is out of range."""
    if num_features < 1:
        raise ConfigurationError(f"intrinsic.{name}.num_features={num_features} must be at least 1")
    if not 0 < share <= 1:
        raise ConfigurationError(f"intrinsic.{name}.share={share} must be above 0 and at most 1")
